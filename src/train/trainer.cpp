#include "train/trainer.h"

#include <chrono>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>

#include "base/error.h"
#include "base/stop_signals.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_writer.h"
#include "runtime/arena.h"
#include "runtime/energy_counter.h"
#include "runtime/machine_probe.h"
#include "planner/step_trace.h"
#include "train/auto_layout.h"
#include "train/layer_probe.h"
#include "train/lr_schedule.h"
#include "train/progress.h"
#include "train/prepare_together.h"
#include "train/process_world.h"
#include "train/rank_group.h"
#include "train/run_budget.h"
#include "train/run_setup.h"
#include "train/shared_save.h"

namespace orrery {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr double kDefaultSaveSeconds = 1800;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A fresh start keeps what was there: checkpoints and metrics move into old-K.
void set_aside_old_run(const fs::path& folder) {
  std::vector<fs::path> old;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") || name == "metrics.jsonl" || name == "tb" || name == "loss.svg") old.push_back(entry.path());
  }
  if (old.empty()) return;
  int index = 1;
  while (fs::exists(folder / fmt::format("old-{}", index))) ++index;
  const fs::path aside = folder / fmt::format("old-{}", index);
  fs::create_directory(aside);
  for (const fs::path& path : old) fs::rename(path, aside / path.filename());
}

// One per process. What is said, written and decided happens on the process that leads, rank 0's; all take the same way through the run.
class Trainer {
 public:
  /// `choice`: how the layout was found and what it will take; null where nobody looked.
  Trainer(RunSetup setup, const TrainOptions& options, ProcessWorld* world, const LayoutChoice* choice = nullptr)
      : setup_(std::move(setup)),
        options_(options),
        world_(world),
        leads_(world == nullptr || world->rank() == 0),
        choice_(choice),
        ranks_(plan_run(setup_, world != nullptr ? 1 : 0), setup_.engine, world),
        plan_(ranks_.plan(ranks_.first_local())) {}

  int run() {
    if (choice_ != nullptr) forecast_ = forecast_run(setup_, choice_->prediction);
    if (leads_) fmt::print(stderr, "{}{}{}", plan_to_text(plan_), choice_ != nullptr ? layout_choice_to_text(*choice_) : "", forecast_to_text(forecast_));
    if (options_.fresh) {
      together("keep the budget", [&] { require_budget(setup_.config, forecast_); });
      // Before the old run is set aside: model.from may name it.
      together("read the weights", [&] { begin_weights(); });
      together("set the old run aside", [&] {
        if (leads_) set_aside_old_run(setup_.folder);
      });
    }
    const int64_t first_step = start_or_resume();
    // What was begun within the budget goes on.
    if (first_step == 0 && !options_.fresh) together("keep the budget", [&] { require_budget(setup_.config, forecast_); });
    ranks_.share_weights();
    together("begin", [&] {
      if (leads_) write_run_file();
      if (first_step < setup_.num_steps) open_writer();
    });
    if (first_step >= setup_.num_steps) {
      say("nothing to do: the run has {} of {} steps; to go on, raise train.steps{}\n", first_step, setup_.num_steps,
          setup_.config.optimizer.schedule == LrScheduleName::kConstant ? "" : " and give --accept-changes (the learning rate's schedule ends elsewhere then)");
      print_next();
      return 0;
    }
    if (const auto probe = kept_probe().probe) peak_flops_ = plan_.stage.compute_dtype == DType::kF32 ? probe->gemm_f32_flops_per_second : probe->gemm_bf16_flops_per_second;
    if (leads_) progress_.emplace(ProgressOptions{setup_.folder, options_.json, first_step});
    const int status = loop(first_step);
    if (progress_) progress_->finish();
    if (leads_) write_trace();
    if (world_ == nullptr && energy_.readable()) print_energy(first_step);
    if (options_.op_table && leads_) fmt::print(stderr, "{}", ranks_.engine(0).op_table());
    if (status == 0) print_next();
    return status;
  }

 private:
  static constexpr std::pair<StateField, std::string_view> kStateFields[] = {
      {StateField::kLow, ".low"}, {StateField::kMoment1, ".m"}, {StateField::kMoment2, ".v"}};
  static constexpr std::string_view kDelayed = ".delayed";  // with a gradient delay: the weights of the update before

