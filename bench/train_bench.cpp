// Training steps of a model shape on random tokens: tokens per second, memory, and where each millisecond goes. The same shapes,
// batch and dtype as shared/peers/train_torch.py; bench/train_vs_torch.py runs both in turns.
//   train_bench gpt2-124m|llama-135m|llama-11m [--batch 4] [--seq 512] [--steps 6] [--warmup 2] [--threads N] [--recompute none]
//               [--moments f32|bf16] [--dtype bf16|f32] [--clock wall|cpu] [--table]
// Prints one JSON line. Its limit is what the machine would need at the rates measured in the same process: the step's products at
// the rate of a loop of products on registers, and then the bytes of the norm and the update at the rate of a plain copy.
// --clock cpu counts the process's processor time, divided by the threads: on a machine that others use, what a step costs without what
// was preempted, but also without what threads waited for; most telling with one thread.
// --table: the plan, the limit's parts and each op's time, on stderr.
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/philox.h"
#include "planner/plan.h"
#include "runtime/arena.h"
#include "ir/op_table.h"
#include "runtime/machine_probe.h"
#include "train/engine.h"
#include "gemm_loops.h"

namespace orrery {
namespace {

struct Options {
  std::string model, recompute = "none", moments = "f32", dtype = "bf16";
  int64_t batch = 4, seq = 512, lanes = 4;
  int steps = 6, warmup = 2, threads = 0;
  bool table = false, cpu_clock = false;
};

ModelConfig shape_of(const std::string& name, int64_t seq) {
  const bool gpt2 = name == "gpt2-124m";
  ModelConfig model = default_model_config(gpt2 ? ModelFamily::kGpt2 : ModelFamily::kLlama);
  const auto set = [&](int64_t layers, int64_t width, int64_t heads, int64_t kv, int64_t ffn, int64_t vocab) {
    model.num_layers = layers;
    model.hidden_size = width;
    model.num_heads = heads;
    model.num_kv_heads = kv;
    model.intermediate_size = ffn;
    model.vocab_size = vocab;
  };
  if (gpt2)
    set(12, 768, 12, 12, 3072, 50257);
  else if (name == "llama-135m")
    set(30, 576, 9, 3, 1536, 49152);
  else if (name == "llama-11m")
    set(6, 384, 6, 2, 1024, 4096);
  else
    throw Error(ErrorCode::kInvalidArgument, "model {}: wanted gpt2-124m, llama-135m or llama-11m", name);
  model.tie_embeddings = true;
  model.max_seq_len = seq;
  resolve(model);
  return model;
}

void random_batch(TrainingEngine& engine, int copy, uint32_t step) {
  const BatchView batch = engine.batch(copy);
  const TrainingPlanOptions& options = engine.plan().options;
  const auto vocab = static_cast<uint64_t>(options.model.vocab_size);
  for (size_t i = 0; i < batch.ids.size(); ++i) {
    const auto words = philox4x32({static_cast<uint32_t>(i), step, 0, 0}, {1, 2});
    batch.ids[i] = static_cast<int32_t>(words[0] % vocab);
    batch.targets[i] = static_cast<int32_t>(words[1] % vocab);
    batch.positions[i] = static_cast<int32_t>(i % static_cast<size_t>(options.sequence_tokens));
  }
  for (size_t s = 0; s < batch.segment_counts.size(); ++s) {
    batch.segment_counts[s] = 1;
    batch.segment_starts[s] = static_cast<int32_t>(s * static_cast<size_t>(options.sequence_tokens));
  }
}

double seconds_since(std::chrono::steady_clock::time_point begin) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); }

// Operations a second of products on registers, all threads: the best of some rounds of about 20 ms. 0 where there is no such loop.
double register_loop_rate(DType dtype, int num_threads) {
  const CpuFeatures& features = cpu_features();
  const bool bf16 = dtype == DType::kBF16, amx = bf16 && native_arithmetic(features) == Arithmetic::kAmx32, dp = bf16 && native_arithmetic(features) == Arithmetic::kDp2;
  if (!amx && features.best_isa() != VectorIsa::kAvx512) return 0;
  const double flop = amx ? bench::kFlopPerAmxStep : dp ? bench::kFlopPerDpStep : bench::kFlopPerFmaStep;
  constexpr int64_t kSteps = 5'000'000;
  ThreadPool pool(num_threads);
  double best = 0;
  for (int round = 0; round < 10; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run([&](int, int) {
      volatile float sink = 0;
      if (amx)
        bench::amx_register_loop(kSteps);
      else
        sink = dp ? bench::dp_register_loop(kSteps) : bench::fma_register_loop(kSteps);
      (void)sink;
    });
    best = std::max(best, static_cast<double>(kSteps) * flop * num_threads / seconds_since(begin));
  }
  return best;
}

struct Limit {
  double product_rate = 0, packed_rate = 0, copy_rate = 0;  // per second
  double flops = 0, update_bytes = 0;                       // of a step
  double seconds() const { return flops / product_rate + update_bytes / copy_rate; }
};

Limit measure_limit(const Plan& plan, int num_threads) {
  const MachineProbe probe = measure_machine({.disk_folder = "", .num_threads = num_threads});
  const DType dtype = plan.options.compute_dtype;
  Limit limit;
  limit.packed_rate = dtype == DType::kBF16 ? probe.gemm_bf16_flops_per_second : probe.gemm_f32_flops_per_second;
  limit.product_rate = std::max(limit.packed_rate, register_loop_rate(dtype, num_threads));
  limit.copy_rate = probe.memory_copy_bytes_per_second;
  limit.flops = plan.flops_per_step;
  for (Phase phase : {Phase::kNorm, Phase::kOptimizer})
    for (const Op& op : plan.stage.block(phase).ops) {
      const OpCost cost = op_cost(plan.stage, op, 0, 0);
      limit.update_bytes += cost.bytes_read + cost.bytes_written;
    }
  return limit;
}

