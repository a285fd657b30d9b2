// Predicted against measured, on this machine: the step time of layouts (lower quartile of the steps) of small models (ranks as threads, micro-batch, recompute, ZeRO
// stage) from one probe of two layers each, and the bytes of their arenas. The table names every layout; below it the mean error, the
// 95th percentile, and by how much the layout that would be chosen is slower than the best.
//   layout_bench [--steps 3] [--models llama-11m,...] [--fresh]
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
#include "base/philox.h"
#include "comm/communicator.h"
#include "train/layer_probe.h"

using namespace orrery;

namespace {

struct TestModel {
  const char* name;
  ModelFamily family;
  int64_t layers, width, heads, kv_heads, ffn, vocab, tokens, batch;
};
constexpr TestModel kModels[] = {
    {"llama-11m", ModelFamily::kLlama, 6, 384, 6, 2, 1024, 4096, 256, 8},
    {"gpt2-20m", ModelFamily::kGpt2, 8, 320, 5, 5, 1280, 8192, 128, 8},
    {"llama-wide", ModelFamily::kLlama, 3, 768, 12, 4, 2048, 2048, 128, 8},
};
struct TestLayout {
  int ranks;
  int64_t micro_batch;
  int zero;
  Recompute recompute;
};
constexpr TestLayout kShapes[] = {
    {1, 8, 0, Recompute::kNone}, {1, 4, 0, Recompute::kNone}, {1, 2, 0, Recompute::kNone}, {1, 1, 0, Recompute::kNone},      {1, 4, 0, Recompute::kFull},
    {2, 4, 0, Recompute::kNone}, {2, 2, 1, Recompute::kNone}, {2, 1, 1, Recompute::kNone}, {2, 4, 1, Recompute::kSelective}, {4, 2, 1, Recompute::kNone},
};

struct Row {
  std::string layout, model;
  double predicted = 0, low = 0, high = 0, measured = 0, planned_bytes = 0, arena_bytes = 0;
  std::vector<double> seconds;  // of every timed step
  std::vector<Plan> plans;
  PhaseSeconds measured_phases;
};

// Of the steps, as the probe takes it of the ops: other work on the machine only makes one longer.
double lower_quartile(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 4];
}

TrainingPlanOptions options_of(const TestModel& test, const TestLayout& shape) {
  TrainingPlanOptions options;
  ModelConfig& model = options.model;
  model = default_model_config(test.family);
  model.num_layers = test.layers, model.hidden_size = test.width, model.num_heads = test.heads, model.num_kv_heads = test.kv_heads;
  model.intermediate_size = test.ffn, model.vocab_size = test.vocab, model.max_seq_len = test.tokens, model.tie_embeddings = true;
  resolve(model);
  options.sequence_tokens = test.tokens, options.global_batch_size = test.batch, options.lanes = 4;
  options.micro_batch_size = shape.micro_batch, options.recompute = shape.recompute;
  options.data = {shape.ranks, 0, shape.zero};
  return options;
}

void fill(TrainingEngine& engine, int copy, uint32_t step) {
  const BatchView batch = engine.batch(copy);
  const auto vocab = static_cast<uint64_t>(engine.plan().options.model.vocab_size);
  const auto tokens = static_cast<size_t>(engine.plan().options.sequence_tokens);
  for (size_t i = 0; i < batch.ids.size(); ++i) {
    const auto words = philox4x32({static_cast<uint32_t>(i), step, 7, 0}, {1, 2});
    batch.ids[i] = static_cast<int32_t>(words[0] % vocab), batch.targets[i] = static_cast<int32_t>(words[1] % vocab);
    batch.positions[i] = static_cast<int32_t>(i % tokens);
  }
  for (size_t s = 0; s < batch.segment_counts.size(); ++s) batch.segment_counts[s] = 1, batch.segment_starts[s] = static_cast<int32_t>(s * tokens);
}

// Some steps of a group of ranks.
void measure(const EngineOptions& machine, int num_steps, Row& row) {
  const auto num_ranks = static_cast<int>(row.plans.size());
  EngineOptions each = machine;
  each.num_threads = rank_threads(machine.num_threads, num_ranks), each.pin_threads = num_ranks == 1;
  std::vector<std::unique_ptr<Communicator>> comms;
  if (num_ranks > 1) comms = make_local_communicators(num_ranks);
  std::vector<std::unique_ptr<TrainingEngine>> engines;
  row.planned_bytes = row.arena_bytes = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    engines.push_back(std::make_unique<TrainingEngine>(row.plans[static_cast<size_t>(rank)], each, num_ranks > 1 ? comms[static_cast<size_t>(rank)].get() : nullptr));
    row.planned_bytes += static_cast<double>(row.plans[static_cast<size_t>(rank)].memory.total_bytes), row.arena_bytes += static_cast<double>(engines.back()->arena().bytes());
  }
  OptimizerHyper hyper;
  hyper.lr = 1e-4f, hyper.beta1 = 0.9f, hyper.beta2 = 0.95f, hyper.eps = 1e-8f, hyper.weight_decay = 0.1f, hyper.clip = 1, hyper.bias_correction1 = 0.1f, hyper.bias_correction2 = 0.05f;
  std::barrier together(num_ranks);
  const auto run = [&](int rank) {
    set_floating_point_mode();
    TrainingEngine& engine = *engines[static_cast<size_t>(rank)];
    engine.connect();
    for (int step = 0; step <= num_steps; ++step) {
      fill(engine, step & 1, static_cast<uint32_t>(step));
      if (step == 1) engine.reset_op_table();
      together.arrive_and_wait();
      const auto begin = std::chrono::steady_clock::now();
      engine.step(step & 1, hyper);
      together.arrive_and_wait();
      if (rank == 0 && step > 0) row.seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 1; rank < num_ranks; ++rank) threads.emplace_back(run, rank);
  run(0);
  for (std::thread& thread : threads) thread.join();
  row.measured_phases = engines.front()->phase_seconds();
}

}  // namespace