  /// What all processes know at the end of a step.
  struct StepEdge {
    int64_t stopping = 0;  // a stop signal came to one of them
    int64_t save_due = 0;  // by the leading process's clock
    int64_t saved = 0;     // no save is in progress on any
  };

  template <typename... Args>
  void say(fmt::format_string<Args...> format, Args&&... args) const {
    if (leads_) fmt::print(stderr, format, std::forward<Args>(args)...);
  }
  void note(const std::string& text) {
    if (progress_) progress_->note(text);
  }
  /// An error on one process is an error on all.
  void together(std::string_view what, const std::function<void()>& body) const {
    if (world_ == nullptr) return body();
    world_->together(what, world_->deadlines().save_ms, body);
  }
  void begin_weights();
  int64_t start_or_resume();
  std::string newest_checkpoint() const;
  void load(const std::string& path);
  void write_run_file() const;
  void open_writer();
  std::vector<TensorSource> save_sources(std::span<const PhysicalTensor> tensors, std::string_view suffix) const;
  int loop(int64_t first_step);
  StepEdge step_edge(int64_t step, bool stopping, bool save_due) const;
  StepReport report(int64_t step, const StepResult& result, int64_t interval_steps, double interval_seconds, int64_t first_step) const;
  std::optional<double> validate();
  void save(int64_t step);
  void finish_save();
  void require_saved(int64_t step) const;
  void write_trace();
  void print_energy(int64_t first_step) const;
  void print_next() const;

  RunSetup setup_;
  TrainOptions options_;
  ProcessWorld* world_;  // null: all ranks are in this process
  bool leads_;
  const LayoutChoice* choice_;
  RankGroup ranks_;
  const Plan& plan_;  // of this process's first rank: what is common to all ranks is read here
  std::optional<CheckpointWriter> writer_;
  std::optional<Progress> progress_;  // where this process leads
  Clock::time_point start_ = Clock::now();
  Clock::time_point save_started_;
  int64_t saving_step_ = -1;  // of the save in progress
  int64_t saved_step_ = -1;
  int64_t skipped_steps_ = 0, reported_step_ = 0;
  RunForecast forecast_;  // empty where nobody looked
  EnergyCounter energy_;
  double joules_ = 0;     // until the newest report
  double peak_flops_ = 0;
};

void Trainer::begin_weights() {
  if (setup_.base)
    for (int replica : ranks_.local_replicas())
      for (int part : ranks_.local_parts())
        load_model(*setup_.base, ranks_.weights(replica, part), ranks_.state(StateField::kLow, replica, part));
  if (setup_.base)
    ranks_.start_from_weights();
  else
    ranks_.initialize_weights(static_cast<uint64_t>(setup_.config.train.seed));
}

// Its path, or nothing. Where processes train together one reads all blocks, and all take the same.
std::string Trainer::newest_checkpoint() const {
  const NewestCheckpoint newest = find_newest_checkpoint(setup_.folder);
  for (const SkippedCheckpoint& skipped : newest.skipped) fmt::print(stderr, "skipped   {}: {}\n", skipped.path, skipped.reason);
  if (!newest.path && !newest.skipped.empty())
    throw Error(ErrorCode::kCorruptData, "{} holds {} checkpoints and none verifies (see above); restore one, or start over with --fresh, which sets them aside",
                setup_.folder, newest.skipped.size());
  return newest.path.value_or("");
}

int64_t Trainer::start_or_resume() {
  const std::string newest = world_ == nullptr ? newest_checkpoint()
                                               : world_->from_first_rank("verify the newest checkpoint", world_->deadlines().prepare_ms, [&] { return newest_checkpoint(); });
  if (newest.empty()) {
    if (!options_.fresh) together("read the weights", [&] { begin_weights(); });
    return 0;
  }
  together("load the checkpoint", [&] {
    load(newest);
    const CheckpointReader reader(newest);
    const TrainingState& state = reader.training_state();
    if (state.numerics_key != setup_.numerics_key() && !options_.accept_changes)
      throw Error(ErrorCode::kInvalidConfig,
                  "{} was made with other settings, and going on would give the bits of neither run:\n{}restore the old settings, go on all the same with "
                  "--accept-changes, or start over with --fresh",
                  newest, numerics_difference(state.numerics_key, setup_.numerics_key()));
    saved_step_ = state.step;
  });
  say("resumed   {} at step {}, every block verified\n", newest, saved_step_);
  return saved_step_;
}