// Seconds by the clock that the options name.
double now(const Options& options, int num_threads) {
  timespec time{};
  clock_gettime(options.cpu_clock ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return (static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec)) / (options.cpu_clock ? num_threads : 1);
}

int run(const Options& options) {
  const EngineOptions machine = default_engine_options(options.threads);
  TrainingPlanOptions plan_options;
  plan_options.model = shape_of(options.model, options.seq);
  plan_options.compute_dtype = options.dtype == "f32" ? DType::kF32 : DType::kBF16;
  plan_options.sequence_tokens = options.seq;
  plan_options.global_batch_size = options.batch;
  plan_options.lanes = std::min<int64_t>(options.lanes, options.batch);
  plan_options.recompute = parse_recompute(options.recompute);
  plan_options.optimizer.moment_dtype = options.moments == "bf16" ? DType::kBF16 : DType::kF32;
  const Plan plan = make_training_plan(plan_options, workspace_traits(machine, options.seq));
  TrainingEngine engine(plan, machine);
  engine.initialize_weights(1);
  OptimizerHyper hyper;
  hyper.lr = 3e-4f;
  hyper.beta1 = 0.9f;
  hyper.beta2 = 0.95f;
  hyper.eps = 1e-8f;
  hyper.weight_decay = 0.1f;
  hyper.clip = 1.0f;
  hyper.bias_correction1 = 0.1f;
  hyper.bias_correction2 = 0.05f;
  std::vector<double> seconds;
  StepResult result;
  for (int step = 0; step < options.warmup + options.steps; ++step) {
    random_batch(engine, step & 1, static_cast<uint32_t>(step));
    if (step == options.warmup) engine.reset_op_table();
    const double begin = now(options, machine.num_threads);
    result = engine.step(step & 1, hyper);
    if (step >= options.warmup) seconds.push_back(now(options, machine.num_threads) - begin);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const double tokens = static_cast<double>(options.batch * options.seq);
  const Limit limit = measure_limit(plan, machine.num_threads);
  fmt::print(
      "{{\"peer\": \"orrery\", \"model\": \"{}\", \"params\": {}, \"dtype\": \"{}\", \"moments\": \"{}\", \"recompute\": \"{}\", \"threads\": {}, \"batch\": {}, "
      "\"seq\": {}, \"tokens_per_s\": {:.1f}, \"step_s\": {:.4f}, \"tflops\": {:.3f}, \"arena_mib\": {}, \"peak_rss_mib\": {}, \"loss\": {:.4f}, "
      "\"limit_tokens_per_s\": {:.1f}, \"share_of_limit\": {:.3f}}}\n",
      options.model, plan.num_parameters, options.dtype, options.moments, options.recompute, machine.num_threads, options.batch, options.seq, tokens / median, median,
      plan.flops_per_step / median / 1e12, plan.memory.total_bytes >> 20, usage.ru_maxrss >> 10, result.loss_sum / tokens, tokens / limit.seconds(), limit.seconds() / median);
  if (options.table) {
    fmt::print(stderr, "{}{}", plan_to_text(plan), engine.op_table());
    fmt::print(stderr, "limit     products {:8.1f} ms: {:.3f} TFLOP at {:.3f} TFLOP/s of a register loop (a large product alone runs at {:.3f})\n", 1e3 * limit.flops / limit.product_rate,
               limit.flops / 1e12, limit.product_rate / 1e12, limit.packed_rate / 1e12);
    fmt::print(stderr, "limit     update   {:8.1f} ms: {:.2f} GB at {:.1f} GB/s of a copy\n", 1e3 * limit.update_bytes / limit.copy_rate, limit.update_bytes / 1e9, limit.copy_rate / 1e9);
    fmt::print(stderr, "limit     step     {:8.1f} ms: {:.1f} tokens/s, of which this run reaches {:.1f} %\n", 1e3 * limit.seconds(), tokens / limit.seconds(), 100 * limit.seconds() / median);
  }
  return 0;
}

Options parse(int argc, char** argv) {
  Options options;
  if (argc < 2) throw Error(ErrorCode::kInvalidArgument, "wanted a model: gpt2-124m, llama-135m or llama-11m");
  options.model = argv[1];
  for (int i = 2; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--table") {
      options.table = true;
      continue;
    }
    if (i + 1 >= argc) throw Error(ErrorCode::kInvalidArgument, "{} needs a value", name);
    const std::string value = argv[++i];
    if (name == "--batch") options.batch = std::stoll(value);
    else if (name == "--seq") options.seq = std::stoll(value);
    else if (name == "--lanes") options.lanes = std::stoll(value);
    else if (name == "--steps") options.steps = std::stoi(value);
    else if (name == "--warmup") options.warmup = std::stoi(value);
    else if (name == "--threads") options.threads = std::stoi(value);
    else if (name == "--recompute") options.recompute = value;
    else if (name == "--moments") options.moments = value;
    else if (name == "--dtype") options.dtype = value;
    else if (name == "--clock" && (value == "wall" || value == "cpu")) options.cpu_clock = value == "cpu";
    else throw Error(ErrorCode::kInvalidArgument, "unknown option {}", name);
  }
  return options;
}

}  // namespace
}  // namespace orrery

int main(int argc, char** argv) {
  try {
    return orrery::run(orrery::parse(argc, argv));
  } catch (const orrery::Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return orrery::exit_status(error.code());
  }
}
