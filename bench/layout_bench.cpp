// Predicted against measured, on this machine: the step time of layouts of small models (lower quartile of the steps), each from probes of two
// layers, and the bytes of their arenas. One line a layout; below them the mean error, the 95th percentile, and by how much the layout that
// would be chosen of each model is slower than the best. Ranks are threads; under mpirun they are its processes, and the layouts those of as many.
//   layout_bench [--steps 3] [--models llama-11m,...] [--layouts TEXT] [--fresh] [--actions]
//   mpirun -n 2 --bind-to none layout_bench ...
// --layouts: those whose name contains the text. --fresh: nothing that was measured before is used. --actions: rank 0 action by action.
#include <fmt/format.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"
#include "comm/discovery.h"
#include "rank_steps.h"
#include "train/layer_probe.h"

using namespace orrery;
using bench::TestModel;

namespace {

constexpr TestModel kModels[] = {
    {"llama-11m", ModelFamily::kLlama, 6, 384, 6, 2, 1024, 4096, 256, 8},
    {"gpt2-17m", ModelFamily::kGpt2, 8, 384, 6, 6, 1536, 8192, 128, 8},
    {"llama-wide", ModelFamily::kLlama, 4, 768, 12, 4, 2048, 2048, 128, 8},
};
struct TestLayout {
  int64_t micro_batch = 1;
  Recompute recompute = Recompute::kNone;
  DataParallel data;
  PipelineParallel pipeline;
  ParallelContext parallel;
};
DataParallel ranks(int64_t size, int zero_stage) { return {.size = size, .zero_stage = zero_stage}; }
PipelineParallel pipeline(PipelineKind kind, int64_t virtual_stages = 1) { return {.size = 2, .kind = kind, .virtual_stages = virtual_stages}; }
const TestLayout kLayouts[] = {
    {8},
    {4},
    {1},
    {4, Recompute::kFull},
    {4, Recompute::kNone, ranks(2, 0)},
    {2, Recompute::kNone, ranks(2, 1)},
    {4, Recompute::kSelective, ranks(2, 1)},
    {2, Recompute::kNone, ranks(2, 2)},
    {2, Recompute::kNone, ranks(2, 3)},
    {4, Recompute::kNone, ranks(2, 3)},
    {2, Recompute::kNone, ranks(4, 1)},
    {2, Recompute::kNone, {}, pipeline(PipelineKind::k1F1B)},
    {1, Recompute::kNone, {}, pipeline(PipelineKind::k1F1B)},
    {1, Recompute::kNone, {}, pipeline(PipelineKind::kInterleaved, 2)},
    {1, Recompute::kNone, {}, pipeline(PipelineKind::kZbH1)},
    {1, Recompute::kNone, {}, pipeline(PipelineKind::kZbV)},
    {1, Recompute::kNone, ranks(2, 1), pipeline(PipelineKind::k1F1B)},
    {4, Recompute::kNone, {}, {}, {.tensor_size = 2}},
    {4, Recompute::kNone, {}, {}, {.tensor_size = 2, .sequence_parallel = true}},
    {4, Recompute::kNone, {}, {}, {.context_size = 2}},
    {4, Recompute::kNone, {}, {}, {.context_size = 2, .context_method = ContextMethod::kUlysses}},
};

std::string layout_name(const TrainingPlanOptions& o) {
  std::string name = fmt::format("{} ranks", o.world_size());
  if (o.data.size > 1) name += fmt::format(", dp {} zero {}", o.data.size, o.data.zero_stage);
  if (o.pipeline.size > 1) name += fmt::format(", pp {} {}", o.pipeline.size, pipeline_name(o.pipeline.kind));
  if (o.parallel.tensor_size > 1) name += fmt::format(", tp {}{}", o.parallel.tensor_size, o.parallel.sequence_parallel ? " sp" : "");
  if (o.parallel.context_size > 1) name += fmt::format(", cp {} {}", o.parallel.context_size, context_method_name(o.parallel.context_method));
  name += fmt::format(", micro-batch {}", *o.micro_batch_size);
  return o.recompute == Recompute::kNone ? name : name + fmt::format(", recompute {}", recompute_name(*o.recompute));
}

struct Row {
  std::string layout, model;
  StepPrediction prediction;
  double measured = 0;
  int64_t planned_bytes = 0, arena_bytes = 0;  // of all ranks
  std::vector<double> seconds;                 // of every timed step
  std::vector<Plan> plans;
  EngineOptions each;
  StepMachine machine;
  PhaseSeconds measured_phases;
  std::vector<double> action_seconds;  // of rank 0
};

// Some steps of a group of ranks.
void measure(int num_steps, Communicator* world, Row& row) {
  const auto num_ranks = static_cast<int>(row.plans.size());
  std::vector<std::unique_ptr<Communicator>> comms;
  if (world == nullptr && num_ranks > 1) comms = make_local_communicators(num_ranks);
  std::vector<std::unique_ptr<TrainingEngine>> engines;
  int64_t bytes = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    if (world != nullptr && rank != world->rank()) continue;
    Communicator* const comm = world != nullptr ? world : num_ranks > 1 ? comms[static_cast<size_t>(rank)].get() : nullptr;
    engines.push_back(std::make_unique<TrainingEngine>(row.plans[static_cast<size_t>(rank)], row.each, comm));
    bytes += engines.back()->arena().bytes();
  }
  if (world != nullptr) world->all_reduce(std::as_writable_bytes(std::span(&bytes, 1)), DType::kI64, "bytes");
  row.arena_bytes = bytes;
  std::barrier together(static_cast<ptrdiff_t>(engines.size()));
  const auto run = [&](size_t index) {
    const std::vector<double> seconds = bench::timed_steps(*engines[index], num_steps, [&] {
      if (world != nullptr) world->barrier("together");
      else together.arrive_and_wait();
    });
    if (index == 0) row.seconds.insert(row.seconds.end(), seconds.begin(), seconds.end());
  };
  std::vector<std::thread> threads;
  for (size_t index = 1; index < engines.size(); ++index) threads.emplace_back(run, index);
  run(0);
  for (std::thread& thread : threads) thread.join();
  row.measured_phases = engines.front()->phase_seconds();
  row.action_seconds = engines.front()->action_seconds();
}

