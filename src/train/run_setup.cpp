#include "train/run_setup.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "checkpoint/digest.h"
#include "data/data_builder.h"
#include "data/input_stream.h"
#include "data/tokenizer_encoder.h"
#include "runtime/arena.h"

namespace orrery {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTrainBpe = "train:bpe";
constexpr int kNumericsVersion = 2;

std::string read_whole(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(ErrorCode::kIo, "cannot read {}", path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<DataEntry> data_entries(const std::vector<WeightedPath>& paths) {
  std::vector<DataEntry> entries;
  for (const WeightedPath& path : paths) entries.push_back({path.path, path.weight});
  return entries;
}

ModelConfig model_of(const ModelSection& section, const std::optional<ModelSource>& base) {
  ModelConfig model = base ? base->config() : default_model_config(section.family.value_or(ModelFamily::kLlama));
  apply_model_keys(section, model);
  return model;
}

// The folder's tokenizer when it was trained from the same request before, else a newly trained one. What it was trained for stands
// beside it, so that a changed vocabulary or corpus trains anew.
Tokenizer trained_tokenizer(const RunConfig& config, const fs::path& folder, const SetupNote& note) {
  std::vector<std::string> inputs;
  for (const WeightedPath& path : config.data.train) inputs.push_back(path.path);
  const int64_t vocab_size = config.model.vocab_size.value_or(0);
  if (vocab_size <= 0) throw Error(ErrorCode::kInvalidConfig, "data.tokenizer = \"train:bpe\" needs model.vocab_size, the number of tokens to learn (for instance 4096)");
  std::string request = fmt::format("train:bpe vocab_size={}\n", vocab_size);
  for (const InputFile& input : find_inputs(inputs)) request += fmt::format("{} {} bytes\n", input.path, input.file_bytes);
  const fs::path request_file = folder / "trained_from.txt";
  if (fs::exists(folder / "tokenizer.json") && fs::exists(request_file) && read_whole(request_file) == request) return load_tokenizer(folder.string());
  Tokenizer tokenizer = train_tokenizer({.inputs = inputs, .vocab_size = static_cast<int32_t>(vocab_size)});
  fs::create_directories(folder);
  fs::remove(request_file);
  save_tokenizer_json(tokenizer, folder.string());
  std::ofstream(request_file, std::ios::binary) << request;
  note(fmt::format("tokenizer   byte-level BPE, {} tokens learned from data.train", tokenizer.vocab_size()));
  return tokenizer;
}

Tokenizer resolve_tokenizer(const RunSetup& setup, const SetupNote& note) {
  const std::optional<std::string>& wanted = setup.config.data.tokenizer;
  if (!wanted && setup.base) return load_model_tokenizer(*setup.base);
  if (!wanted) throw Error(ErrorCode::kInvalidConfig, "data.tokenizer is missing: give a folder or file, or \"train:bpe\" to learn one from data.train");
  if (*wanted == kTrainBpe) return trained_tokenizer(setup.config, fs::path(setup.folder) / "tokenizer", note);
  return load_tokenizer(*wanted);
}

void resolve_steps(RunSetup& setup) {
  const TrainSection& train = setup.config.train;
  const int64_t tokens_per_step = train.global_batch_size * setup.plan_options.sequence_tokens;
  setup.num_steps = train.steps ? *train.steps : std::max<int64_t>(1, (*train.tokens + tokens_per_step - 1) / tokens_per_step);
}

void resolve_engine(RunSetup& setup, int num_threads) {
  setup.engine = default_engine_options(num_threads);
  setup.engine.offload_place = setup.config.parallel.offload_dir.value_or(setup.folder);
  const auto& wanted = setup.config.train.arithmetic;
  if (wanted && *wanted != setup.engine.arithmetic) {
    setup.engine.arithmetic = *wanted;
    // The id may still be native: an AMX processor also has vdpbf16ps.
    setup.engine.native_arithmetic = true;
  }
}

DType compute_dtype_of(ComputeDType dtype) {
  switch (dtype) {
    case ComputeDType::kBf16: return DType::kBF16;
    case ComputeDType::kF32: return DType::kF32;
    default: throw Error(ErrorCode::kUnsupported, "train.dtype: fp16 and fp8 need a device that computes in them; use bf16 or f32 on a CPU");
  }
}

// "3", "0": one count a stage.
std::vector<int64_t> stage_layers(const std::vector<std::string>& counts) {
  std::vector<int64_t> layers;
  for (const std::string& count : counts) {
    int64_t value = -1;
    const auto [end, error] = std::from_chars(count.data(), count.data() + count.size(), value);
    if (error != std::errc() || end != count.data() + count.size() || value < 0)
      throw Error(ErrorCode::kInvalidConfig, "parallel.stage_layers: \"{}\" is no number of layers; wanted one count for each stage, such as [\"3\", \"5\"]", count);
    layers.push_back(value);
  }
  return layers;
}

// A kind's name, or the path of a schedule file.
void set_schedule(PipelineParallel& pipeline, const std::string& name) {
  if (!fs::is_regular_file(name)) {
    pipeline.kind = parse_pipeline_kind(name);
    return;
  }
  pipeline.order = parse_pipeline_order(read_whole(name));
  if (static_cast<int64_t>(pipeline.order->steps.size()) != pipeline.size)
    throw Error(ErrorCode::kInvalidConfig, "schedule file {} has {} ranks, parallel.pipeline_parallel_size is {}; they must be equal", name, pipeline.order->steps.size(), pipeline.size);
}

// Ranks that the run file does not assign are data parallel.
void resolve_layout(RunSetup& setup, const RunResources& resources) {
  const ParallelSection& parallel = setup.config.parallel;
  PipelineParallel& pipeline = setup.plan_options.pipeline;
  pipeline.size = parallel.pipeline_parallel_size;
  pipeline.virtual_stages = parallel.virtual_stages;
  pipeline.micro_batch_group_size = parallel.microbatch_group_size_per_virtual_pipeline_stage;
  pipeline.stage_layers = stage_layers(parallel.stage_layers);
  if (pipeline.size > 1) set_schedule(pipeline, parallel.schedule);
  ParallelContext& tensor = setup.plan_options.parallel;
  tensor.tensor_size = parallel.tensor_parallel_size;
  tensor.context_size = parallel.context_parallel_size;
  tensor.context_method = parallel.context_method;
  tensor.sequence_parallel = parallel.sequence_parallel;
  const int64_t model_ranks = pipeline.size * tensor.num_parts();
  const int64_t num_ranks = resources.num_ranks > 0 ? resources.num_ranks : model_ranks * parallel.data_parallel_size.value_or(1);
  const std::string sizes = fmt::format("pipeline_parallel_size = {} times tensor_parallel_size = {}{}", pipeline.size, tensor.tensor_size,
                                        tensor.context_size > 1 ? fmt::format(" times context_parallel_size = {}", tensor.context_size) : "");
  if (num_ranks % model_ranks != 0)
    throw Error(ErrorCode::kInvalidConfig, "parallel.{} does not divide {} rank{}; start with --ranks {}, or another multiple",
                sizes, num_ranks, num_ranks == 1 ? "" : "s", model_ranks);
  DataParallel& data = setup.plan_options.data;
  data.size = parallel.data_parallel_size.value_or(num_ranks / model_ranks);
  data.zero_stage = static_cast<int>(parallel.zero_stage);
  data.fast_reduction = parallel.reduction == ReductionMode::kFast;
  data.shard_group_size = parallel.hybrid_shard_size;
  data.reshard_after_forward = parallel.reshard_after_forward;
  data.prefetch = static_cast<int>(parallel.prefetch);
  if (data.size * model_ranks != num_ranks)
    throw Error(ErrorCode::kInvalidConfig, "parallel.data_parallel_size = {} times {} for {} rank{}; start with --ranks {}, or leave data_parallel_size out",
                data.size, sizes, num_ranks, num_ranks == 1 ? "" : "s", data.size * model_ranks);
  setup.plan_options.memory_budget_bytes /= resources.num_local_ranks > 0 ? resources.num_local_ranks : num_ranks;  // they share this machine's memory
}

void prepare_datasets(RunSetup& setup, const SetupNote& note) {
  const RunConfig& config = setup.config;
  PrepareOptions options;
  options.train = data_entries(config.data.train);
  options.validation = data_entries(config.data.validation);
  options.val_fraction = config.data.val_fraction;
  options.cache_folder = (fs::path(setup.folder) / "data").string();
  options.build.seed = static_cast<uint64_t>(config.train.seed);
  options.build.num_threads = std::min(2, setup.engine.num_threads);
  options.build.chat_renderer = chat_renderer(*setup.tokenizer, "auto");
  const PreparedData prepared = prepare_data(options, token_encoder(*setup.tokenizer));
  for (const std::string& line : prepared.notes) note("data        " + line);
  Dataset::Options dataset;
  dataset.seed = static_cast<uint64_t>(config.train.seed);
  dataset.seq_len = static_cast<int>(setup.plan_options.sequence_tokens);
  dataset.vocab_size = static_cast<uint32_t>(setup.model.vocab_size);
  setup.train = std::make_unique<Dataset>(prepared.train, dataset);
  dataset.sequential = true;
  if (!prepared.validation.empty()) setup.validation = std::make_unique<Dataset>(prepared.validation, dataset);
  int segments = setup.train->max_segments_per_sample();
  if (setup.validation) segments = std::max(segments, setup.validation->max_segments_per_sample());
  setup.plan_options.segments_per_sequence = segments;
  setup.plan_options.evaluates = setup.validation != nullptr;
}

}  // namespace

TrainingPlanOptions plan_options_of(const RunConfig& config, const ModelConfig& model) {
  TrainingPlanOptions options;
  options.model = model;
  options.compute_dtype = compute_dtype_of(config.train.dtype);
  options.sequence_tokens = config.data.seq_len.value_or(model.max_seq_len);
  options.global_batch_size = config.train.global_batch_size;
  options.lanes = config.train.lanes;
  options.micro_batch_size = config.train.micro_batch_size;
  switch (config.train.recompute) {
    case RecomputeMode::kAuto: break;
    case RecomputeMode::kNone: options.recompute = Recompute::kNone; break;
    case RecomputeMode::kSelective: options.recompute = Recompute::kSelective; break;
    case RecomputeMode::kFull: options.recompute = Recompute::kFull; break;
  }
  switch (config.optimizer.name) {
    case OptimizerName::kAdamW: options.optimizer.kind = OptimizerKind::kAdamW; break;
    case OptimizerName::kSgd: options.optimizer.kind = OptimizerKind::kSgd; break;
    case OptimizerName::kLion: options.optimizer.kind = OptimizerKind::kLion; break;
  }
  options.optimizer.moment_dtype = config.optimizer.state_dtype == StateDType::kBf16 ? DType::kBF16 : DType::kF32;
  options.optimizer.gradient_delay = static_cast<int>(config.train.gradient_delay);
  const auto& offload = config.parallel.offload;
  const auto offloads = [&](std::string_view what) { return std::find(offload.begin(), offload.end(), what) != offload.end(); };
  if (offloads("optimizer")) options.optimizer.offload_piece_bytes = kOffloadPieceBytes;
  options.optimizer.offload_weights = offloads("parameters");
  options.offload_activations = offloads("activations");
  const ByteBudget& memory = config.budget.memory;
  options.memory_budget_bytes = memory.bytes > 0 ? memory.bytes : static_cast<int64_t>(memory.fraction * static_cast<double>(available_memory_bytes()));
  return options;
}

RunSetup prepare_run(const RunConfig& config, const RunResources& resources, const SetupNote& note) {
  if (config.model.num_experts)
    throw Error(ErrorCode::kUnsupported, "model.num_experts = {}: mixtures of experts can be planned for (orrery plan --cluster, orrery simulate --cluster) but not trained yet; leave it out to train a dense model",
                *config.model.num_experts);
  RunSetup setup;
  setup.config = config;
  setup.folder = config.checkpoint.dir;
  fs::create_directories(setup.folder);
  resolve_engine(setup, resources.num_threads);
  if (config.model.from) setup.base.emplace(open_model(*config.model.from));
  setup.tokenizer = resolve_tokenizer(setup, note);
  setup.model = model_of(config.model, setup.base);
  // A new model takes its vocabulary from the tokenizer unless told a larger one.
  if (setup.model.vocab_size == 0) setup.model.vocab_size = setup.tokenizer->vocab_size();
  if (setup.model.vocab_size < setup.tokenizer->vocab_size())
    throw Error(ErrorCode::kInvalidConfig, "model.vocab_size = {} is smaller than the tokenizer's {} tokens; leave it out or raise it", setup.model.vocab_size, setup.tokenizer->vocab_size());
  if (setup.tokenizer->bos_id() >= 0) setup.model.bos_token_id = setup.tokenizer->bos_id();
  if (setup.tokenizer->eos_id() >= 0) setup.model.eos_token_ids = {setup.tokenizer->eos_id()};
  resolve(setup.model);
  validate(setup.model, "run.toml");
  (void)export_architecture(setup.model);  // what a checkpoint could not be written of is refused before there is a plan
  setup.plan_options = plan_options_of(config, setup.model);
  resolve_layout(setup, resources);
  resolve_steps(setup);
  prepare_datasets(setup, note);
  return setup;
}

std::vector<Plan> plan_run(const RunSetup& setup, int num_local) {
  EngineOptions each = setup.engine;
  each.num_threads = rank_threads(setup.engine.num_threads, num_local > 0 ? num_local : static_cast<int>(setup.plan_options.world_size()));
  return make_training_plans(setup.plan_options, workspace_traits(each, setup.plan_options.sequence_tokens));
}

std::string RunSetup::numerics_key() const {
  const TrainingPlanOptions& options = plan_options;
  Hash128 model_hash;
  // Under a constant rate no step depends on how many follow: a run may be made longer.
  const std::string steps = config.optimizer.schedule == LrScheduleName::kConstant ? "any" : fmt::format("{}", num_steps);
  model_hash.update(model_config_to_json(model, options.compute_dtype));
  return fmt::format(
      "numerics {} model {} dtype {} moments {} arithmetic {} seed {} data {} seq_len {} global_batch_size {} lanes {} tensor {}{} context {} expert 1 optimizer {} "
      "lr {} schedule {} warmup {} steps {} beta {} {} decay {} clip {}{}{}",
      kNumericsVersion, model_hash.hex(), dtype_name(options.compute_dtype),
      dtype_name(options.optimizer.moment_dtype), options.compute_dtype == DType::kF32 ? "fma1" : arithmetic_name(engine.arithmetic), config.train.seed,
      train->manifest_hash().hex(), options.sequence_tokens, options.global_batch_size, options.lanes, options.parallel.tensor_size,
      options.parallel.shares_tokens() ? " sequence" : "", options.parallel.context_size > 1 ? fmt::format("{} {}", options.parallel.context_size, context_method_name(options.parallel.context_method)) : "1",
      config_names(OptimizerName{})[static_cast<size_t>(config.optimizer.name)], config.optimizer.lr,
      config_names(LrScheduleName{})[static_cast<size_t>(config.optimizer.schedule)], config.optimizer.warmup_steps, steps, config.optimizer.beta1,
      config.optimizer.beta2, config.optimizer.weight_decay, config.optimizer.clip,
      options.optimizer.gradient_delay > 0 ? fmt::format(" delay {}", options.optimizer.gradient_delay) : "",
      options.data.fast_reduction && options.data.size > 1 ? fmt::format(" reduction fast-{}", options.data.size) : "");
}

std::vector<std::pair<std::string, std::string>> RunSetup::documents() const {
  std::vector<std::pair<std::string, std::string>> files;
  files.emplace_back("config.json", model_config_to_json(model, plan_options.compute_dtype));
  // The tokenizer as the package world reads it.
  const fs::path scratch = fs::path(folder) / "tokenizer.export";
  fs::create_directories(scratch);
  save_tokenizer_json(*tokenizer, scratch.string());
  for (const auto& entry : fs::directory_iterator(scratch)) files.emplace_back(entry.path().filename().string(), read_whole(entry.path()));
  fs::remove_all(scratch);
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace orrery
