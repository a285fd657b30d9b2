#include "serve/serving_model.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <vector>

#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/quantized_pack.h"
#include "base/bfloat16.h"
#include "base/error.h"
#include "runtime/initialize.h"
#include "runtime/machine_facts.h"

namespace orrery {

struct ServingModel::Machine {
  DeviceSpec device;

  explicit Machine(int num_threads) {
    const CpuFeatures& features = cpu_features();
    device.isa = features.best_isa();
    device.arithmetic = native_arithmetic(features);
    device.num_threads = num_threads > 0 ? num_threads : usable_cores();
  }
};

namespace {

ServingPlan plan_for(const ModelSource& source, const ServingModelOptions& options, const DeviceSpec& device) {
  ServingPlanOptions serving;
  serving.model = source.config();
  serving.compute_dtype = options.compute_dtype;
  serving.max_context = options.max_context;
  serving.max_tokens = options.max_tokens;
  serving.max_sequences = options.max_sequences;
  serving.max_rows = options.max_rows;
  serving.kv_blocks = options.kv_blocks;
  serving.kv_int8 = options.kv_int8;
  for (const SourceTensor& tensor : source.tensors()) {
    const auto format = tensor.blocks ? weight_format_of(*tensor.blocks) : std::nullopt;
    if (format) serving.weight_formats.emplace(tensor.name, *format);
  }
  return make_serving_plan(serving, [device](const Stage& stage, const Op& op) { return op_workspace_bytes(device, stage, op, 0); }, packed_weight_bytes);
}

// The head is the last op; its first input is the hidden state of the gathered rows.
ValueId head_input(const Stage& stage) { return stage.block(Phase::kForward).ops.back().inputs[0]; }

}  // namespace

ServingModel::ServingModel(const ModelSource& source, const ServingModelOptions& options, ThreadPool* pool)
    : ServingModel(source, options, pool, Machine(pool ? pool->num_threads() : options.num_threads)) {}

ServingModel::ServingModel(const ModelSource& source, const ServingModelOptions& options, ThreadPool* pool, const Machine& machine)
    : plan_(plan_for(source, options, machine.device)),
      own_pool_(pool ? nullptr : std::make_unique<ThreadPool>(machine.device.num_threads)),
      pool_(pool ? pool : own_pool_.get()),
      arena_(plan_.memory.total_bytes),
      executor_(plan_.stage, plan_.memory, arena_, {pool_, machine.device.isa, machine.device.arithmetic, true}, 0),
      hidden_(head_input(plan_.stage)) {
  set_floating_point_mode();
  load_weights(source, {pool_, machine.device.isa, machine.device.arithmetic, true});
  for (size_t i = 0; i < plan_.stage.constants.size(); ++i)
    fill_rope_table(plan_.stage.constants[i], reinterpret_cast<float*>(arena_.data() + plan_.memory.constant_offset[i]));
}

// The segments of a quantized parameter, panel by panel: a thread reads 16 rows of the file at a time, so nothing else is held.
void ServingModel::load_quantized(const ModelSource& source, const ParameterSpec& spec, const std::vector<PackedSegment>& segments, std::byte* packed) {
  for (size_t s = 0; s < segments.size(); ++s) {
    const ParameterSegment& from = spec.segments[s];
    const auto tensor = std::find_if(source.tensors().begin(), source.tensors().end(), [&](const SourceTensor& t) { return t.name == from.tensor; });
    const auto index = static_cast<size_t>(tensor - source.tensors().begin());
    const int64_t k = spec.columns(), row_bytes = block_bytes(*tensor->blocks, k), panel_bytes = quantized_panel_bytes(segments[s].format, k);
    std::exception_ptr failure;
    std::mutex mutex;
    pool_->parallel_for(from.num_rows, kQuantPanelColumns, [&](int64_t begin, int64_t end) {
      try {
        std::vector<std::byte> rows(static_cast<size_t>(kQuantPanelColumns * row_bytes));
        for (int64_t row = begin; row < end; row += kQuantPanelColumns) {
          const int64_t count = std::min(kQuantPanelColumns, end - row);
          source.read_block_rows(index, from.tensor_row_begin + row, count, std::span(rows).first(static_cast<size_t>(count * row_bytes)));
          pack_quantized_panel(segments[s].format, rows.data(), row_bytes, count, k, packed + row / kQuantPanelColumns * panel_bytes);
        }
      } catch (...) {
        const std::lock_guard lock(mutex);
        failure = std::current_exception();
      }
    });
    if (failure) std::rethrow_exception(failure);
    packed += quantized_weight_bytes(segments[s].format, from.num_rows, k);
  }
}

// Plain weights go to their place; packed ones by way of a copy that lives while one parameter is loaded.
void ServingModel::load_weights(const ModelSource& source, const KernelContext& context) {
  std::vector<std::byte> staging;
  std::vector<const PackedLinearAttributes*> packed_as(plan_.stage.parameters.size(), nullptr);
  for (const Op& op : plan_.stage.block(Phase::kForward).ops)
    if (op.kind == OpKind::kLinearPacked || op.kind == OpKind::kEmbeddingPacked)
      packed_as[static_cast<size_t>(plan_.stage.value(op.inputs[1]).index)] = &std::get<PackedLinearAttributes>(op.attributes);
  for (size_t i = 0; i < plan_.stage.parameters.size(); ++i) {
    const ParameterSpec& spec = plan_.stage.parameters[i];
    const int64_t plain = plan_.memory.parameter_offset[i], packed = plan_.memory.packed_offset[i];
    if (packed_as[i] != nullptr && !packed_as[i]->segments.empty()) {
      ORRERY_CHECK(plain < 0, "{} is read both quantized and plain", spec.name);
      load_quantized(source, spec, packed_as[i]->segments, arena_.data() + packed);
      continue;
    }
    std::byte* data = plain >= 0 ? arena_.data() + plain : nullptr;
    if (data == nullptr) {
      staging.resize(static_cast<size_t>(spec.num_elements() * dtype_bytes(plan_.stage.compute_dtype)));
      data = staging.data();
    }
    const PhysicalTensor tensor{&spec, data, plan_.stage.compute_dtype};
    load_model(source, std::span(&tensor, 1));
    if (packed < 0) continue;
    TensorView weight;
    weight.data = data;
    weight.dtype = plan_.stage.compute_dtype;
    weight.num_dims = 2;
    weight.dims = {spec.rows(), spec.columns(), 0, 0};
    weight.row_stride = spec.columns();
    pack_weight(context, weight, arena_.data() + packed);
  }
}

void ServingModel::forward(int64_t num_tokens, int64_t num_sequences, int64_t num_rows) {
  binding_.num_tokens = num_tokens;
  binding_.num_segments = num_sequences;
  binding_.num_rows = num_rows;
  executor_.run(Phase::kForward, binding_);
}

std::span<const float> ServingModel::logits(int64_t row) const {
  ORRERY_CHECK(row >= 0 && row < binding_.num_rows, "logits of row {} of {}", row, binding_.num_rows);
  const int64_t width = plan_.options.model.vocab_size;
  return {field<const float>(BatchField::kLogits) + row * width, static_cast<size_t>(width)};
}

void ServingModel::hidden(int64_t row, std::span<float> out) const {
  const TensorView view = executor_.view(hidden_, binding_);
  ORRERY_CHECK(row >= 0 && row < view.rows() && static_cast<int64_t>(out.size()) == view.row_width(), "hidden state of row {}", row);
  if (view.dtype == DType::kF32) {
    std::memcpy(out.data(), view.as<float>() + row * view.row_stride, out.size() * sizeof(float));
    return;
  }
  const auto* data = view.as<uint16_t>() + row * view.row_stride;
  for (size_t i = 0; i < out.size(); ++i) out[i] = bf16_to_f32(data[i]);
}

int64_t kv_block_bytes(const ModelSource& source, const ServingModelOptions& options) {
  ServingModelOptions one = options;
  one.max_tokens = one.max_sequences = one.max_rows = one.kv_blocks = 1;
  return plan_for(source, one, DeviceSpec{}).memory.class_bytes[static_cast<size_t>(MemoryClass::kKvCache)];
}

}  // namespace orrery
