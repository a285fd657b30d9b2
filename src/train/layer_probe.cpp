#include "train/layer_probe.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "base/philox.h"
#include "comm/communicator.h"
#include "comm/reduction_plan.h"
#include "ir/op_table.h"
#include "runtime/machine_probe.h"
#include "train/rank_group.h"

namespace orrery {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int64_t kProbeLayers = 2;
constexpr int64_t kProbeMicroBatches = 4;  // as many ways to begin, go on with and end a lane's sum as matter
constexpr int64_t kFewMicroBatches = 2;
// Of a probe's step. A core does 10 to 1,000 GFLOP/s: more than kManyFlops is worth saving at, more than kMostFlops is no probe any more.
constexpr double kManyFlops = 0.5e12, kMostFlops = 4e12;
constexpr int kWarmSteps = 1, kTimedSteps = 7;
constexpr double kLongSeconds = 1.2;  // after which one timed step is enough
constexpr int kCommRepeats = 7;

// Other work on the machine only makes a sample longer: the lower quarter is nearer to what the op takes than the middle.
double lower_quartile(std::vector<double>& values) {
  const size_t at = values.size() / 4;
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(at), values.end());
  return values[at];
}

// One rank's work with two layers and few micro-batches: its lanes, cut as the plan cuts them.
TrainingPlanOptions probe_options(const Plan& plan, int64_t num_micro_batches) {
  TrainingPlanOptions options = plan.options;
  const int64_t ranks = options.data.size, share = sequence_share(plan).count;
  options.model.num_layers = std::min(options.model.num_layers, kProbeLayers);
  options.lanes = std::max<int64_t>(1, options.lanes / ranks);
  const int64_t wanted = std::min(share, std::max(options.lanes, num_micro_batches * plan.micro_batch_size));
  options.global_batch_size = std::max<int64_t>(1, wanted / options.lanes) * options.lanes;
  options.micro_batch_size = std::min(plan.micro_batch_size, options.global_batch_size);
  options.recompute = plan.recompute;
  options.recompute_level = kRecomputeLevels;  // every op that may be made again
  options.evaluates = false;
  options.memory_budget_bytes = 0;
  options.data = {};
  options.pipeline = {};
  return options;
}

void fill_batch(TrainingEngine& engine, int copy, const Dataset* dataset, uint32_t step) {
  const BatchView batch = engine.batch(copy);
  const int64_t tokens = engine.plan().options.sequence_tokens;
  const auto vocab = static_cast<uint64_t>(engine.plan().options.model.vocab_size);
  int num_segments = 0;
  for (size_t sequence = 0; sequence < batch.segment_counts.size(); ++sequence) {
    const auto first = static_cast<int64_t>(sequence) * tokens;
    if (dataset != nullptr) {
      const SampleBuffers row{batch.ids.data() + first, batch.targets.data() + first, batch.positions.data() + first};
      batch.segment_counts[sequence] = dataset->fill_sample(step * batch.segment_counts.size() + sequence, row, static_cast<int32_t>(first), batch.segment_starts.data() + num_segments);
      num_segments += batch.segment_counts[sequence];
      continue;
    }
    for (int64_t i = 0; i < tokens; ++i) {
      const auto words = philox4x32({static_cast<uint32_t>(first + i), step, 0, 0}, {1, 2});
      batch.ids[static_cast<size_t>(first + i)] = static_cast<int32_t>(words[0] % vocab);
      batch.targets[static_cast<size_t>(first + i)] = static_cast<int32_t>(words[1] % vocab);
      batch.positions[static_cast<size_t>(first + i)] = static_cast<int32_t>(i);
    }
    batch.segment_counts[sequence] = 1;
    batch.segment_starts[sequence] = static_cast<int32_t>(first);
  }
}

using Samples = std::map<std::string, std::pair<OpMeasurement, std::vector<double>>>;

void take_samples(TrainingEngine& engine, const TimingContext& context, Samples& samples) {
  for (const auto& [key, measurement] : op_measurements(engine, context)) {
    samples[key].first = measurement;
    samples[key].second.push_back(measurement.seconds);
  }
}

