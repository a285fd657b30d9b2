// run.toml as one complete typed value: what a training run is. The table in run_config.cpp declares each key once;
// docs/run_toml.md, `orrery help KEY` and the JSON Schema come from it. Not here: what the values lead to (the planner and the
// trainer decide that).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/kernel.h"
#include "base/toml_schema.h"
#include "ir/parallel_context.h"
#include "model/model_config.h"

namespace orrery {

enum class ComputeDType : uint8_t { kBf16, kF32, kFp16, kFp8 };
enum class RecomputeMode : uint8_t { kAuto, kNone, kSelective, kFull };
enum class NonfiniteAction : uint8_t { kSkip, kStop };
enum class OptimizerName : uint8_t { kAdamW, kSgd, kLion };
enum class LrScheduleName : uint8_t { kConstant, kCosine, kLinear, kWsd };
enum class StateDType : uint8_t { kF32, kBf16 };
enum class LayoutMode : uint8_t { kAuto, kManual };
enum class ReductionMode : uint8_t { kReproducible, kFast };

std::span<const std::string_view> config_names(ModelFamily);
std::span<const std::string_view> config_names(RopeScalingKind);
std::span<const std::string_view> config_names(Arithmetic);
std::span<const std::string_view> config_names(ComputeDType);
std::span<const std::string_view> config_names(RecomputeMode);
std::span<const std::string_view> config_names(NonfiniteAction);
std::span<const std::string_view> config_names(OptimizerName);
std::span<const std::string_view> config_names(LrScheduleName);
std::span<const std::string_view> config_names(StateDType);
std::span<const std::string_view> config_names(LayoutMode);
std::span<const std::string_view> config_names(ContextMethod);
std::span<const std::string_view> config_names(ReductionMode);

/// Every size is an override of what the family, or the model of `from`, says by itself.
struct ModelSection {
  std::optional<ModelFamily> family;
  std::optional<std::string> from;
  std::optional<int64_t> hidden_size, num_layers, num_heads, num_kv_heads, head_dim, intermediate_size, vocab_size, max_seq_len;
  std::optional<double> rope_theta, norm_eps;
  std::optional<RopeScalingKind> rope_scaling;
  std::optional<double> rope_scaling_factor, rope_low_freq_factor, rope_high_freq_factor;
  std::optional<int64_t> rope_original_max_seq_len;
  std::optional<bool> tie_embeddings, attention_bias, attention_output_bias, mlp_bias, qk_norm;
  std::optional<int64_t> sliding_window;
  // Mixtures of experts: for plans and simulations; training refuses them.
  std::optional<int64_t> num_experts, num_experts_per_tok, moe_intermediate_size, shared_expert_intermediate_size, first_k_dense_replace;
  bool operator==(const ModelSection&) const = default;
};

struct DataSection {
  std::vector<WeightedPath> train, validation;  // globs, files, shard folders
  double val_fraction = 0;
  std::optional<std::string> tokenizer;  // a folder or file, "train:bpe"; absent: the one of model.from
  std::optional<int64_t> seq_len;        // absent: the model's max_seq_len
  bool operator==(const DataSection&) const = default;
};

struct TrainSection {
  std::optional<int64_t> steps, tokens;     // exactly one is given
  int64_t global_batch_size = 0;            // sequences
  std::optional<int64_t> micro_batch_size;  // absent: "auto"
  int64_t lanes = 4;
  ComputeDType dtype = ComputeDType::kBf16;
  std::optional<Arithmetic> arithmetic;  // absent: "auto", the one this processor runs natively
  int64_t seed = 42;
  RecomputeMode recompute = RecomputeMode::kAuto;
  int64_t eval_every = 0, log_every = 1;  // steps; eval_every 0: at the end only, when there is validation data
  NonfiniteAction nonfinite = NonfiniteAction::kSkip;
  int64_t gradient_delay = 0;
  bool operator==(const TrainSection&) const = default;
};

struct OptimizerSection {
  OptimizerName name = OptimizerName::kAdamW;
  double lr = 0;
  LrScheduleName schedule = LrScheduleName::kCosine;
  int64_t warmup_steps = 0;
  double min_lr_ratio = 0.1;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, momentum = 0.9, weight_decay = 0.1;
  double clip = 1.0;  // largest norm of the mean gradient; 0: off
  StateDType state_dtype = StateDType::kF32;
  bool operator==(const OptimizerSection&) const = default;
};

struct ParallelSection {
  LayoutMode layout = LayoutMode::kAuto;
  std::optional<int64_t> data_parallel_size;  // absent: the ranks that the other sizes leave
  int64_t tensor_parallel_size = 1, pipeline_parallel_size = 1, context_parallel_size = 1, expert_parallel_size = 1;
  int64_t zero_stage = 0, hybrid_shard_size = 0;
  bool reshard_after_forward = true;
  int64_t prefetch = 1;
  std::string schedule = "1f1b";
  int64_t virtual_stages = 1;
  int64_t microbatch_group_size_per_virtual_pipeline_stage = 0;
  std::vector<std::string> stage_layers;
  bool sequence_parallel = false;
  ContextMethod context_method = ContextMethod::kRing;
  std::vector<std::string> offload;
  std::optional<std::string> offload_dir;
  ReductionMode reduction = ReductionMode::kReproducible;
  int64_t timeout_seconds = 300;
  bool operator==(const ParallelSection&) const = default;
};

struct CheckpointSection {
  std::string dir = "runs/{name}";
  std::optional<int64_t> every_steps;
  std::optional<double> every_seconds;  // neither given: 30 minutes
  int64_t keep = 2;
  bool operator==(const CheckpointSection&) const = default;
};

struct BudgetSection {
  ByteBudget memory{.fraction = 0.8, .bytes = 0, .is_default = true};
  std::optional<double> hours, price_per_hour, energy;  // energy in kWh
  bool operator==(const BudgetSection&) const = default;
};

struct RunConfig {
  ModelSection model;
  DataSection data;
  TrainSection train;
  OptimizerSection optimizer;
  ParallelSection parallel;
  CheckpointSection checkpoint;
  BudgetSection budget;
  bool operator==(const RunConfig&) const = default;
};

const TomlSchema<RunConfig>& run_schema();

/// The run that `toml_text` describes with `overrides` ("section.key=value") on top, checked against itself: what is missing,
/// what contradicts what. `file` names it in messages, and {name} in checkpoint.dir becomes its name without folder and suffix.
/// Errors: kInvalidConfig with file:line:col; kUnsupported for a value that this version cannot do.
RunConfig parse_run_config(std::string_view toml_text, const std::string& file, std::span<const std::string> overrides = {});

/// As parse_run_config, from a file. Errors: kInvalidArgument when it cannot be read.
RunConfig load_run_config(const std::string& path, std::span<const std::string> overrides = {});

/// The file to save with the run: parses to an equal value.
std::string run_config_to_toml(const RunConfig& config);

/// Puts the keys that are given over those of `config`.
void apply_model_keys(const ModelSection& keys, ModelConfig& config);

/// train.steps, or as many steps as train.tokens fill (the last one rounded up).
int64_t num_train_steps(const RunConfig& config, int64_t seq_len);

}  // namespace orrery