int main(int argc, char** argv) {
  int num_steps = 3;
  std::string only;
  bool fresh = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--steps") == 0 && i + 1 < argc) num_steps = std::atoi(argv[++i]);
    else if (std::strcmp(argv[i], "--models") == 0 && i + 1 < argc) only = argv[++i];
    else if (std::strcmp(argv[i], "--fresh") == 0) fresh = true;
    else return fmt::print(stderr, "usage: layout_bench [--steps N] [--models A,B] [--fresh]\n"), 2;
  }
  OpTimes times = fresh ? OpTimes{} : load_op_times();
  const EngineOptions machine = default_engine_options(0);
  std::vector<Row> rows;
  double probe_seconds = 0;
  for (const TestModel& test : kModels) {
    if (!only.empty() && only.find(test.name) == std::string::npos) continue;
    for (const TestLayout& shape : kShapes) {
      Row row;
      row.model = test.name;
      row.layout = fmt::format("{:<11} {} ranks x {} micro-batch {} zero {} recompute {}", test.name, shape.ranks, rank_threads(machine.num_threads, shape.ranks), shape.micro_batch, shape.zero,
                               recompute_name(shape.recompute));
      EngineOptions each = machine;
      each.num_threads = rank_threads(machine.num_threads, shape.ranks);
      row.plans = make_training_plans(options_of(test, shape), workspace_traits(each, test.tokens));
      const auto begin = std::chrono::steady_clock::now();
      measure_missing(row.plans, machine, nullptr, times);
      probe_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      rows.push_back(std::move(row));
    }
  }
  // Twice through all layouts, so that a slow minute of the machine does not fall on one of them.
  for (int round = 0; round < 2; ++round)
    for (Row& row : rows) measure(machine, num_steps, row);
  const auto phases_text = [](const PhaseSeconds& p) { return fmt::format("{:.0f} + {:.0f} + {:.0f} + {:.0f}", 1e3 * p.forward, 1e3 * p.backward, 1e3 * p.update, 1e3 * p.communication); };
  for (Row& row : rows) {
    const StepPrediction prediction = predict_step_time(row.plans, times, step_machine(machine, DType::kBF16, static_cast<int>(row.plans.size())));
    row.predicted = prediction.seconds, row.low = prediction.low, row.high = prediction.high, row.measured = lower_quartile(row.seconds);
    fmt::print("{:<68} predicted {:6.1f} ms  measured {:6.1f} ms  {:+5.1f} %  ({} : {})  {} bytes planned, {} allocated{}\n", row.layout, 1e3 * row.predicted, 1e3 * row.measured,
               100 * (row.predicted / row.measured - 1), phases_text(prediction.ranks.front()), phases_text(row.measured_phases), static_cast<int64_t>(row.planned_bytes),
               static_cast<int64_t>(row.arena_bytes), prediction.missing.empty() ? "" : fmt::format(", {} ops unknown: {}", prediction.missing.size(), prediction.missing.front()));
  }
  store_op_times(times);
  std::vector<double> errors, regrets;
  double inside = 0, equal = 0;
  std::map<std::string, std::vector<const Row*>> groups;
  for (const Row& row : rows) {
    errors.push_back(100 * std::abs(row.predicted / row.measured - 1));
    inside += row.measured >= row.low && row.measured <= row.high, equal += row.planned_bytes == row.arena_bytes;
    groups[row.model].push_back(&row);
  }
  for (const auto& [name, group] : groups) {
    const auto by = [](double Row::*field) { return [field](const Row* a, const Row* b) { return a->*field < b->*field; }; };
    const Row* picked = *std::min_element(group.begin(), group.end(), by(&Row::predicted));
    const Row* best = *std::min_element(group.begin(), group.end(), by(&Row::measured));
    regrets.push_back(100 * (picked->measured / best->measured - 1));
    fmt::print("{:<11} picked{}, best{}: {:.2f} % slower\n", name, picked->layout.substr(11), best->layout.substr(11), regrets.back());
  }
  std::sort(errors.begin(), errors.end());
  double mean = 0, regret = 0;
  for (const double error : errors) mean += error / static_cast<double>(errors.size());
  for (const double value : regrets) regret += value / static_cast<double>(regrets.size());
  const auto count = static_cast<double>(rows.size());
  fmt::print("{} layouts: mean error {:.2f} %, P95 {:.2f} %, regret {:.2f} % mean, memory equal in {:.0f}, in the 90 % interval {:.0f} %; probes took {:.1f} s\n", rows.size(), mean,
             errors[static_cast<size_t>(0.95 * (count - 1))], regret, equal, 100 * inside / count, probe_seconds);
  return 0;
}
