// Training steps of a model shape on random tokens: tokens per second, memory, and where each millisecond goes. The same shapes,
// batch and dtype as shared/peers/train_torch.py; bench/train_vs_torch.py runs both in turns.
//   train_bench gpt2-124m|llama-135m|llama-11m [--batch 4] [--seq 512] [--steps 6] [--warmup 2] [--threads N] [--recompute none]
//               [--moments f32|bf16] [--dtype bf16|f32] [--clock wall|cpu] [--table]
// Prints one JSON line. Its limit is what the machine would need at the rates measured in the same process: the step's products at
// the rate of a loop of products on registers, and then the bytes of the norm and the update at the rate of a plain copy.
// --clock cpu counts the process's processor time, divided by the threads: on a machine that others use, what a step costs without what
// was preempted, but also without what threads waited for; most telling with one thread.
// --table: the plan, the limit's parts, each op's time, and each product's rate by shape beside the same kernel alone (packing included)
// and the register loop, on stderr.
// peak_bound_mib is 16 B a parameter + the planned activations + 64 MiB (with f32 moments); peak_within says whether the process stayed below.
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/philox.h"
#include "planner/plan.h"
#include "ir/op_table.h"
#include "runtime/arena.h"
#include "runtime/executor.h"
#include "runtime/machine_probe.h"
#include "train/engine.h"
#include "register_loop.h"

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
  const bench::RegisterLoop loop = bench::register_loop(dtype);
  if (loop.run == nullptr) return 0;
  constexpr int64_t kSteps = 3'000'000;
  ThreadPool pool(num_threads);
  double best = 0;
  for (int round = 0; round < 10; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run([&](int, int) { loop.run(kSteps); });
    best = std::max(best, static_cast<double>(kSteps) * loop.flop_per_step * num_threads / seconds_since(begin));
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

bool is_product(OpKind kind) {
  switch (kind) {
    case OpKind::kLinear:
    case OpKind::kLinearGelu:
    case OpKind::kLinearGradInput:
    case OpKind::kLinearGradInputGelu:
    case OpKind::kLinearGradWeight: return true;
    default: return false;
  }
}

// Seconds of one call of an op on operands of its own at the plan's bounds: the best of five. It reads and packs what the step reads and packs.
double seconds_alone(const Plan& plan, const Op& op, const EngineOptions& machine, ThreadPool& pool) {
  const int64_t sequence_tokens = plan.options.sequence_tokens;
  std::vector<TensorView> views;
  int64_t bytes = 0;
  for (const auto* operands : {&op.inputs, &op.outputs})
    for (ValueId id : *operands) bytes += align_up(plan.stage.value(id).bytes(), kArenaAlignment);
  const int64_t workspace = op_workspace_bytes(device_spec(machine), plan.stage, op, sequence_tokens);
  Arena arena(align_up(bytes + workspace + kArenaAlignment, kArenaGranule));
  int64_t offset = 0;
  for (const auto* operands : {&op.inputs, &op.outputs})
    for (ValueId id : *operands) {
      const Value& value = plan.stage.value(id);
      TensorView view;
      view.data = arena.data() + offset;
      view.dtype = value.dtype;
      view.num_dims = static_cast<int8_t>(value.shape.size());
      for (size_t i = 0; i < value.shape.size(); ++i) view.dims[i] = value.shape[i].bound;
      view.row_stride = view.row_width();
      if (value.dtype == DType::kBF16)
        for (int64_t i = 0; i < view.num_elements(); ++i) view.as<uint16_t>()[i] = static_cast<uint16_t>(0x3c00 + i % 97);
      views.push_back(view);
      offset += align_up(value.bytes(), kArenaAlignment);
    }
  const std::vector<uint8_t> merges(static_cast<size_t>(plan.micro_batch_size), 1);
  const GradFold fold{plan.micro_batch_size, sequence_tokens, merges.data(), true};
  OpCall call;
  call.kind = op.kind;
  call.inputs = std::span(views).first(op.inputs.size());
  call.outputs = std::span(views).subspan(op.inputs.size());
  call.attributes = &op.attributes;
  call.fold = &fold;
  call.workspace = {arena.data() + offset, static_cast<size_t>(workspace)};
  const KernelContext context{&pool, machine.isa, machine.arithmetic, machine.native_arithmetic};
  const KernelEntry& kernel = cpu_kernel(op.kind, plan.stage.compute_dtype);
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    kernel.run(context, call);
    best = std::min(best, seconds_since(begin));
  }
  return best;
}

