#include "train/layer_probe.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "base/philox.h"
#include "comm/communicator.h"
#include "comm/reduction_plan.h"
#include "ir/op_table.h"
#include "runtime/arena.h"
#include "runtime/machine_probe.h"
#include "runtime/offload_store.h"
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
  const int64_t tokens = engine.plan().options.local_tokens();
  // A context rank's tokens are two pieces of each sequence: random ones are as good.
  const bool whole = tokens == engine.plan().options.sequence_tokens;
  const auto vocab = static_cast<uint64_t>(engine.plan().options.model.vocab_size);
  int num_segments = 0;
  for (size_t sequence = 0; sequence < batch.segment_counts.size(); ++sequence) {
    const auto first = static_cast<int64_t>(sequence) * tokens;
    if (dataset != nullptr && whole) {
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
    batch.segment_starts[sequence] = static_cast<int32_t>(static_cast<int64_t>(sequence) * engine.plan().options.sequence_tokens);
  }
}

using Samples = std::map<std::string, std::pair<OpMeasurement, std::vector<double>>>;

void take_samples(TrainingEngine& engine, const TimingContext& context, Samples& samples) {
  for (const auto& [key, measurement] : op_measurements(engine, context)) {
    samples[key].first = measurement;
    samples[key].second.push_back(measurement.seconds);
  }
}

// Who probes at one time: threads of this process, or, with a world, each process with one rank. Of a world the ranks beyond those that the
// machine has cores for only wait.
class ProbeRanks {
 public:
  ProbeRanks(int num_threads, Communicator* world) : world_(world), barrier_(num_threads) {}
  void meet() {
    if (world_ != nullptr) world_->barrier("probe");
    else barrier_.arrive_and_wait();
  }
  /// The first rank's answer, to all.
  bool agree(bool first_rank, bool answer) {
    if (world_ != nullptr) {
      world_->broadcast(std::as_writable_bytes(std::span(&answer, 1)), 0, "probe");
      return answer;
    }
    if (first_rank) answer_ = answer;
    barrier_.arrive_and_wait();
    return answer_;
  }
  void leave() {
    if (world_ == nullptr) barrier_.arrive_and_drop();
  }

 private:
  Communicator* world_;
  std::barrier<> barrier_;
  std::atomic<bool> answer_{false};
};

