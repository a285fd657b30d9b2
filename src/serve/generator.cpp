#include "serve/generator.h"

#include <algorithm>
#include <numeric>

#include "backend/cpu/gemm_kernels.h"
#include "base/error.h"
#include "runtime/initialize.h"
#include "runtime/machine_facts.h"

namespace orrery {

struct Generator::Machine {
  DeviceSpec device;

  explicit Machine(int num_threads) {
    const CpuFeatures& features = cpu_features();
    device.isa = features.best_isa();
    device.arithmetic = native_arithmetic(features);
    device.num_threads = num_threads > 0 ? num_threads : usable_cores();
  }
};

namespace {

ServingPlan plan_for(const ModelSource& source, const GeneratorOptions& options, const DeviceSpec& device) {
  ServingPlanOptions serving;
  serving.model = source.config();
  serving.compute_dtype = options.compute_dtype;
  serving.max_context = options.max_context;
  return make_serving_plan(serving, [device](const Stage& stage, const Op& op) { return op_workspace_bytes(device, stage, op, 0); }, packed_weight_bytes);
}

}  // namespace

Generator::Generator(const ModelSource& source, const GeneratorOptions& options) : Generator(source, options, Machine(options.num_threads)) {}

Generator::Generator(const ModelSource& source, const GeneratorOptions& options, const Machine& machine)
    : plan_(plan_for(source, options, machine.device)),
      pool_(machine.device.num_threads),
      arena_(plan_.memory.total_bytes),
      executor_(plan_.stage, plan_.memory, arena_, {&pool_, machine.device.isa, machine.device.arithmetic, true}, 0) {
  set_floating_point_mode();
  load_weights(source, {&pool_, machine.device.isa, machine.device.arithmetic, true});
  for (size_t i = 0; i < plan_.stage.constants.size(); ++i)
    fill_rope_table(plan_.stage.constants[i], reinterpret_cast<float*>(arena_.data() + plan_.memory.constant_offset[i]));
  // One sequence owns every block, in order.
  int32_t* blocks = field<int32_t>(BatchField::kBlockTable);
  std::iota(blocks, blocks + plan_.blocks_per_sequence, 0);
}

// Plain weights go to their place; packed ones by way of a copy that lives while one parameter is loaded.
void Generator::load_weights(const ModelSource& source, const KernelContext& context) {
  std::vector<std::byte> staging;
  for (size_t i = 0; i < plan_.stage.parameters.size(); ++i) {
    const ParameterSpec& spec = plan_.stage.parameters[i];
    const int64_t plain = plan_.memory.parameter_offset[i], packed = plan_.memory.packed_offset[i];
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

template <typename T>
T* Generator::field(BatchField name) const {
  return reinterpret_cast<T*>(arena_.data() + plan_.memory.batch_offset[static_cast<size_t>(name)]);
}

std::span<const float> Generator::append(std::span<const int32_t> tokens) {
  ORRERY_CHECK(!tokens.empty(), "append of no tokens");
  if (length_ + static_cast<int64_t>(tokens.size()) > max_context())
    throw Error(ErrorCode::kInvalidArgument, "{} tokens do not fit into the context of {}", length_ + static_cast<int64_t>(tokens.size()), max_context());
  const auto chunk = static_cast<size_t>(plan_.options.max_tokens);
  for (size_t first = 0; first < tokens.size(); first += chunk) forward(tokens.subspan(first, std::min(chunk, tokens.size() - first)));
  return {field<const float>(BatchField::kLogits), static_cast<size_t>(plan_.options.model.vocab_size)};
}

void Generator::forward(std::span<const int32_t> tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  std::copy(tokens.begin(), tokens.end(), field<int32_t>(BatchField::kIds));
  // gpt2's positions index a table; every family's cache slots follow the position, because the blocks are in order.
  std::iota(field<int32_t>(BatchField::kPositions), field<int32_t>(BatchField::kPositions) + count, static_cast<int32_t>(length_));
  std::iota(field<int32_t>(BatchField::kSlots), field<int32_t>(BatchField::kSlots) + count, static_cast<int32_t>(length_));
  field<int32_t>(BatchField::kCuSeqlens)[0] = 0;
  field<int32_t>(BatchField::kCuSeqlens)[1] = static_cast<int32_t>(count);
  field<int32_t>(BatchField::kContextLens)[0] = static_cast<int32_t>(length_ + count);
  field<int32_t>(BatchField::kRows)[0] = static_cast<int32_t>(count - 1);
  ActionBinding binding;
  binding.num_tokens = count;
  binding.num_segments = 1;
  binding.num_rows = 1;
  executor_.run(Phase::kForward, binding);
  length_ += count;
}

}  // namespace orrery
