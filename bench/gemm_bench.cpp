// Times the matrix products of the CPU backend on the shapes of a training step and of decoding, beside a loop of products on
// registers (the peak: AMX, vdpbf16ps or f32 FMA) and a plain read loop (memory), all in one run: the rounds go through all cases in turn, so that a slow
// moment of the machine falls on all of them, and medians are printed as a Markdown table.
// On a machine that others use, --clock=cpu counts the process's processor time divided by the threads instead of wall time: what
// the code costs without what was preempted, but also without what threads waited for.
//   gemm_bench [--rounds=7] [--threads=2] [--only=substring] [--dtype=bf16|f32] [--clock=wall|cpu]
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/gemm_kernels.h"
#include "backend/kernel.h"
#include "base/philox.h"
#include "base/bfloat16.h"
#include "gemm_loops.h"
#include "register_loop.h"
#include "timed_rounds.h"

namespace orrery::bench {
namespace {

struct Options {
  int rounds = 7;
  int threads = 2;
  std::string only;
  DType dtype = DType::kBF16;
  bool cpu_clock = false;
};

// The result is used: the compiler may not drop the loop.
template <typename Value>
void keep(Value value) {
  __asm__ volatile("" : : "r,m,x"(value) : "memory");
}

struct Case {
  std::string name;
  double flop = 0;   // of one run; 0: a reading case
  double bytes = 0;  // read by one run
  std::function<void()> run;
  std::vector<double> seconds = {};
};

// All tensors of a case live as long as the program; values are small and normal.
class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), pool_(options.threads), context_{&pool_, cpu_features().best_isa(), native_arithmetic(cpu_features()), true} {
    if (options.dtype == DType::kF32) context_.arithmetic = Arithmetic::kFma1;
    set_floating_point_mode();
  }

  const KernelContext& context() const { return context_; }

  std::byte* allocate(int64_t bytes) { return buffers_.emplace_back(allocate_huge(bytes), &std::free).get(); }

  TensorView tensor(DType dtype, int64_t rows, int64_t columns) {
    TensorView view;
    view.dtype = dtype;
    view.num_dims = 2;
    view.dims = {rows, columns};
    view.row_stride = columns;
    view.data = allocate(rows * columns * dtype_bytes(dtype));
    const PhiloxStream stream(1, RandomPurpose::kInit, static_cast<uint32_t>(buffers_.size()), 0);
    constexpr int64_t kPeriod = 4093;
    float values[kPeriod];
    for (int64_t i = 0; i < kPeriod; ++i) values[i] = static_cast<float>(stream.uniform(i) - 0.5);
    for (int64_t i = 0; i < rows * columns; ++i) {
      if (dtype == DType::kBF16) view.as<uint16_t>()[i] = f32_to_bf16(values[i % kPeriod]);
      if (dtype == DType::kF32) view.as<float>()[i] = values[i % kPeriod];
      if (dtype == DType::kI32) view.as<int32_t>()[i] = static_cast<int32_t>(i * 31 % 251);
    }
    return view;
  }

  void op(std::string name, OpKind kind, double flop, std::vector<TensorView> inputs, std::vector<TensorView> outputs, const GradFold* fold = nullptr) {
    if (!wanted(name)) return;
    const KernelEntry& entry = cpu_kernel(kind, options_.dtype);
    const DeviceSpec device{context_.isa, context_.arithmetic, true, options_.threads};
    auto in = std::make_shared<std::vector<TensorView>>(std::move(inputs));
    auto out = std::make_shared<std::vector<TensorView>>(std::move(outputs));
    OpCall call;
    call.kind = kind;
    call.inputs = *in;
    call.outputs = *out;
    call.fold = fold;
    const int64_t bytes = entry.workspace_bytes(device, call);
    workspace_bytes_ = std::max(workspace_bytes_, bytes);
    cases_.push_back({std::move(name), flop, 0, [this, in, out, call, &entry]() mutable {
                        call.workspace = {workspace_, static_cast<size_t>(workspace_bytes_)};
                        entry.run(context_, call);
                      }});
  }

  void add(Case one) {
    if (wanted(one.name)) cases_.push_back(std::move(one));
  }

  bool wanted(const std::string& name) const { return name == "peak" || name.find(options_.only) != std::string::npos; }

  /// Whether a case whose name begins with `name` may be wanted: its tensors take time to make.
  bool wants_some_of(const std::string& name) const { return wanted(name) || options_.only.rfind(name, 0) == 0; }