int64_t measure_ops(const Plan& plan, const EngineOptions& each, const TimingContext& context, const Dataset* dataset, OpTimes& times, Communicator* world) {
  const auto num_parts = static_cast<int>(plan.options.parallel.num_parts()), num_groups = context.busy_ranks / num_parts;
  if (num_groups == 0) return 0;
  const auto plans_for = [&](int64_t num_micro_batches) { return make_training_plans(probe_options(plan, num_micro_batches), workspace_traits(each, plan.options.sequence_tokens)); };
  std::vector<Plan> probes = plans_for(kProbeMicroBatches);
  if (probes.front().flops_per_step > kManyFlops) probes = plans_for(kFewMicroBatches);
  if (probes.front().flops_per_step > kMostFlops) return 0;
  if (world == nullptr) {
    int64_t bytes = 0;
    for (int part = 0; part < num_parts; ++part) bytes += num_groups * probes[static_cast<size_t>(part)].memory.total_bytes;
    if (bytes > available_memory_bytes() / 2) return 0;  // a plan for another machine
  }
  // By rank of this process, part after part of each group; of a world, this process's rank.
  const auto slice = static_cast<int>(plan.options.slice_size());
  const bool probing = world == nullptr || world->rank() % slice < num_groups;
  std::vector<std::unique_ptr<Communicator>> groups;
  std::vector<std::unique_ptr<TrainingEngine>> engines;
  if (world != nullptr) {
    const int part = world->rank() / slice;
    if (num_parts > 1) groups.push_back(world->split(world->rank() % slice, part, "probe"));
    if (probing) engines.push_back(std::make_unique<TrainingEngine>(probes[static_cast<size_t>(part)], each, num_parts > 1 ? groups.front().get() : nullptr));
  } else {
    for (int group = 0; group < num_groups; ++group) {
      if (num_parts > 1)
        for (auto& communicator : make_local_communicators(num_parts)) groups.push_back(std::move(communicator));
      for (int part = 0; part < num_parts; ++part)
        engines.push_back(std::make_unique<TrainingEngine>(probes[static_cast<size_t>(part)], each, num_parts > 1 ? groups[engines.size()].get() : nullptr));
    }
  }
  OptimizerHyper hyper;
  hyper.lr = 1e-4f, hyper.beta1 = 0.9f, hyper.beta2 = 0.95f, hyper.eps = 1e-8f, hyper.weight_decay = 0.1f, hyper.clip = 1;
  hyper.bias_correction1 = 0.1f, hyper.bias_correction2 = 0.05f;
  const size_t num_threads = std::max<size_t>(1, engines.size());
  std::vector<Samples> samples(num_threads);
  std::vector<std::exception_ptr> errors(num_threads);
  ProbeRanks ranks(static_cast<int>(num_threads), world);
  const auto run = [&](size_t index) {
    try {
      set_floating_point_mode();
      TrainingEngine* const engine = index < engines.size() ? engines[index].get() : nullptr;
      if (engine != nullptr) engine->connect();
      // Weights stay zero: no instruction here takes longer for other values.
      const auto begin = Clock::now();
      for (int step = 0; step < kWarmSteps + kTimedSteps; ++step) {
        if (engine != nullptr) {
          fill_batch(*engine, step & 1, dataset, static_cast<uint32_t>(step));
          engine->executor().reset_op_times();
        }
        ranks.meet();
        if (engine != nullptr) {
          engine->step(step & 1, hyper);
          if (step >= kWarmSteps) take_samples(*engine, context, samples[index]);
        }
        if (ranks.agree(index == 0, step >= kWarmSteps && std::chrono::duration<double>(Clock::now() - begin).count() > kLongSeconds)) break;
      }
    } catch (...) {
      errors[index] = std::current_exception();
      ranks.leave();
    }
  };
  std::vector<std::thread> threads;
  for (size_t index = 1; index < num_threads; ++index) threads.emplace_back(run, index);
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

// The curve of one operation, in groups of neighbours that all call it at one time, on memory that no cache holds: seconds that a call takes of
// a rank's core.
CommCurve measure_call(Communicator& world, const CommCall& call, const StepMachine& machine, Arena& region) {
  constexpr int64_t kSizes[] = {16 << 10, 512 << 10, 4 << 20, 24 << 20};
  const auto group = world.split(world.rank() / call.group_size, world.rank(), "probe");
  const auto n = static_cast<size_t>(group->size()), rank = static_cast<size_t>(group->rank());
  const ReductionPlan plan = rank_tree_plan(group->size());
  std::vector<ElementRange> owners(n), byte_owners(n);
  const int next = (group->rank() + 1) % group->size(), previous = (group->rank() + group->size() - 1) % group->size();
  const auto region_bytes = static_cast<int64_t>(region.bytes());
  std::optional<OffloadStore> store;
  if (call.operation == "read" || call.operation == "write") {
    store.emplace(machine.offload_place, region_bytes);
    store->write(0, {region.data(), static_cast<size_t>(region_bytes)});  // what was never written is read faster
  }
  CommCurve curve;
  for (const int64_t bytes : kSizes) {
    if (call.operation == "xs" && bytes > kSizes[1]) continue;
    equal_ranges(bytes / 4, 1, owners);
    for (size_t i = 0; i < n; ++i) byte_owners[i] = {owners[i].begin * 4, owners[i].end * 4};
    std::vector<double> seconds;
    for (int repeat = 0; repeat <= kCommRepeats; ++repeat) {
      std::byte* data = region.data() + (repeat * bytes) % (region_bytes - bytes + 1) / 64 * 64;
      const std::byte* piece = data;
      std::byte* sum = data + owners[rank].begin * 4;
      world.barrier("BAR");
      const auto begin = Clock::now();
      if (call.operation == "rs") group->reduce_scatter(plan, DType::kF32, {&piece, 1}, owners, {&sum, 1}, "RS");
      else if (call.operation == "ag") group->all_gather_ranges({data, static_cast<size_t>(bytes)}, byte_owners, "AG");
      else if (call.operation == "read") store->read(data - region.data(), {data, static_cast<size_t>(bytes)});
      else if (call.operation == "write") store->write(data - region.data(), {data, static_cast<size_t>(bytes)});
      else if (call.operation == "message") {
        const auto half = static_cast<size_t>(region_bytes / 2);
        Work in = group->post_recv({region.data() + half, static_cast<size_t>(bytes)}, previous, 0, "R");
        Work out = group->post_send({region.data(), static_cast<size_t>(bytes)}, next, 0, "S");
        in.wait();
        out.wait();
      } else group->all_reduce({data, static_cast<size_t>(bytes)}, DType::kF64, "XS");
      world.barrier("BAR");
      if (repeat > 0) seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
    curve.emplace_back(static_cast<double>(bytes), lower_quartile(seconds) * std::min(1.0, static_cast<double>(machine.num_cores) / world.size()));
  }
  return curve;
}

int64_t measure_calls(const std::vector<CommCall>& calls, const StepMachine& machine, int num_ranks, OpTimes& times, Communicator* world) {
  constexpr int64_t kRegionBytes = 48 << 20;
  std::vector<CommCurve> curves(calls.size());
  const auto body = [&](Communicator& comm) {
    Arena region(kRegionBytes);
    for (size_t i = 0; i < calls.size(); ++i) {
      CommCurve curve = measure_call(comm, calls[i], machine, region);
      if (comm.rank() == 0) curves[i] = std::move(curve);
    }
  };
  if (world != nullptr) body(*world);
  else if (!calls.empty()) run_local_ranks(num_ranks, {}, body);
  for (size_t i = 0; i < calls.size(); ++i)
    if (!curves[i].empty()) times.add_comm(call_key(calls[i], machine), std::move(curves[i]));
  return static_cast<int64_t>(calls.size());
}

}  // namespace

std::vector<std::pair<std::string, OpMeasurement>> op_measurements(TrainingEngine& engine, const TimingContext& context) {
  const Plan& plan = engine.plan();
  const double mean_context = static_cast<double>(plan.options.sequence_tokens + 1) / 2;
  std::map<std::string, std::pair<OpMeasurement, int64_t>> sums;  // with the calls
  for (size_t block = 0; block < plan.stage.blocks.size(); ++block) {
    if (Stage::phase_of(block) == Phase::kEval) continue;
    const std::vector<Op>& ops = plan.stage.blocks[block].ops;
    const std::vector<OpTime>& times = engine.executor().op_times(Stage::phase_of(block), static_cast<int32_t>(block / kNumPhases));
    for (size_t i = 0; i < ops.size(); ++i) {
      if (times[i].calls == 0) continue;
      const OpCost cost = op_cost(plan.stage, ops[i], plan.micro_batch_size * plan.options.local_tokens(), mean_context);
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

StepMachine step_machine(const EngineOptions& options, DType compute_dtype, int num_ranks, Communicator* world) {
  StepMachine machine;
  machine.device = fmt::format("{} {}{}", vector_isa_name(options.isa), compute_dtype == DType::kF32 ? "f32" : arithmetic_name(options.arithmetic),
                               options.native_arithmetic ? "" : " emulated");
  machine.num_cores = usable_cores();
  machine.threads_per_rank = rank_threads(options.num_threads, world != nullptr ? 1 : num_ranks);
  machine.offload_place = options.offload_place;
  if (world == nullptr) return machine;
  machine.transport = "mpi";
  cpu_set_t mine;
  CPU_ZERO(&mine);
  ::sched_getaffinity(0, sizeof mine, &mine);
  std::vector<cpu_set_t> all(static_cast<size_t>(world->size()));
  world->all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)), "probe");
  for (const cpu_set_t& cores : all) CPU_OR(&mine, &mine, &cores);
  machine.num_cores = std::max(1, CPU_COUNT(&mine));
  return machine;
}

std::string op_times_path() {
  const std::string probe = probe_cache_path();
  return probe.empty() ? "" : (fs::path(probe).parent_path() / "op_times.json").string();
}

KeptOpTimes load_op_times() {
  std::ifstream file(op_times_path(), std::ios::binary);
  if (!file) return {};
  std::ostringstream text;
  text << file.rdbuf();
  const std::string here = machine_fingerprint(machine_facts());
  if (auto times = OpTimes::from_json(text.str(), here)) return {std::move(*times), ""};
  const auto machine = OpTimes::machine_of(text.str());
  const std::string difference = machine ? fingerprint_difference(*machine, here) : "";
  return {{}, difference.empty() ? "it is no table of this version of the program" : difference};
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

void share_op_times(OpTimes& times, Communicator& world) {
  std::string text = world.rank() == 0 ? times.to_json("") : "";
  auto size = static_cast<int64_t>(text.size());
  world.broadcast(std::as_writable_bytes(std::span(&size, 1)), 0, "probe");
  text.resize(static_cast<size_t>(size));
  world.broadcast(std::as_writable_bytes(std::span(text)), 0, "probe");
  if (world.rank() != 0) times = OpTimes::from_json(text, "").value();
}

int64_t measure_missing(const std::vector<Plan>& plans, const EngineOptions& options, const StepMachine& machine, const Dataset* dataset, OpTimes& times, Communicator* world) {
  const auto num_ranks = static_cast<int>(plans.size());
  const Plan& plan = plans.back();
  EngineOptions each = options;
  each.num_threads = machine.threads_per_rank;
  each.pin_threads = options.pin_threads && num_ranks == 1;
  int64_t count = 0;
  const TimingContext context = timing_context(plan, machine, num_ranks);
  const ModelConfig& model = plan.options.model;
  const ParallelContext& parallel = plan.options.parallel;
  const std::string name = fmt::format("{} {} t{} x{} L{} {} micro-batch {} {} {} {} {} {} parts {} {} {} {}", model_family_name(model.family), context.device, context.num_threads, context.busy_ranks,
                                       context.sequence_tokens, context.fold, plan.micro_batch_size, recompute_name(plan.recompute), model.hidden_size, model.num_heads,
                                       model.intermediate_size, model.vocab_size, parallel.tensor_size, parallel.sequence_parallel, parallel.context_size, context_method_name(parallel.context_method));
  if (!unmeasured_ops(plan, times, context).empty() && !times.was_probed(name)) {
    count += measure_ops(plan, each, context, dataset, times, world);
    times.add_probe(name);
  }
  count += measure_calls(unmeasured_calls(plans, times, machine), machine, num_ranks, times, world);
  if (world != nullptr) share_op_times(times, *world);
  return count;
}

}  // namespace orrery