void Trainer::load(const std::string& path) {
  const CheckpointReader reader(path);
  // A run that was not delayed before has one version.
  const bool two_versions = ranks_.delays_gradients() && reader.find(logical_views(ranks_.weights(0)).front().name() + std::string(kDelayed)) != nullptr;
  int filled = -1;
  for (int replica : ranks_.local_replicas()) {
    const bool shards_are_filled = ranks_.shards_state() && ranks_.first_of_shards(replica) == filled;  // those of a group together
    filled = ranks_.first_of_shards(replica);
    for (int part : ranks_.local_parts()) {
      reader.load(ranks_.weights(replica, part), two_versions ? kDelayed : "");
      if (shards_are_filled) continue;
      if (two_versions) reader.load(ranks_.state(StateField::kNewest, replica, part), "");
      for (const auto& [field, suffix] : kStateFields)
        if (const auto tensors = ranks_.state(field, replica, part); !tensors.empty()) reader.load(tensors, suffix);
    }
  }
  if (!two_versions) ranks_.start_from_weights();
}

// The settings that the folder's newest state is made with: not before they were accepted.
void Trainer::write_run_file() const {
  const std::string path = (fs::path(setup_.folder) / "run.toml").string();
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << run_config_to_toml(setup_.config);
  file.close();
  if (!file) throw Error(ErrorCode::kIo, "cannot write {}: {}; free the disk, or choose another checkpoint.dir", path, std::strerror(errno));
}

std::vector<TensorSource> Trainer::save_sources(std::span<const PhysicalTensor> tensors, std::string_view suffix) const {
  if (world_ == nullptr) return tensor_sources(tensors, suffix);
  return shared_tensor_sources(tensors, suffix, world_->saves(), static_cast<size_t>(plan_.memory.class_bytes[static_cast<size_t>(MemoryClass::kCheckpoint)]),
                               world_->deadlines().save_ms);
}

void Trainer::open_writer() {
  CheckpointOptions options;
  options.directory = setup_.folder;
  options.keep = static_cast<int>(setup_.config.checkpoint.keep);
  options.buffer = ranks_.engine(ranks_.first_local()).checkpoint_buffer();
  if (world_ != nullptr) options.role = leads_ ? CheckpointOptions::Role::kWriter : CheckpointOptions::Role::kReader;
  CheckpointContent content;
  const bool delayed = ranks_.delays_gradients();
  content.model = save_sources(delayed ? ranks_.state(StateField::kNewest, 0) : ranks_.weights(0), "");
  for (const auto& [field, suffix] : kStateFields)
    for (TensorSource& source : save_sources(ranks_.state(field, 0), suffix)) content.state.push_back(std::move(source));
  if (delayed)
    for (TensorSource& source : save_sources(ranks_.weights(0), kDelayed)) content.state.push_back(std::move(source));
  if (leads_) content.documents = setup_.documents();
  content.position_names = {"next_sample"};
  content.numerics_key = setup_.numerics_key();
  content.run_config = run_config_to_toml(setup_.config);
  writer_.emplace(options, std::move(content));
}

// Streams from the arena during the next steps; the next update waits for it (before_update in loop()).
void Trainer::save(int64_t step) {
  finish_save();
  const int64_t position[] = {step * plan_.options.global_batch_size};
  save_started_ = Clock::now();
  saving_step_ = step;
  writer_->start(step, position);
}

// Waits for a save that is under way, on all processes. A failed save costs a warning: training goes on, older checkpoints are untouched.
void Trainer::finish_save() {
  if (saving_step_ < 0) return;
  const int64_t step = saving_step_;
  saving_step_ = -1;
  bool saved = false;
  try {
    const CheckpointResult result = writer_->wait();
    saved = true;
    if (leads_) note(fmt::format("saved     {} in {:.1f}s, digest {}", result.path, seconds_since(save_started_), result.digest));
    for (const std::string& warning : result.warnings) note("warning: " + warning);
  } catch (const Error& error) {
    note(fmt::format("warning: step {} could not be saved: {}; training goes on, older checkpoints are untouched", step, error.what()));
  }
  if (world_ != nullptr) saved = world_->gather<uint8_t>(saved, "finish the save", world_->deadlines().save_ms).front() != 0;
  if (saved) saved_step_ = step;
}