  template <typename Body>
  void on_all_threads(Body&& body) {
    pool_.run(body);
  }

  void run() {
    workspace_ = allocate(workspace_bytes_);
    std::fill_n(workspace_, workspace_bytes_, std::byte{0});
    run_rounds(cases_, options_.rounds, {options_.cpu_clock, options_.threads});
  }

  void print() const {
    double peak = 0;
    for (const Case& one : cases_)
      if (one.name == "peak") peak = one.flop / median(one.seconds);
    fmt::print("processor: {}\narithmetic {}, {} threads, {} time, median of {} interleaved rounds\n\n", cpu_features().model_name,
               arithmetic_name(context_.arithmetic), options_.threads, options_.cpu_clock ? "processor" : "wall", options_.rounds);
    fmt::print("| case | ms | TFLOP/s | of peak | GB/s |\n|---|---|---|---|---|\n");
    for (const Case& one : cases_) {
      const double s = median(one.seconds);
      fmt::print("| {} | {:.3f} | {} | {} | {} |\n", one.name, s * 1e3, one.flop > 0 ? fmt::format("{:.2f}", one.flop / s * 1e-12) : "",
                 one.flop > 0 && peak > 0 ? fmt::format("{:.0f} %", 100 * one.flop / s / peak) : "",
                 one.bytes > 0 ? fmt::format("{:.1f}", one.bytes / s * 1e-9) : "");
    }
  }

 private:
  Options options_;
  ThreadPool pool_;
  KernelContext context_;
  std::vector<std::unique_ptr<std::byte, decltype(&std::free)>> buffers_;
  std::vector<Case> cases_;
  std::byte* workspace_ = nullptr;
  int64_t workspace_bytes_ = 64;
};

struct Layer {
  const char* name;
  int64_t m, k, n, sequences;
};