int64_t measure_ops(const Plan& plan, const EngineOptions& each, const TimingContext& context, const Dataset* dataset, OpTimes& times) {
  const int busy = context.busy_ranks;
  Plan probe = make_training_plan(probe_options(plan, kProbeMicroBatches), workspace_traits(each, plan.options.sequence_tokens));
  if (probe.flops_per_step > kManyFlops) probe = make_training_plan(probe_options(plan, kFewMicroBatches), workspace_traits(each, plan.options.sequence_tokens));
  if (probe.flops_per_step > kMostFlops) return 0;
  std::vector<std::unique_ptr<TrainingEngine>> engines;
  for (int rank = 0; rank < busy; ++rank) engines.push_back(std::make_unique<TrainingEngine>(probe, each));
  OptimizerHyper hyper;
  hyper.lr = 1e-4f, hyper.beta1 = 0.9f, hyper.beta2 = 0.95f, hyper.eps = 1e-8f, hyper.weight_decay = 0.1f, hyper.clip = 1;
  hyper.bias_correction1 = 0.1f, hyper.bias_correction2 = 0.05f;
  std::vector<Samples> samples(static_cast<size_t>(busy));
  std::vector<std::exception_ptr> errors(static_cast<size_t>(busy));
  std::barrier together(busy);
  std::atomic<bool> enough{false};
  const auto run = [&](int rank) {
    TrainingEngine& engine = *engines[static_cast<size_t>(rank)];
    try {
      set_floating_point_mode();
      // Weights stay zero: no instruction here takes longer for other values.
      const auto begin = Clock::now();
      for (int step = 0; step < kWarmSteps + kTimedSteps; ++step) {
        fill_batch(engine, step & 1, dataset, static_cast<uint32_t>(step));
        engine.executor().reset_op_times();
        together.arrive_and_wait();
        engine.step(step & 1, hyper);
        if (step < kWarmSteps) continue;
        take_samples(engine, context, samples[static_cast<size_t>(rank)]);
        if (rank == 0 && std::chrono::duration<double>(Clock::now() - begin).count() > kLongSeconds) enough = true;
        together.arrive_and_wait();
        if (enough) break;
      }
    } catch (...) {
      errors[static_cast<size_t>(rank)] = std::current_exception();
      together.arrive_and_drop();
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 1; rank < busy; ++rank) threads.emplace_back(run, rank);
  run(0);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  int64_t count = 0;
  for (auto& [key, first] : samples[0]) {
    std::vector<double> all;
    for (Samples& rank : samples) {
      const std::vector<double>& part = rank[key].second;
      all.insert(all.end(), part.begin(), part.end());
    }
    OpMeasurement measurement = first.first;
    measurement.seconds = lower_quartile(all);
    if (!times.has(key)) ++count;
    times.add(key, measurement);
  }
  return count;
}

// Seconds of each collective of training over n ranks, every rank at one time, on memory that no cache holds.
int64_t measure_collectives(int num_ranks, OpTimes& times) {
  constexpr int64_t kSizes[] = {16 << 10, 512 << 10, 4 << 20, 24 << 20};
  constexpr int64_t kRegionBytes = 48 << 20;
  std::map<std::string, CommCurve> curves;
  run_local_ranks(num_ranks, {}, [&](Communicator& comm) {
    const auto n = static_cast<size_t>(num_ranks), rank = static_cast<size_t>(comm.rank());
    const Arena region(kRegionBytes);
    const ReductionPlan plan = rank_tree_plan(num_ranks);
    std::vector<ElementRange> owners(n), byte_owners(n);
    const int next = (comm.rank() + 1) % num_ranks, previous = (comm.rank() + num_ranks - 1) % num_ranks;
    for (const char* operation : {"rs", "ag", "xs", "message"})
      for (const int64_t bytes : kSizes) {
        const std::string name = operation;
        if (name == "xs" && bytes > kSizes[1]) continue;
        equal_ranges(bytes / 4, 1, owners);
        for (size_t i = 0; i < n; ++i) byte_owners[i] = {owners[i].begin * 4, owners[i].end * 4};
        std::vector<double> seconds;
        for (int repeat = 0; repeat <= kCommRepeats; ++repeat) {
          std::byte* data = region.data() + (repeat * bytes) % (kRegionBytes - bytes + 1) / 64 * 64;
          const std::byte* piece = data;
          std::byte* sum = data + owners[rank].begin * 4;
          comm.barrier("BAR");
          const auto begin = Clock::now();
          if (name == "rs") comm.reduce_scatter(plan, DType::kF32, {&piece, 1}, owners, {&sum, 1}, "RS");
          else if (name == "ag") comm.all_gather_ranges({data, static_cast<size_t>(bytes)}, byte_owners, "AG");
          else if (name == "message") {
            const auto half = static_cast<size_t>(kRegionBytes / 2);
            Work in = comm.post_recv({region.data() + half, static_cast<size_t>(bytes)}, previous, 0, "R");
            Work out = comm.post_send({region.data(), static_cast<size_t>(bytes)}, next, 0, "S");
            in.wait();
            out.wait();
          } else comm.all_reduce({data, static_cast<size_t>(bytes)}, DType::kF64, "XS");
          comm.barrier("BAR");
          if (repeat > 0) seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
        }
        if (rank == 0) curves[comm_key(name, num_ranks, "local")].emplace_back(static_cast<double>(bytes), lower_quartile(seconds));
      }
  });
  for (auto& [key, curve] : curves) times.add_comm(key, std::move(curve));
  return static_cast<int64_t>(curves.size());
}

}  // namespace