// A run that ends with its last state unsaved has not done what it was started for.
void Trainer::require_saved(int64_t step) const {
  if (saved_step_ == step) return;
  together("save", [&] {
    throw Error(ErrorCode::kIo, "step {} could not be saved (see above); {}; make room in {} and give the same command again", step,
                saved_step_ > 0 ? fmt::format("the newest checkpoint is of step {}", saved_step_) : "there is no checkpoint", setup_.folder);
  });
}

std::optional<double> Trainer::validate() {
  if (!setup_.validation) return std::nullopt;
  // What is evaluated is what a checkpoint would have: the newest weights.
  if (ranks_.delays_gradients() && saving_step_ >= 0) writer_->wait_sources();
  ranks_.exchange_weight_versions();
  double loss_sum = 0;
  int64_t num_valid = 0;
  const auto num_samples = static_cast<int64_t>(setup_.validation->num_samples());
  for (int64_t first = 0; first < num_samples; first += plan_.options.global_batch_size) {
    const StepResult result = ranks_.evaluate(*setup_.validation, first, std::min(plan_.options.global_batch_size, num_samples - first));
    loss_sum += result.loss_sum;
    num_valid += result.num_valid;
  }
  ranks_.exchange_weight_versions();
  return num_valid > 0 ? std::optional<double>(loss_sum / static_cast<double>(num_valid)) : std::nullopt;
}

StepReport Trainer::report(int64_t step, const StepResult& result, int64_t interval_steps, double interval_seconds, int64_t first_step) const {
  const double tokens_per_step = static_cast<double>(plan_.options.global_batch_size * plan_.options.sequence_tokens);
  StepReport report;
  report.step = step;
  report.num_steps = setup_.num_steps;
  if (result.num_valid > 0) report.loss = result.loss_sum / static_cast<double>(result.num_valid);
  report.gradient_norm = result.gradient_norm;
  report.lr = learning_rate(setup_.config.optimizer, step - 1, setup_.num_steps);
  report.tokens = step * static_cast<int64_t>(tokens_per_step);
  report.tokens_per_second = static_cast<double>(interval_steps) * tokens_per_step / interval_seconds;
  report.flops_per_second = static_cast<double>(interval_steps) * plan_.flops_per_step / interval_seconds;
  report.peak_flops_per_second = peak_flops_;
  report.memory_bytes = resident_memory_bytes();
  report.planned_bytes = ranks_.planned_bytes();
  report.elapsed_seconds = seconds_since(start_);
  report.eta_seconds = report.elapsed_seconds / static_cast<double>(step - first_step) * static_cast<double>(setup_.num_steps - step);
  report.skipped_steps = skipped_steps_;
  return report;
}

Trainer::StepEdge Trainer::step_edge(int64_t step, bool stopping, bool save_due) const {
  StepEdge edge{stopping, save_due, saving_step_ < 0 || writer_->poll()};
  if (world_ == nullptr) return edge;
  world_->control().set_step(step);
  world_->control().set_activity("the edge of a step");
  const std::vector<StepEdge> all = world_->gather(edge, "EDGE", saving_step_ < 0 ? 0 : world_->deadlines().save_ms);
  edge.save_due = all.front().save_due;
  for (const StepEdge& other : all) {
    edge.stopping = std::max(edge.stopping, other.stopping);
    edge.saved = std::min(edge.saved, other.saved);
  }
  return edge;
}

