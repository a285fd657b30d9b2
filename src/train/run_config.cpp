#include "train/run_config.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/units.h"

namespace orrery {
namespace {

constexpr double kLargest = 1e15;  // no count of a run is larger, and products of two stay far from overflow as doubles
constexpr double kTiny = 1e-9;     // of what has to be more than nothing
constexpr double kLargestBatch = 1 << 24;
constexpr double kMaxModelRanks = 1 << 14, kMaxReplicas = 1 << 20;  // products of all four sizes stay whole numbers of 63 bits
constexpr double kDefaultCheckpointSeconds = 1800;
constexpr std::string_view kParallel = "parallel training";

KeyOptions at_least(double min, std::string_view unit, std::string_view help, std::string_view default_text = {},
                    std::vector<std::string_view> also_called = {}) {
  return {.help = help,
          .unit = unit,
          .min = min,
          .max = kLargest,
          .default_text = default_text,
          .also_called = std::move(also_called)};
}

KeyOptions up_to(double max, std::string_view unit, std::string_view help, std::string_view default_text = {}, std::vector<std::string_view> also_called = {}) {
  KeyOptions options = at_least(1, unit, help, default_text, std::move(also_called));
  options.max = max;
  return options;
}

KeyOptions needs(std::string_view feature, std::string_view help, std::vector<std::string_view> also_called = {}) {
  return {.help = help, .also_called = std::move(also_called), .requires_feature = feature};
}

void add_model_keys(TomlSchema<RunConfig>& schema) {
  using S = ModelSection;
  constexpr std::string_view kFamily = "by family", kOff = "by family";
  schema.section("model", &RunConfig::model)
      .key("family", &S::family,
           {.help = "the kind of decoder; not together with from",
            .default_text = "required without from",
            .also_called = {"model_type", "architecture", "arch"}})
      .key("from", &S::from,
           {.help = "start from this model's weights, configuration and tokenizer: a run, a checkpoint, a Hugging Face folder "
                    "or a .gguf",
            .default_text = "random weights",
            .also_called = {"base_model", "model_name_or_path", "pretrained", "path"}})
      .key("hidden_size", &S::hidden_size,
           at_least(1, "", "width of the residual stream", "required without from",
                    {"d_model", "n_embd", "dim", "embedding_length", "width"}))
      .key("num_layers", &S::num_layers,
           at_least(1, "", "decoder blocks", "required without from",
                    {"n_layer", "n_layers", "num_hidden_layers", "depth", "block_count"}))
      .key("num_heads", &S::num_heads,
           at_least(1, "", "query heads", "required without from", {"n_head", "n_heads", "num_attention_heads", "head_count"}))
      .key("num_kv_heads", &S::num_kv_heads,
           at_least(1, "", "key and value heads; divides num_heads", "num_heads",
                    {"n_kv_heads", "num_key_value_heads", "head_count_kv", "num_query_groups"}))
      .key("head_dim", &S::head_dim, at_least(1, "", "width of a head", "hidden_size / num_heads", {"d_head", "head_size"}))
      .key("intermediate_size", &S::intermediate_size,
           at_least(1, "", "width of the MLP", "4 hidden_size (gpt2), 8/3 hidden_size up to a multiple of 256 (llama)",
                    {"ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "feed_forward_length"}))
      .key("vocab_size", &S::vocab_size,
           at_least(1, "tokens", "rows of the embedding; with tokenizer = \"train:bpe\" the size to train", "the tokenizer's",
                    {"n_vocab", "vocabulary_size"}))
      .key("max_seq_len", &S::max_seq_len,
           at_least(1, "tokens", "longest sequence the model is built for", "required without from",
                    {"max_position_embeddings", "n_positions", "n_ctx", "context_length", "block_size"}))
      .key("rope_theta", &S::rope_theta,
           {.help = "base of the rotary frequencies",
            .min = 1,
            .max = kLargest,
            .default_text = "10000.0",
            .also_called = {"rope_freq_base", "rotary_base"}})
      .key("norm_eps", &S::norm_eps,
           {.help = "added to the variance in norms",
            .min = 0,
            .max = 1,
            .default_text = kFamily,
            .also_called = {"rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"}})
      .key("rope_scaling", &S::rope_scaling,
           {.help = "how rotary frequencies are stretched for longer sequences", .default_text = "none"})
      .key("rope_scaling_factor", &S::rope_scaling_factor,
           {.help = "the stretch of rope_scaling", .min = 1, .max = kLargest, .default_text = "1.0"})
      .key("rope_low_freq_factor", &S::rope_low_freq_factor,
           {.help = "llama3 scaling: wave lengths above original / this are stretched in full",
            .min = 0,
            .max = kLargest,
            .default_text = "1.0"})
      .key(
          "rope_high_freq_factor", &S::rope_high_freq_factor,
          {.help = "llama3 scaling: wave lengths below original / this stay", .min = 0, .max = kLargest, .default_text = "4.0"})
      .key("rope_original_max_seq_len", &S::rope_original_max_seq_len,
           at_least(1, "tokens", "llama3 scaling: the sequence length before stretching", "max_seq_len"))
      .key("tie_embeddings", &S::tie_embeddings,
           {.help = "the output head is the embedding", .default_text = kFamily, .also_called = {"tie_word_embeddings"}})
      .key("attention_bias", &S::attention_bias,
           {.help = "biases on q, k and v", .default_text = kOff, .also_called = {"qkv_bias"}})
      .key("attention_output_bias", &S::attention_output_bias,
           {.help = "a bias on the attention's output projection", .default_text = kOff})
      .key("mlp_bias", &S::mlp_bias, {.help = "biases in the MLP", .default_text = kOff})
      .key("qk_norm", &S::qk_norm, {.help = "RMSNorm on each query and key head (Qwen3)", .default_text = "false"})
      .key("sliding_window", &S::sliding_window,
           at_least(0, "tokens", "keys a token sees, itself included; 0 for all", "0", {"window", "window_size"}))
      .key("num_experts", &S::num_experts,
           at_least(2, "", "experts of a layer, for plan --cluster and simulate; no training yet", "none",
                    {"num_local_experts", "n_routed_experts", "num_moe_experts"}))
      .key("num_experts_per_tok", &S::num_experts_per_tok,
           at_least(1, "", "experts that a token goes to", "required with num_experts", {"top_k", "moe_router_topk", "num_experts_per_token"}))
      .key("moe_intermediate_size", &S::moe_intermediate_size,
           at_least(1, "", "width of an expert", "intermediate_size", {"moe_ffn_hidden_size", "expert_ffn"}))
      .key("shared_expert_intermediate_size", &S::shared_expert_intermediate_size,
           at_least(0, "", "width of what every token goes through beside its experts", "0", {"moe_shared_expert_intermediate_size"}))
      .key("first_k_dense_replace", &S::first_k_dense_replace,
           at_least(0, "layers", "first layers without experts", "0"));
}

void add_data_keys(TomlSchema<RunConfig>& schema) {
  using S = DataSection;
  schema.section("data", &RunConfig::data)
      .key("train", &S::train,
           {.help = "training text: globs, files, shard folders, or {path, weight} for a mixture",
            .default_text = "required",
            .also_called = {"path", "paths", "dataset", "datasets", "train_data"}})
      .key("validation", &S::validation,
           {.help = "held-out text, written as in train",
            .default_text = "none",
            .also_called = {"valid", "val", "eval", "test", "val_data"}})
      .key("val_fraction", &S::val_fraction,
           {.help = "share of the documents of train that is held out when there is no validation",
            .min = 0,
            .max = 0.9,
            .also_called = {"val_split", "validation_split", "test_size", "val_set_size"}})
      .key("tokenizer", &S::tokenizer,
           {.help = "a folder or file with a tokenizer, or \"train:bpe\" to train one of model.vocab_size tokens",
            .default_text = "the tokenizer of model.from, or of the shards"})
      .key("seq_len", &S::seq_len,
           at_least(2, "tokens", "length of a packed training sequence", "model.max_seq_len",
                    {"sequence_length", "max_length", "seq_length", "sequence_len"}));
}

void add_train_keys(TomlSchema<RunConfig>& schema) {
  using S = TrainSection;
  schema.section("train", &RunConfig::train)
      .key("steps", &S::steps,
           at_least(1, "optimizer steps", "length of the run; or give tokens", "required, or tokens",
                    {"max_steps", "num_steps", "iterations", "max_iters", "train_iters"}))
      .key("tokens", &S::tokens,
           at_least(1, "tokens", "length of the run in tokens, rounded up to a step; or give steps", "required, or steps",
                    {"num_tokens", "max_tokens", "train_tokens"}))
      .key("global_batch_size", &S::global_batch_size,
           {.help = "sequences in one optimizer step",
            .unit = "sequences",
            .min = 1,
            .max = kLargestBatch,
            .default_text = "required",
            .also_called = {"batch_size", "train_batch_size", "global_batch"}})
      .key("micro_batch_size", &S::micro_batch_size,
           {.help = "sequences computed at a time; changes memory and speed, never a bit of the result",
            .unit = "sequences",
            .min = 1,
            .max = kLargestBatch,
            .auto_word = "auto",
            .also_called = {"per_device_train_batch_size", "local_batch_size"}})
      .key("lanes", &S::lanes,
           {.help = "parts of the global batch whose gradient sums meet in a fixed tree; a power of two that divides "
                    "global_batch_size; bounds the data-parallel degree",
            .min = 1,
            .max = 65536})
      .key("dtype", &S::dtype,
           {.help = "number format of weights and activations in compute; sums, master weights and moments are f32",
            .also_called = {"precision", "mixed_precision", "torch_dtype"}})
      .key("arithmetic", &S::arithmetic,
           {.help = "order of the products in a bf16 dot product; auto takes the processor's own, another one is emulated bit "
                    "for bit",
            .auto_word = "auto"})
      .key("seed", &S::seed, {.help = "seed of everything random", .min = 0, .max = 9e15, .also_called = {"random_seed"}})
      .key("recompute", &S::recompute,
           {.help = "activations computed again in backward instead of kept; auto takes what frees most bytes for its time, as much as budget.memory asks for",
            .also_called = {"activation_checkpointing", "gradient_checkpointing", "activation_checkpoint"}})
      .key("eval_every", &S::eval_every,
           at_least(0, "steps", "validate every so many steps and at the end; 0 for the end only", {},
                    {"eval_steps", "eval_interval", "val_every", "val_check_interval"}))
      .key("log_every", &S::log_every,
           at_least(1, "steps", "report every so many steps", {}, {"logging_steps", "log_interval"}))
      .key("nonfinite", &S::nonfinite,
           {.help = "what to do when a gradient is not finite: skip the step and count it, or stop"})
      .key("gradient_delay", &S::gradient_delay,
           {.help = "1: gradients are taken at the weights of the step before and applied to the newest (PipeDream-2BW); schedule = \"2bw\" sets it",
            .min = 0,
            .max = 1});
}

void add_optimizer_keys(TomlSchema<RunConfig>& schema) {
  using S = OptimizerSection;
  schema.section("optimizer", &RunConfig::optimizer)
      .key("name", &S::name, {.help = "the update rule", .also_called = {"type", "optimizer", "optim"}})
      .key("lr", &S::lr,
           {.help = "peak learning rate",
            .min = 0,
            .max = 1000,
            .default_text = "required",
            .also_called = {"learning_rate", "max_lr", "peak_lr"}})
      .key("schedule", &S::schedule,
           {.help = "the learning rate after warm-up: wsd holds it and decays linearly over the last fifth",
            .also_called = {"lr_scheduler", "lr_scheduler_type", "lr_schedule", "scheduler"}})
      .key("warmup_steps", &S::warmup_steps,
           at_least(0, "steps", "steps in which the learning rate rises linearly from 0", {},
                    {"warmup", "warmup_iters", "num_warmup_steps", "lr_warmup_steps"}))
      .key("min_lr_ratio", &S::min_lr_ratio,
           {.help = "the last learning rate as a share of lr", .min = 0, .max = 1, .also_called = {"min_lr", "lr_min"}})
      .key("beta1", &S::beta1,
           {.help = "decay of the first moment (adamw, lion)", .min = 0, .max = 1, .also_called = {"adam_beta1", "betas"}})
      .key("beta2", &S::beta2,
           {.help = "decay of the second moment (adamw), of the momentum (lion)",
            .min = 0,
            .max = 1,
            .also_called = {"adam_beta2"}})
      .key("eps", &S::eps,
           {.help = "added to the root of the second moment (adamw)",
            .min = 0,
            .max = 1,
            .also_called = {"adam_eps", "adam_epsilon", "epsilon"}})
      .key("momentum", &S::momentum, {.help = "momentum (sgd)", .min = 0, .max = 1})
      .key("weight_decay", &S::weight_decay,
           {.help = "decoupled decay of matrices; never of norms, biases and embeddings",
            .min = 0,
            .max = 1000,
            .also_called = {"wd", "decay"}})
      .key("clip", &S::clip,
           {.help = "largest norm of the gradient; 0 for no clipping",
            .min = 0,
            .max = kLargest,
            .also_called = {"grad_clip", "max_grad_norm", "clip_grad", "gradient_clipping", "gradient_clip_val"}})
      .key("state_dtype", &S::state_dtype, {.help = "number format of the moments"});
}

void add_parallel_keys(TomlSchema<RunConfig>& schema) {
  using S = ParallelSection;
  schema.section("parallel", &RunConfig::parallel)
      .key("layout", &S::layout,
           {.help = "auto: the plan chooses; manual: the sizes below; a size that is given wins over auto"})
      .key("data_parallel_size", &S::data_parallel_size,
           up_to(kMaxReplicas, "ranks", "ranks that hold different sequences; absent: those that the other sizes leave", "the rest",
                    {"dp", "data_parallel"}))
      .key("tensor_parallel_size", &S::tensor_parallel_size,
           up_to(kMaxModelRanks, "ranks", "ranks that share each matrix: heads, MLP columns and vocabulary", {}, {"tp", "tensor_parallel", "tensor_model_parallel_size"}))
      .key("pipeline_parallel_size", &S::pipeline_parallel_size,
           up_to(kMaxModelRanks, "ranks", "ranks that hold consecutive layers", "1", {"pp", "pipeline_parallel", "pipeline_model_parallel_size"}))
      .key("context_parallel_size", &S::context_parallel_size,
           up_to(kMaxModelRanks, "ranks", "ranks that share each sequence: each has two chunks of its tokens, an early and a late one", {}, {"cp", "context_parallel"}))
      .key("expert_parallel_size", &S::expert_parallel_size,
           needs(kParallel, "ranks that share the experts", {"ep", "expert_parallel"}))
      .key("zero_stage", &S::zero_stage,
           {.help = "what data-parallel ranks shard: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too",
            .min = 0,
            .max = 3,
            .also_called = {"zero", "fsdp"}})
      .key("hybrid_shard_size", &S::hybrid_shard_size,
           {.help = "with zero_stage 2 or 3: ranks of a group that has all shards, each group a replica of the others; 0: all ranks are one group",
            .unit = "ranks",
            .min = 0,
            .max = kLargestBatch,
            .also_called = {"hsdp"}})
      .key("reshard_after_forward", &S::reshard_after_forward,
           {.help = "with zero_stage 3: true: layers' weights take turns in few places, gathered for each forward and backward; false: they stay once gathered"})
      .key("prefetch", &S::prefetch, {.help = "with zero_stage 3: layers whose weights are gathered ahead of the one that computes", .unit = "layers", .min = 0, .max = 64, .also_called = {"prefetch_layers"}})
      .key("schedule", &S::schedule,
           {.help = "order of a pipeline's work: gpipe, 1f1b, interleaved, zb-h1, zb-v, dualpipe-v, 2bw (delayed gradients), or the path of a schedule file",
            .also_called = {"pipeline_schedule"}})
      .key("virtual_stages", &S::virtual_stages, up_to(kMaxModelRanks, "", "stages on each rank of schedule = \"interleaved\"", "1"))
      .key("microbatch_group_size_per_virtual_pipeline_stage", &S::microbatch_group_size_per_virtual_pipeline_stage,
           {.help = "with schedule = \"interleaved\": micro-batches that go through a stage one after the other before the rank's next stage has its turn, at least pipeline_parallel_size; more give messages more time and keep more activations; 0: pipeline_parallel_size",
            .unit = "micro-batches",
            .min = 0,
            .max = kLargestBatch,
            .also_called = {"microbatch_group_size_per_vp_stage", "micro_batch_group_size"}})
      .key("stage_layers", &S::stage_layers,
           {.help = "layers of each stage, such as [\"3\", \"5\"]; the first stage has the embedding too, the last the head", .default_text = "by cost"})
      .key("sequence_parallel", &S::sequence_parallel,
           {.help = "norms and residuals of each sequence's tokens are shared by the tensor-parallel ranks: less activation memory, the same bytes on the wire", .also_called = {"sp"}})
      .key("context_method", &S::context_method,
           {.help = "how attention crosses context-parallel ranks. ring: keys and values go round; ulysses: ranks exchange tokens for heads, which they must divide"})
      .key("offload", &S::offload,
           {.help = "what leaves the arena between uses, bits unchanged: \"optimizer\": its state, which comes piece by piece for the update; \"parameters\", with it: the weights, layer by layer; \"activations\": each layer's, from its forward to its backward", .default_text = "nothing"})
      .key("offload_dir", &S::offload_dir,
           {.help = "where to: a folder on fast storage, for a file that is gone with the process, or \"numa:N\" for the memory of node N", .default_text = "checkpoint.dir"})
      .key("reduction", &S::reduction, {.help = "reproducible: gradients are summed in the lane tree; fast: around a ring, with bits that depend on the number of data-parallel ranks"})
      .key("timeout_seconds", &S::timeout_seconds,
           {.help = "how long a rank that is a process waits for another inside a step before the run ends with a report of who is late",
            .unit = "seconds",
            .number = KeyUnit::kSeconds,
            .min = 1,
            .max = kLargestBatch});
}

void add_other_keys(TomlSchema<RunConfig>& schema) {
  using C = CheckpointSection;
  schema.section("checkpoint", &RunConfig::checkpoint)
      .key("dir", &C::dir,
           {.help = "the run's folder: checkpoints, metrics, resolved run.toml; {name} is the name of the run file",
            .also_called = {"output_dir", "out_dir", "save_dir", "path", "save"}})
      .key("every_steps", &C::every_steps,
           at_least(1, "steps", "save every so many steps; or give every_seconds", "every_seconds = 1800",
                    {"save_steps", "save_interval", "interval", "save_every"}))
      .key("every_seconds", &C::every_seconds,
           {.help = "save after so much time; or give every_steps",
            .unit = "seconds",
            .number = KeyUnit::kSeconds,
            .min = 1,
            .max = kLargest,
            .default_text = "1800 without every_steps"})
      .key("keep", &C::keep,
           at_least(1, "checkpoints", "how many of the newest stay on disk", {},
                    {"save_total_limit", "keep_latest_k", "keep_last"}));
  using B = BudgetSection;
  schema.section("budget", &RunConfig::budget)
      .key("memory", &B::memory,
           {.help = "what a rank may allocate: bytes, or a share of what this process may use",
            .also_called = {"max_memory", "memory_limit"}})
      .key("hours", &B::hours,
           {.help = "longest that the run may take, by the plan; what is predicted to take longer is not started",
            .unit = "hours",
            .min = kTiny,
            .max = kLargest,
            .default_text = "no limit",
            .also_called = {"max_hours", "time_limit", "deadline"}})
      .key("price_per_hour", &B::price_per_hour,
           {.help = "what this machine costs an hour, in the money of your choice: the plan says what the run will cost",
            .min = kTiny,
            .max = kLargest,
            .default_text = "not known"})
      .key("energy", &B::energy,
           {.help = "most energy that the run may take, by the plan; needs a machine that counts its energy (orrery probe), or a described cluster",
            .unit = "kWh",
            .min = kTiny,
            .max = kLargest,
            .default_text = "no limit",
            .also_called = {"kwh"}});
}

TomlSchema<RunConfig> make_schema() {
  TomlSchema<RunConfig> schema;
  add_model_keys(schema);
  add_data_keys(schema);
  add_train_keys(schema);
  add_optimizer_keys(schema);
  add_parallel_keys(schema);
  add_other_keys(schema);
  return schema;
}

void check_model(const ModelSection& model, const ConfigText& text) {
  if (model.from && model.family) {
    text.fail("model.family", "`model.family` and `model.from` exclude each other", "the model of `from` has a family");
  }
  if (!model.from && !model.family)
    text.fail("model", "`model.family` is missing", "give model.family for a new model, or model.from to go on from one");
  if (!model.from) {
    const auto require = [&](const char* name, const std::optional<int64_t>& value) {
      if (!value)
        text.fail("model.family", fmt::format("a new model needs `model.{}`", name),
                  fmt::format("add {} = ... to [model]; see: orrery examples", name));
    };
    require("hidden_size", model.hidden_size);
    require("num_layers", model.num_layers);
    require("num_heads", model.num_heads);
    require("max_seq_len", model.max_seq_len);
  }
  if (model.hidden_size && model.num_heads && !model.head_dim && *model.hidden_size % *model.num_heads != 0) {
    text.fail("model.num_heads",
              fmt::format("num_heads = {} does not divide hidden_size = {}", *model.num_heads, *model.hidden_size),
              "choose a divisor, or give head_dim");
  }
  if (!model.num_experts) {
    const auto needs_experts = [&](const char* key, bool given) {
      if (given) text.fail(key, fmt::format("`{}` is given without `model.num_experts`", key), "add num_experts = ... to [model], or leave it out");
    };
    needs_experts("model.num_experts_per_tok", model.num_experts_per_tok.has_value());
    needs_experts("model.moe_intermediate_size", model.moe_intermediate_size.has_value());
    needs_experts("model.shared_expert_intermediate_size", model.shared_expert_intermediate_size.has_value());
    needs_experts("model.first_k_dense_replace", model.first_k_dense_replace.has_value());
  } else if (!model.num_experts_per_tok) {
    text.fail("model.num_experts", fmt::format("num_experts = {} needs `model.num_experts_per_tok`", *model.num_experts), "how many of them a token goes to");
  } else if (*model.num_experts_per_tok > *model.num_experts) {
    text.fail("model.num_experts_per_tok", fmt::format("num_experts_per_tok = {} is above num_experts = {}", *model.num_experts_per_tok, *model.num_experts),
              "a token goes to some of the experts");
  }
  if (model.first_k_dense_replace && model.num_layers && *model.first_k_dense_replace >= *model.num_layers)
    text.fail("model.first_k_dense_replace", fmt::format("first_k_dense_replace = {} leaves none of num_layers = {} with experts", *model.first_k_dense_replace, *model.num_layers),
              "leave out num_experts for a model without");
  if (model.num_heads && model.num_kv_heads && *model.num_heads % *model.num_kv_heads != 0) {
    text.fail("model.num_kv_heads",
              fmt::format("num_kv_heads = {} does not divide num_heads = {}", *model.num_kv_heads, *model.num_heads),
              "choose a divisor");
  }
}

void check_data(const RunConfig& config, const ConfigText& text) {
  const DataSection& data = config.data;
  if (data.train.empty()) text.fail("data.train", "`data.train` names no text", "for instance train = [\"corpus/*.txt\"]");
  if (!data.validation.empty() && data.val_fraction > 0) {
    text.fail("data.val_fraction", "`data.val_fraction` and `data.validation` exclude each other", "keep one");
  }
  if (config.train.eval_every > 0 && data.validation.empty() && data.val_fraction == 0) {
    text.fail("train.eval_every", "`train.eval_every` needs validation data",
              "give data.val_fraction (for instance 0.05) or data.validation");
  }
  const bool trains_tokenizer = data.tokenizer && data.tokenizer->starts_with("train:");
  if (trains_tokenizer && *data.tokenizer != "train:bpe")
    text.fail("data.tokenizer", fmt::format("no tokenizer can be made by \"{}\"", *data.tokenizer),
              "did you mean \"train:bpe\"?");
  if (trains_tokenizer && config.model.from)
    text.fail("data.tokenizer", "a new tokenizer does not fit the weights of `model.from`", "leave it out");
  if (trains_tokenizer && !config.model.vocab_size)
    text.fail("data.tokenizer", "training a tokenizer needs `model.vocab_size`", "for instance vocab_size = 4096");
  if (data.seq_len && config.model.max_seq_len && *data.seq_len > *config.model.max_seq_len) {
    text.fail("data.seq_len",
              fmt::format("seq_len = {} is longer than model.max_seq_len = {}", *data.seq_len, *config.model.max_seq_len),
              "shorten it, or build the model for more");
  }
}

void check_train(const RunConfig& config, const ConfigText& text) {
  const TrainSection& train = config.train;
  if (train.steps && train.tokens) text.fail("train.tokens", "`train.steps` and `train.tokens` exclude each other", "keep one");
  if (!train.steps && !train.tokens) text.fail("train", "the length of the run is missing", "give train.steps or train.tokens");
  if (train.global_batch_size == 0)
    text.fail("train", "`train.global_batch_size` is missing", "sequences in one optimizer step, for instance 8");
  if ((train.lanes & (train.lanes - 1)) != 0)
    text.fail("train.lanes", fmt::format("lanes = {} is not a power of two", train.lanes), "use 1, 2, 4, 8, ...");
  if (const int64_t rest = train.global_batch_size % train.lanes; rest != 0) {
    const int64_t below = train.global_batch_size - rest;
    text.fail("train.global_batch_size",
              fmt::format("global_batch_size = {} is not a multiple of train.lanes = {}", train.global_batch_size, train.lanes),
              below == 0 ? fmt::format("use {}, or fewer lanes", train.lanes)
                         : fmt::format("use {} or {}, or fewer lanes", below, below + train.lanes));
  }
  if (train.micro_batch_size && *train.micro_batch_size > train.global_batch_size) {
    text.fail("train.micro_batch_size",
              fmt::format("micro_batch_size = {} is larger than global_batch_size = {}", *train.micro_batch_size,
                          train.global_batch_size),
              "lower it, or \"auto\"");
  }
  const OptimizerSection& optimizer = config.optimizer;
  if (optimizer.lr == 0 && !text.given("optimizer.lr"))
    text.fail("optimizer", "`optimizer.lr` is missing", "the peak learning rate, for instance 1e-3");
  if (train.steps && optimizer.warmup_steps > *train.steps) {
    text.fail("optimizer.warmup_steps",
              fmt::format("warmup_steps = {} is longer than the run of {} steps", optimizer.warmup_steps, *train.steps),
              "shorten it");
  }
  // At 1 the moments never move, and the bias correction divides by 0.
  if (optimizer.beta1 == 1) text.fail("optimizer.beta1", "`optimizer.beta1` is 1", "a decay is below 1");
  if (optimizer.beta2 == 1) text.fail("optimizer.beta2", "`optimizer.beta2` is 1", "a decay is below 1");
  if (config.checkpoint.every_steps && config.checkpoint.every_seconds) {
    text.fail("checkpoint.every_seconds", "`checkpoint.every_steps` and `checkpoint.every_seconds` exclude each other",
              "keep one");
  }
}

void check_parallel(const RunConfig& config, const ConfigText& text) {
  const ParallelSection& parallel = config.parallel;
  if (parallel.schedule == "2bw" && text.given("train.gradient_delay") && config.train.gradient_delay == 0)
    text.fail("train.gradient_delay", "`train.gradient_delay` is 0 and `parallel.schedule` is \"2bw\", whose gradients are a step late", "leave one of them out");
  for (const std::string& what : parallel.offload) {
    if (what != "optimizer" && what != "activations" && what != "parameters")
      text.fail("parallel.offload", fmt::format("\"{}\" is nothing that can be offloaded", what), "wanted: optimizer, activations, parameters");
  }
}

void fill_defaults(RunConfig& config, const std::string& file) {
  if (config.parallel.schedule == "2bw") config.train.gradient_delay = 1;
  CheckpointSection& checkpoint = config.checkpoint;
  if (!checkpoint.every_steps && !checkpoint.every_seconds) checkpoint.every_seconds = kDefaultCheckpointSeconds;
  const std::string name = std::filesystem::path(file).stem().string();
  if (const size_t at = checkpoint.dir.find("{name}"); at != std::string::npos)
    checkpoint.dir.replace(at, 6, name.empty() ? "run" : name);
}

}  // namespace

#define ORRERY_CONFIG_NAMES(type, ...)                          \
  std::span<const std::string_view> config_names(type) {        \
    static constexpr std::string_view kNames[] = {__VA_ARGS__}; \
    return kNames;                                              \
  }
ORRERY_CONFIG_NAMES(ModelFamily, "gpt2", "llama")
ORRERY_CONFIG_NAMES(RopeScalingKind, "none", "linear", "llama3")
ORRERY_CONFIG_NAMES(Arithmetic, "amx32", "dp2", "fma1")
ORRERY_CONFIG_NAMES(ComputeDType, "bf16", "f32", "fp16", "fp8")
ORRERY_CONFIG_NAMES(RecomputeMode, "auto", "none", "selective", "full")
ORRERY_CONFIG_NAMES(NonfiniteAction, "skip", "stop")
ORRERY_CONFIG_NAMES(OptimizerName, "adamw", "sgd", "lion")
ORRERY_CONFIG_NAMES(LrScheduleName, "constant", "cosine", "linear", "wsd")
ORRERY_CONFIG_NAMES(StateDType, "f32", "bf16")
ORRERY_CONFIG_NAMES(LayoutMode, "auto", "manual")
ORRERY_CONFIG_NAMES(ContextMethod, "ring", "ulysses")
ORRERY_CONFIG_NAMES(ReductionMode, "reproducible", "fast")
#undef ORRERY_CONFIG_NAMES

const TomlSchema<RunConfig>& run_schema() {
  static const TomlSchema<RunConfig> schema = make_schema();
  return schema;
}

RunConfig parse_run_config(std::string_view toml_text, const std::string& file, std::span<const std::string> overrides) {
  RunConfig config;
  const ConfigText text = run_schema().read(config, toml_text, file, overrides);
  check_model(config.model, text);
  check_data(config, text);
  check_train(config, text);
  check_parallel(config, text);
  fill_defaults(config, file);
  return config;
}

RunConfig load_run_config(const std::string& path, std::span<const std::string> overrides) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file || file.bad() || std::filesystem::is_directory(path)) {
    throw Error(errno == ENOENT || errno == ENOTDIR ? ErrorCode::kCorruptData : ErrorCode::kInvalidArgument,
                "cannot read the run file {}: {}; to start from one: orrery examples llama-11m > run.toml", path,
                std::filesystem::is_directory(path) ? "it is a folder" : std::strerror(errno != 0 ? errno : EIO));
  }
  return parse_run_config(text.str(), path, overrides);
}

std::string run_config_to_toml(const RunConfig& config) { return run_schema().write(config); }

void apply_model_keys(const ModelSection& keys, ModelConfig& config) {
  const auto apply = [](const auto& key, auto& member) {
    if (key) member = *key;
  };
  apply(keys.family, config.family);
  apply(keys.hidden_size, config.hidden_size);
  apply(keys.num_layers, config.num_layers);
  apply(keys.num_heads, config.num_heads);
  apply(keys.num_kv_heads, config.num_kv_heads);
  apply(keys.head_dim, config.head_dim);
  apply(keys.intermediate_size, config.intermediate_size);
  apply(keys.vocab_size, config.vocab_size);
  apply(keys.max_seq_len, config.max_seq_len);
  apply(keys.rope_theta, config.rope_theta);
  apply(keys.norm_eps, config.norm_eps);
  apply(keys.rope_scaling, config.rope_scaling.kind);
  apply(keys.rope_scaling_factor, config.rope_scaling.factor);
  apply(keys.rope_low_freq_factor, config.rope_scaling.low_freq_factor);
  apply(keys.rope_high_freq_factor, config.rope_scaling.high_freq_factor);
  apply(keys.rope_original_max_seq_len, config.rope_scaling.original_max_seq_len);
  apply(keys.tie_embeddings, config.tie_embeddings);
  apply(keys.attention_bias, config.attention_bias);
  apply(keys.attention_output_bias, config.attention_output_bias);
  apply(keys.mlp_bias, config.mlp_bias);
  apply(keys.qk_norm, config.qk_norm);
  apply(keys.sliding_window, config.sliding_window);
}

int64_t num_train_steps(const RunConfig& config, int64_t seq_len) {
  ORRERY_CHECK(seq_len > 0 && config.train.global_batch_size > 0);
  if (config.train.steps) return *config.train.steps;
  const int64_t tokens_per_step = config.train.global_batch_size * seq_len;
  return (*config.train.tokens + tokens_per_step - 1) / tokens_per_step;
}

}  // namespace orrery