struct Options {
  int num_steps = 3;
  std::string models, layouts;
  bool fresh = false, actions = false;
};

std::vector<Row> rows_of(const Options& options, const EngineOptions& machine, Communicator* world) {
  std::vector<Row> rows;
  for (const TestModel& test : kModels) {
    if (!options.models.empty() && options.models.find(test.name) == std::string::npos) continue;
    for (const TestLayout& layout : kLayouts) {
      TrainingPlanOptions plan = bench::plan_options(test);
      plan.micro_batch_size = layout.micro_batch, plan.recompute = layout.recompute;
      plan.data = layout.data, plan.pipeline = layout.pipeline, plan.parallel = layout.parallel;
      Row row;
      row.model = test.name, row.layout = layout_name(plan);
      if (world != nullptr && plan.world_size() != world->size()) continue;
      if (row.layout.find(options.layouts) == std::string::npos) continue;
      row.each = machine;
      row.each.num_threads = rank_threads(machine.num_threads, static_cast<int>(plan.world_size()));
      row.each.pin_threads = plan.world_size() == 1;
      row.plans = make_training_plans(plan, workspace_traits(row.each, test.tokens));
      for (const Plan& each : row.plans) row.planned_bytes += each.memory.total_bytes;
      row.machine = step_machine(world != nullptr ? row.each : machine, DType::kBF16, static_cast<int>(row.plans.size()), world);
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

void print_row(const Row& row, bool actions) {
  const auto phases_text = [](const PhaseSeconds& p) { return fmt::format("{:.0f} + {:.0f} + {:.0f} + {:.0f}", 1e3 * p.forward, 1e3 * p.backward, 1e3 * p.update, 1e3 * p.communication); };
  const StepPrediction& p = row.prediction;
  fmt::print("{:<11} {:<52} predicted {:6.1f} ms  measured {:6.1f} ms  {:+5.1f} %  ({} : {})  {} bytes planned, {} allocated{}\n", row.model, row.layout, 1e3 * p.seconds,
             1e3 * row.measured, 100 * (p.seconds / row.measured - 1), phases_text(p.ranks.front()), phases_text(row.measured_phases), row.planned_bytes, row.arena_bytes,
             p.missing.empty() ? "" : fmt::format(", {} unknown: {}", p.missing.size(), p.missing.front()));
  if (!actions) return;
  const Plan& plan = row.plans.front();
  for (size_t i = 0; i < plan.schedule.actions.size(); ++i)
    fmt::print("    {:<10} {:8.3f} {:8.3f}\n", to_string(plan.schedule.actions[i], plan.schedule), 1e3 * p.actions.front()[i], 1e3 * row.action_seconds[i]);
}

void print_summary(const std::vector<Row>& rows, double probe_seconds) {
  std::vector<double> errors;
  double inside = 0, equal = 0, mean = 0, regret = 0;
  std::map<std::string, std::vector<const Row*>> groups;
  for (const Row& row : rows) {
    errors.push_back(100 * std::abs(row.prediction.seconds / row.measured - 1));
    inside += row.measured >= row.prediction.low && row.measured <= row.prediction.high, equal += row.planned_bytes == row.arena_bytes;
    groups[row.model].push_back(&row);
  }
  for (const auto& [name, group] : groups) {
    const Row* picked = *std::min_element(group.begin(), group.end(), [](const Row* a, const Row* b) { return a->prediction.seconds < b->prediction.seconds; });
    const Row* best = *std::min_element(group.begin(), group.end(), [](const Row* a, const Row* b) { return a->measured < b->measured; });
    const double lost = 100 * (picked->measured / best->measured - 1);
    regret += lost / static_cast<double>(groups.size());
    fmt::print("{:<11} picked {}; best {}: {:.2f} % slower\n", name, picked->layout, best->layout, lost);
  }
  std::sort(errors.begin(), errors.end());
  const auto count = static_cast<double>(rows.size());
  for (const double error : errors) mean += error / count;
  fmt::print("{} layouts: mean error {:.2f} %, P95 {:.2f} %, regret {:.2f} % mean, memory equal in {:.0f}, in the 90 % interval {:.0f} %; probes took {:.1f} s\n", rows.size(), mean,
             errors[static_cast<size_t>(0.95 * (count - 1))], regret, equal, 100 * inside / count, probe_seconds);
}

void run(const Options& options) {
  const RankEnvironment environment = discover_ranks(0);
  std::unique_ptr<Communicator> world;
  if (environment.kind == RankKind::kProcess && environment.world_size > 1) world = std::make_unique<Communicator>(make_process_transport(environment), CommOptions{});
  OpTimes times = options.fresh ? OpTimes{} : load_op_times().times;
  if (world) share_op_times(times, *world);
  const EngineOptions machine = default_engine_options(0);
  std::vector<Row> rows = rows_of(options, machine, world.get());
  const auto begin = std::chrono::steady_clock::now();
  for (Row& row : rows) measure_missing(row.plans, world ? row.each : machine, row.machine, nullptr, times, world.get());
  const double probe_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  // Twice through all layouts, so that a slow minute of the machine does not fall on one of them.
  for (int round = 0; round < 2; ++round)
    for (Row& row : rows) measure(options.num_steps, world.get(), row);
  if (world && world->rank() != 0) return;
  for (Row& row : rows) {
    row.prediction = predict_step_time(row.plans, times, row.machine);
    row.measured = bench::lower_quartile(row.seconds);
    print_row(row, options.actions);
  }
  store_op_times(times);
  if (!rows.empty()) print_summary(rows, probe_seconds);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--steps" && i + 1 < argc) options.num_steps = std::atoi(argv[++i]);
    else if (argument == "--models" && i + 1 < argc) options.models = argv[++i];
    else if (argument == "--layouts" && i + 1 < argc) options.layouts = argv[++i];
    else if (argument == "--fresh") options.fresh = true;
    else if (argument == "--actions") options.actions = true;
    else return fmt::print(stderr, "usage: layout_bench [--steps N] [--models A,B] [--layouts TEXT] [--fresh] [--actions]\n"), 2;
  }
  try {
    run(options);
  } catch (const Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return exit_status(error.code());
  }
  return 0;
}