int Trainer::loop(int64_t first_step) {
  const StopSignals signals(leads_ ? "\nstopping after this step with a checkpoint; once more to stop now\n" : "");
  ranks_.start_data(*setup_.train, first_step);
  const TrainSection& train = setup_.config.train;
  const CheckpointSection& checkpoint = setup_.config.checkpoint;
  const double save_seconds = checkpoint.every_seconds.value_or(checkpoint.every_steps ? INFINITY : kDefaultSaveSeconds);
  const std::function<void()> before_update = [this] {
    if (saving_step_ >= 0) writer_->wait_sources();
  };
  start_ = Clock::now();
  Clock::time_point last_save = start_, last_report = start_;
  reported_step_ = first_step;
  energy_ = EnergyCounter();
  for (int64_t step = first_step; step < setup_.num_steps;) {
    const StepResult result = ranks_.step(step, optimizer_hyper(setup_.config.optimizer, step, setup_.num_steps), before_update);
    if (step == first_step && leads_) ranks_.engine(ranks_.first_local()).reset_op_table();  // cold caches
    ++step;
    const bool finite = std::isfinite(result.loss_sum) && std::isfinite(result.gradient_norm);
    if (result.skipped) ++skipped_steps_;
    const StepEdge edge = step_edge(step, signals.requested() != 0, seconds_since(last_save) >= save_seconds);
    const bool last = step == setup_.num_steps, stopping = edge.stopping != 0;
    const bool validates = last || (train.eval_every > 0 && step % train.eval_every == 0);
    if (step % train.log_every == 0 || last || stopping || validates) {
      StepReport line = report(step, result, step - reported_step_, seconds_since(last_report), first_step);
      if (validates && !stopping) line.validation_loss = validate();
      if (progress_) progress_->step(line);
      reported_step_ = step;
      joules_ = energy_.joules();
      last_report = Clock::now();
    }
    if (edge.saved != 0) finish_save();
    const bool due = (checkpoint.every_steps && step % *checkpoint.every_steps == 0) || edge.save_due != 0;
    if (due || last || stopping) {
      save(step);
      last_save = Clock::now();
    }
    if (stopping && !last) {
      finish_save();
      require_saved(step);
      note(fmt::format("stopped at step {}; the same command goes on from here", step));
      return exit_status(ErrorCode::kCancelled);
    }
    if (!finite && train.nonfinite == NonfiniteAction::kStop)
      together("go on", [&] {
        throw Error(ErrorCode::kCorruptData, "step {}: the {} is not finite and train.nonfinite = \"stop\"; the newest checkpoint is of step {}", step,
                    std::isfinite(result.loss_sum) ? "gradient" : "loss", saved_step_);
      });
  }
  finish_save();
  require_saved(setup_.num_steps);
  return 0;
}

// Predicted beside measured, on the screen and in trace.json for `orrery plan compare`. A run of a step or two tells nothing: its first
// step meets cold memory.
void Trainer::write_trace() {
  TrainingEngine& engine = ranks_.engine(ranks_.first_local());
  const int64_t steps = engine.num_steps_timed();
  if (steps < 2) return;
  // Of ranks on several machines nobody asked for the cores that they share.
  const StepMachine machine = choice_ != nullptr ? choice_->machine : step_machine(setup_.engine, plan_.stage.compute_dtype, ranks_.num_local());
  StepTrace trace;
  trace.machine = machine_fingerprint(machine_facts());
  trace.layout = fmt::format("{} ranks x {} threads, zero {}, micro-batch {}, recompute {}", ranks_.size(), machine.threads_per_rank, plan_.options.data.zero_stage, plan_.micro_batch_size,
                             recompute_name(plan_.recompute));
  trace.steps = steps;
  trace.measured_seconds = engine.step_seconds();
  trace.measured = engine.phase_seconds();
  const std::vector<double> measured = engine.action_seconds();
  const bool known = choice_ != nullptr && !choice_->weighed.empty() && choice_->prediction.missing.empty();
  if (known) {
    const StepPrediction& p = choice_->prediction;
    trace.predicted_seconds = p.seconds, trace.low = p.low, trace.high = p.high, trace.predicted = p.ranks.front();
  }
  for (size_t i = 0; i < measured.size(); ++i)
    trace.actions.push_back({to_string(plan_.schedule.actions[i], plan_.schedule), known ? choice_->prediction.actions.front()[i] : 0, measured[i]});
  trace.ops = op_measurements(engine, timing_context(plan_, machine, ranks_.size()));
  const std::string path = (fs::path(setup_.folder) / "trace.json").string();
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << trace_to_json(trace);
  file.close();
  if (!file) fmt::print(stderr, "warning: cannot write {}: {}\n", path, std::strerror(errno));
  if (known) fmt::print(stderr, "{}", trace_phases_to_text(trace));
}

