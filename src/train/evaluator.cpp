#include "train/evaluator.h"

#include <algorithm>

#include "base/error.h"
#include "model/decoder.h"
#include "parallel/fusion.h"
#include "runtime/initialize.h"

namespace orrery {
namespace {

Stage eval_stage(const ModelConfig& model, const EvaluatorOptions& options) {
  Stage stage;
  stage.compute_dtype = options.compute_dtype;
  ForwardOptions forward;
  forward.max_tokens = options.micro_batch_size * options.sequence_tokens;
  forward.max_segments = options.micro_batch_size * options.segments_per_sequence;
  build_forward(model, forward, stage, Phase::kEval);
  fuse_forward(stage, Phase::kEval);
  remove_copies(stage);
  return stage;
}

MemoryMap eval_memory(const Stage& stage, const EvaluatorOptions& options, const EngineOptions& engine) {
  MemoryMapOptions memory;
  memory.batch_copies = 1;
  memory.batch_sequences = options.micro_batch_size;
  memory.sequence_tokens = options.sequence_tokens;
  return build_memory_map(stage, Schedule{}, memory, workspace_traits(engine, options.sequence_tokens));
}

}  // namespace

Evaluator::Evaluator(const ModelSource& source, const EvaluatorOptions& options)
    : options_(options),
      engine_(default_engine_options(options.num_threads)),
      stage_(eval_stage(source.config(), options)),
      memory_(eval_memory(stage_, options, engine_)),
      pool_(engine_.num_threads),
      arena_(std::make_unique<Arena>(memory_.total_bytes)),
      executor_(std::make_unique<Executor>(stage_, memory_, *arena_, KernelContext{&pool_, engine_.isa, engine_.arithmetic, engine_.native_arithmetic},
                                           options.sequence_tokens)) {
  set_floating_point_mode();
  std::vector<PhysicalTensor> tensors;
  for (size_t i = 0; i < stage_.parameters.size(); ++i)
    tensors.push_back({&stage_.parameters[i], arena_->data() + memory_.parameter_offset[i], stage_.compute_dtype});
  load_model(source, tensors);
  for (size_t i = 0; i < stage_.constants.size(); ++i)
    fill_rope_table(stage_.constants[i], reinterpret_cast<float*>(arena_->data() + memory_.constant_offset[i]));
}

template <typename T>
T* Evaluator::field(BatchField name) const {
  return reinterpret_cast<T*>(arena_->data() + memory_.batch_offset[static_cast<size_t>(name)]);
}

Evaluator::Loss Evaluator::evaluate(const Dataset& dataset, const std::function<void(int64_t, int64_t)>& progress) {
  Loss total;
  const auto num_samples = static_cast<int64_t>(dataset.num_samples());
  const int64_t tokens = options_.sequence_tokens;
  for (int64_t first = 0; first < num_samples; first += options_.micro_batch_size) {
    const int64_t count = std::min(options_.micro_batch_size, num_samples - first);
    int32_t* cu_seqlens = field<int32_t>(BatchField::kCuSeqlens);
    int64_t num_segments = 0;
    for (int64_t i = 0; i < count; ++i) {
      const SampleBuffers row{field<int32_t>(BatchField::kIds) + i * tokens, field<int32_t>(BatchField::kTargets) + i * tokens,
                              field<int32_t>(BatchField::kPositions) + i * tokens};
      num_segments += dataset.fill_sample(static_cast<uint64_t>(first + i), row, static_cast<int32_t>(i * tokens), cu_seqlens + num_segments);
    }
    cu_seqlens[num_segments] = static_cast<int32_t>(count * tokens);
    ActionBinding binding;
    binding.num_tokens = count * tokens;
    binding.num_segments = num_segments;
    binding.fold = {count, tokens, nullptr, false};
    executor_->run(Phase::kEval, binding);
    for (int64_t i = 0; i < count * tokens; ++i) {
      if (field<int32_t>(BatchField::kTargets)[i] < 0) continue;
      total.sum += static_cast<double>(field<float>(BatchField::kTokenLoss)[i]);
      ++total.num_tokens;
    }
    if (progress) progress(first + count, num_samples);
  }
  return total;
}

double Evaluator::log_likelihood(std::span<const int32_t> context, std::span<const int32_t> continuation) {
  ORRERY_CHECK(!context.empty() && !continuation.empty(), "a likelihood needs a context and a continuation");
  std::vector<int32_t> ids(context.begin(), context.end());
  ids.insert(ids.end(), continuation.begin(), continuation.end());
  // Inputs are all tokens but the last; what does not fit goes from the front, as far as one context token remains.
  const auto window = static_cast<size_t>(options_.sequence_tokens);
  if (continuation.size() > window)
    throw Error(ErrorCode::kInvalidArgument, "a choice of {} tokens does not fit into the window of {}", continuation.size(), window);
  if (ids.size() - 1 > window) ids.erase(ids.begin(), ids.end() - static_cast<int64_t>(window) - 1);
  const size_t inputs = ids.size() - 1, first_scored = inputs - continuation.size();
  for (size_t i = 0; i < window; ++i) {
    field<int32_t>(BatchField::kIds)[i] = i < inputs ? ids[i] : 0;
    field<int32_t>(BatchField::kTargets)[i] = i >= first_scored && i < inputs ? ids[i + 1] : -1;
    field<int32_t>(BatchField::kPositions)[i] = static_cast<int32_t>(i);
  }
  field<int32_t>(BatchField::kCuSeqlens)[0] = 0;
  field<int32_t>(BatchField::kCuSeqlens)[1] = static_cast<int32_t>(window);
  ActionBinding binding;
  binding.num_tokens = options_.sequence_tokens;
  binding.num_segments = 1;
  binding.fold = {1, options_.sequence_tokens, nullptr, false};
  executor_->run(Phase::kEval, binding);
  double sum = 0;
  for (size_t i = first_scored; i < inputs; ++i) sum -= static_cast<double>(field<float>(BatchField::kTokenLoss)[i]);
  return sum;
}

}  // namespace orrery