std::vector<std::pair<std::string, OpMeasurement>> op_measurements(TrainingEngine& engine, const TimingContext& context) {
  const Plan& plan = engine.plan();
  const double mean_context = static_cast<double>(plan.options.sequence_tokens + 1) / 2;
  std::map<std::string, std::pair<OpMeasurement, int64_t>> sums;  // with the calls
  for (size_t phase = 0; phase < plan.stage.blocks.size(); ++phase) {
    if (static_cast<Phase>(phase) == Phase::kEval) continue;
    const std::vector<Op>& ops = plan.stage.blocks[phase].ops;
    const std::vector<OpTime>& times = engine.executor().op_times(static_cast<Phase>(phase));
    for (size_t i = 0; i < ops.size(); ++i) {
      if (times[i].calls == 0) continue;
      const OpCost cost = op_cost(plan.stage, ops[i], plan.micro_batch_size * plan.options.sequence_tokens, mean_context);
      auto& [sum, calls] = sums[op_key(plan.stage, ops[i], context)];
      sum.flops = cost.flops, sum.bytes = cost.bytes_read + cost.bytes_written;
      sum.seconds += times[i].seconds, calls += times[i].calls;
    }
  }
  std::vector<std::pair<std::string, OpMeasurement>> measurements;
  for (auto& [key, entry] : sums) {
    entry.first.seconds /= static_cast<double>(entry.second);
    measurements.emplace_back(key, entry.first);
  }
  return measurements;
}

StepMachine step_machine(const EngineOptions& options, DType compute_dtype, int num_ranks) {
  StepMachine machine;
  machine.device = fmt::format("{} {}{}", vector_isa_name(options.isa), compute_dtype == DType::kF32 ? "f32" : arithmetic_name(options.arithmetic),
                               options.native_arithmetic ? "" : " emulated");
  machine.num_cores = usable_cores();
  machine.threads_per_rank = rank_threads(options.num_threads, num_ranks);
  return machine;
}

std::string op_times_path() {
  const std::string probe = probe_cache_path();
  return probe.empty() ? "" : (fs::path(probe).parent_path() / "op_times.json").string();
}

OpTimes load_op_times() {
  std::ifstream file(op_times_path(), std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  return OpTimes::from_json(text.str(), machine_fingerprint(machine_facts())).value_or(OpTimes{});
}

bool store_op_times(const OpTimes& times) {
  const std::string path = op_times_path();
  if (path.empty()) return false;
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  const std::string temporary = fmt::format("{}.{}", path, ::getpid());
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file << times.to_json(machine_fingerprint(machine_facts()));
  file.close();
  if (!file) return false;
  fs::rename(temporary, path, error);
  return !error;
}

int64_t measure_missing(const std::vector<Plan>& plans, const EngineOptions& options, const Dataset* dataset, OpTimes& times) {
  const auto num_ranks = static_cast<int>(plans.size());
  const Plan& plan = plans.back();
  const StepMachine machine = step_machine(options, plan.stage.compute_dtype, num_ranks);
  EngineOptions each = options;
  each.num_threads = machine.threads_per_rank;
  each.pin_threads = options.pin_threads && num_ranks == 1;
  int64_t count = 0;
  const TimingContext context = timing_context(plan, machine, num_ranks);
  const ModelConfig& model = plan.options.model;
  const std::string name = fmt::format("{} {} t{} x{} L{} {} micro-batch {} {} {} {} {} {}", model_family_name(model.family), context.device, context.num_threads, context.busy_ranks,
                                       context.sequence_tokens, context.fold, plan.micro_batch_size, recompute_name(plan.recompute), model.hidden_size, model.num_heads,
                                       model.intermediate_size, model.vocab_size);
  if (!unmeasured_ops(plan, times, context).empty() && !times.was_probed(name)) {
    count += measure_ops(plan, each, context, dataset, times);
    times.add_probe(name);
  }
  if (num_ranks > 1 && !times.has_comm(comm_key("message", num_ranks, machine.transport))) count += measure_collectives(num_ranks, times);
  return count;
}

}  // namespace orrery