void add_layer(Bench& bench, const Layer& layer, DType dtype) {
  static std::vector<std::unique_ptr<GradFold>> folds;
  static const uint8_t kChain[16] = {0, 1,  // a step of one micro-batch: nothing to add to
                                      1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const std::string name = fmt::format("{} {}x{}x{}", layer.name, layer.m, layer.k, layer.n);
  if (!bench.wants_some_of(name)) return;
  const double flop = 2.0 * static_cast<double>(layer.m) * static_cast<double>(layer.k) * static_cast<double>(layer.n);
  const TensorView x = bench.tensor(dtype, layer.m, layer.k), w = bench.tensor(dtype, layer.n, layer.k), y = bench.tensor(dtype, layer.m, layer.n);
  const TensorView dw = bench.tensor(DType::kF32, layer.n, layer.k);
  folds.push_back(std::make_unique<GradFold>(GradFold{layer.sequences, layer.m / layer.sequences, kChain, false}));
  bench.op(name + " forward", OpKind::kLinear, flop, {x, w}, {y});
  bench.op(name + " dx", OpKind::kLinearGradInput, flop, {y, w}, {x});
  bench.op(name + " dweight", OpKind::kLinearGradWeight, flop, {y, x}, {dw}, folds.back().get());
}

void add_head(Bench& bench, const Layer& layer, DType dtype) {
  static std::vector<std::unique_ptr<GradFold>> folds;
  static const uint8_t kChain[16] = {0, 1,  // a step of one micro-batch: nothing to add to
                                      1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const std::string name = fmt::format("{} {}x{}x{}", layer.name, layer.m, layer.k, layer.n);
  if (!bench.wants_some_of(name)) return;
  const double flop = 2.0 * static_cast<double>(layer.m) * static_cast<double>(layer.k) * static_cast<double>(layer.n);
  const TensorView x = bench.tensor(dtype, layer.m, layer.k), w = bench.tensor(dtype, layer.n, layer.k), dx = bench.tensor(dtype, layer.m, layer.k);
  const TensorView dw = bench.tensor(DType::kF32, layer.n, layer.k), targets = bench.tensor(DType::kI32, layer.m, 1);
  const TensorView loss = bench.tensor(DType::kF32, layer.m, 1);
  folds.push_back(std::make_unique<GradFold>(GradFold{layer.sequences, layer.m / layer.sequences, kChain, false}));
  bench.op(name + " loss with gradients", OpKind::kLinearCrossEntropyWithGrad, 3 * flop,
           {x, w, targets}, {loss, dx, dw}, folds.back().get());
}

// Decoding: one pass over packed weights of `layers` matrices, more bytes than the caches hold, beside a plain read of them.
void add_decode(Bench& bench, int64_t n, int64_t k, int64_t layers, DType dtype, const char* where) {
  if (!bench.wanted(fmt::format("decode {}", where))) return;
  const int64_t bytes = packed_weight_bytes(dtype, n, k);
  std::byte* packed = bench.allocate(bytes * layers);
  const TensorView weight = bench.tensor(dtype, n, k);
  for (int64_t i = 0; i < layers; ++i) pack_weight(bench.context(), weight, packed + i * bytes);
  const double total = static_cast<double>(bytes * layers);
  bench.add({fmt::format("read loop {}", where), 0, total, [&bench, packed, bytes, layers] {
               bench.on_all_threads([&](int thread_index, int threads) {
                 const int64_t units = bytes * layers / 512;
                 const int64_t begin = units * thread_index / threads * 512, end = units * (thread_index + 1) / threads * 512;
                 keep(read_loop(packed + begin, end - begin));
               });
             }});
  for (int64_t m : {1, 4, 16}) {
    const TensorView x = bench.tensor(dtype, m, k), y = bench.tensor(dtype, m, n);
    const DeviceSpec device{bench.context().isa, bench.context().arithmetic, true, bench.context().pool->num_threads()};
    const int64_t workspace = linear_packed_workspace_bytes(device, dtype, m, n, k);
    std::byte* memory = bench.allocate(workspace);
    bench.add({fmt::format("decode {} {} rows {}x{}", where, m, k, n), 0, total, [&bench, packed, bytes, layers, n, x, y, memory, workspace] {
                 for (int64_t i = 0; i < layers; ++i)
                   linear_packed(bench.context(), x, packed + i * bytes, n, nullptr, y, {memory, static_cast<size_t>(workspace)});
               }});
  }
}

void add_peak(Bench& bench, const Options& options) {
  constexpr int64_t kSteps = 1000000;
  const RegisterLoop loop = register_loop(options.dtype);
  bench.add({"peak", static_cast<double>(kSteps) * options.threads * loop.flop_per_step, 0, [&bench, loop] { bench.on_all_threads([&](int, int) { loop.run(kSteps); }); }});
}

int run(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    std::string value;
    if (take(argv[i], "rounds", value))
      options.rounds = std::atoi(value.c_str());
    else if (take(argv[i], "threads", value))
      options.threads = std::atoi(value.c_str());
    else if (take(argv[i], "only", value))
      options.only = value;
    else if (take(argv[i], "dtype", value) && (value == "bf16" || value == "f32"))
      options.dtype = value == "f32" ? DType::kF32 : DType::kBF16;
    else if (take(argv[i], "clock", value) && (value == "wall" || value == "cpu"))
      options.cpu_clock = value == "cpu";
    else {
      fmt::print(stderr, "unknown argument {}; wanted --rounds= --threads= --only= --dtype=bf16|f32 --clock=wall|cpu\n", argv[i]);
      return 2;
    }
  }
  if (!cpu_features().avx512 || options.rounds < 1 || options.threads < 1) {
    fmt::print(stderr, "gemm_bench needs a processor with AVX-512, --rounds and --threads of at least 1\n");
    return 2;
  }
  Bench bench(options);
  add_peak(bench, options);
  for (const Layer& layer : {Layer{"gpt2 qkv", 2048, 768, 2304, 2}, {"gpt2 proj", 2048, 768, 768, 2}, {"gpt2 up", 2048, 768, 3072, 2},
                             {"gpt2 down", 2048, 3072, 768, 2}, {"llama-135m qkv", 2048, 576, 960, 2}, {"llama-135m gate_up", 2048, 576, 3072, 2},
                             {"llama-135m down", 2048, 1536, 576, 2}, {"llama-11m gate_up", 4096, 384, 2048, 8},
                             {"llama-11m down", 4096, 1024, 384, 8}, {"square", 2048, 2048, 2048, 2}})
    add_layer(bench, layer, options.dtype);
  for (const Layer& layer : {Layer{"gpt2 head", 2048, 768, 50257, 2}, {"llama-135m head", 2048, 576, 49152, 2}, {"llama-11m head", 4096, 384, 4096, 8}})
    add_head(bench, layer, options.dtype);
  add_decode(bench, 3072, 768, 8, options.dtype, "cached");
  add_decode(bench, 4096, 4096, 16, options.dtype, "512 MiB");
  bench.run();
  bench.print();
  return 0;
}

}  // namespace
}  // namespace orrery::bench

int main(int argc, char** argv) { return orrery::bench::run(argc, argv); }