// The step's products by op and shape.
void print_products(TrainingEngine& engine, const EngineOptions& machine, double register_rate) {
  struct Row {
    double seconds = 0, flops = 0;
    int64_t calls = 0;
    const Op* op = nullptr;
  };
  const Plan& plan = engine.plan();
  std::map<std::string, Row> rows;
  for (Phase phase : {Phase::kForward, Phase::kBackward}) {
    const auto& ops = plan.stage.block(phase).ops;
    const auto& times = engine.executor().op_times(phase);
    for (size_t i = 0; i < ops.size(); ++i) {
      if (!is_product(ops[i].kind) || times[i].calls == 0) continue;
      const int64_t in = plan.stage.value(ops[i].inputs[0]).shape.back().bound, out = plan.stage.value(ops[i].outputs[0]).shape.back().bound;
      Row& row = rows[fmt::format("{} {} to {}", op_name(ops[i].kind), in, out)];
      row.seconds += times[i].seconds;
      row.flops += op_cost(plan.stage, ops[i], plan.micro_batch_size * plan.options.local_tokens(), 0).flops * static_cast<double>(times[i].calls);
      row.calls += times[i].calls;
      row.op = &ops[i];
    }
  }
  ThreadPool pool(machine.num_threads, machine.pin_threads);
  const auto steps = static_cast<double>(engine.num_steps_timed());
  double seconds = 0, alone = 0, flops = 0, all_calls = 0;
  fmt::print(stderr, "{:<40}{:>7}{:>11}{:>9}{:>9}{:>10}{:>17}\n", "product, columns in and out", "calls", "ms a step", "TFLOP/s", "alone", "of alone", "of register loop");
  const auto print = [&](const std::string& name, double calls, double ms, double rate, double rate_alone) {
    fmt::print(stderr, "{:<40}{:>7.0f}{:>11.2f}{:>9.3f}{:>9.3f}{:>9.1f}%{:>16.1f}%\n", name, calls, ms, rate / 1e12, rate_alone / 1e12, 100 * rate / rate_alone, 100 * rate / register_rate);
  };
  for (const auto& [name, row] : rows) {
    const double once = seconds_alone(plan, *row.op, machine, pool), calls = static_cast<double>(row.calls);
    print(name, calls / steps, 1e3 * row.seconds / steps, row.flops / row.seconds, row.flops / (once * calls));
    seconds += row.seconds;
    alone += once * calls;
    flops += row.flops;
    all_calls += calls;
  }
  print("these products", all_calls / steps, 1e3 * seconds / steps, flops / seconds, flops / alone);
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
  const auto initialization = std::chrono::steady_clock::now();
  engine.initialize_weights(1);
  const double initialization_seconds = seconds_since(initialization);
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
  const int64_t peak = usage.ru_maxrss << 10, bound = 16 * plan.num_parameters + plan.memory.class_bytes[static_cast<size_t>(MemoryClass::kActivations)] + (int64_t{64} << 20);
  const Limit limit = measure_limit(plan, machine.num_threads);
  fmt::print(
      "{{\"peer\": \"orrery\", \"model\": \"{}\", \"params\": {}, \"dtype\": \"{}\", \"moments\": \"{}\", \"recompute\": \"{}\", \"threads\": {}, \"batch\": {}, "
      "\"seq\": {}, \"tokens_per_s\": {:.1f}, \"step_s\": {:.4f}, \"tflops\": {:.3f}, \"arena_mib\": {}, \"peak_rss_mib\": {}, \"peak_bound_mib\": {}, \"peak_within\": {}, \"loss\": {:.4f}, "
      "\"limit_tokens_per_s\": {:.1f}, \"share_of_limit\": {:.3f}}}\n",
      options.model, plan.num_parameters, options.dtype, options.moments, options.recompute, machine.num_threads, options.batch, options.seq, tokens / median, median,
      plan.flops_per_step / median / 1e12, plan.memory.total_bytes >> 20, peak >> 20, bound >> 20, peak <= bound, result.loss_sum / tokens, tokens / limit.seconds(), limit.seconds() / median);
  if (options.table) {
    fmt::print(stderr, "{}{}", plan_to_text(plan), engine.op_table());
    print_products(engine, machine, limit.product_rate);
    fmt::print(stderr, "weights   drawn in {:.2f} s\n", initialization_seconds);
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