void Trainer::print_energy(int64_t first_step) const {
  constexpr double kJoulesPerKwh = 3.6e6;
  const double share = static_cast<double>(reported_step_ - first_step) / static_cast<double>(setup_.num_steps);
  say("energy    {:.3g} kWh of the processor measured{}\n", joules_ / kJoulesPerKwh, forecast_.kwh > 0 ? fmt::format(", {:.3g} predicted", forecast_.kwh * share) : "");
}

void Trainer::print_next() const {
  say("next:  orrery generate {} --prompt \"...\"\n       orrery eval {}\n       orrery convert {} OUT --to hf\n", setup_.folder, setup_.folder,
             setup_.folder);
}

void make_run_folder(const fs::path& folder) {
  std::error_code failure;
  fs::create_directories(folder, failure);
  if (failure) throw Error(ErrorCode::kIo, "cannot make the run's folder {}: {}; choose another checkpoint.dir", folder.string(), failure.message());
}

int train_in_world(const LoadRunConfig& load, const TrainOptions& options, const RankEnvironment& environment) {
  const bool leads = environment.rank == 0;
  RunConfig config;
  WorldStart start;
  try {
    config = load();
    start.folder = config.checkpoint.dir;
    make_run_folder(start.folder);
    start.deadlines.step_ms = config.parallel.timeout_seconds * 1000;
    start.num_parts = config.parallel.tensor_parallel_size * config.parallel.context_parallel_size;
    // Before anyone makes new records; meeting the others is after it for all.
    if (leads)
      if (const std::string report = take_post_mortem(start.folder); !report.empty()) fmt::print(stderr, "the last run here lost a rank; its records say: {}\n", report);
  } catch (const Error& error) {
    start.failure = error;  // of this host alone, perhaps: it is told when all have met
  }
  const auto world = ProcessWorld::join(environment, start);
  const SetupNote note = [](std::string_view line) { fmt::print(stderr, "{}\n", line); };
  int status = 0;
  try {
    std::optional<DirectoryLock> lock;
    world->together("lock the run's folder", 0, [&] {
      if (leads) lock.emplace(start.folder);
    });
    if (leads)
      note(fmt::format("ranks     {} processes by {}, over {}; {:.1f} MiB in each for messages, beside the arena", world->size(), environment.source, world->transport_name(),
                       static_cast<double>(CommOptions{}.scratch_bytes) / (1 << 20)));
    RunSetup setup = prepare_together(config, options.num_threads, *world, note);
    std::optional<LayoutChoice> choice;
    if (environment.local_world_size == world->size())
      world->together("time the ops", world->deadlines().prepare_ms, [&] { choice = choose_layout(setup, true, note, &world->control()); });
    status = Trainer(std::move(setup), options, world.get(), choice ? &*choice : nullptr).run();
  } catch (const AgreedError& error) {
    status = exit_status(error.code());
  } catch (const std::exception& error) {
    world->leave(error.what());
    throw;
  }
  // Rank 0 writes what the run leaves behind; the end of the MPI library, which waits for all, has a step's deadline.
  world->meet_at_end(status);
  return status;
}

}  // namespace

int train_run(const LoadRunConfig& load, const TrainOptions& options) {
  RankEnvironment environment;
  try {
    before_meeting([&] { environment = discover_ranks(options.num_ranks); });
    if (environment.kind == RankKind::kProcess && environment.world_size > 1) return train_in_world(load, options, environment);
  } catch (const AgreedError& error) {
    return exit_status(error.code());
  }
  const RunConfig config = load();
  make_run_folder(config.checkpoint.dir);
  const DirectoryLock lock(config.checkpoint.dir);
  const SetupNote note = [](std::string_view line) { fmt::print(stderr, "{}\n", line); };
  RunSetup setup = prepare_run(config, {options.num_threads, environment.world_size}, note);
  const LayoutChoice choice = choose_layout(setup, options.num_ranks > 0 || environment.kind == RankKind::kProcess, note);
  return Trainer(std::move(setup), options, nullptr, &choice).run();
}

}  // namespace orrery
