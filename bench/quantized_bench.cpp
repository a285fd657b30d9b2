// Products with quantized weights beside the processor's peak of vpdpbusd and a read loop over the same bytes, in rounds that go through all
// cases in turn; medians. A case is what decoding or a prompt does with the weights of a model of 135 million numbers: every linear layer
// once, its rows quantized, multiplied and rounded to bf16. Weights together are more than the caches hold.
//   quantized_bench [--threads=1] [--rounds=5] [--only=Q8_0] [--rows=32] [--model=135m|1b] [--clock=cpu|wall]
// --model=1b: four layers of the shapes of a Llama of a billion.
// Processor time by default, for machines that others use too: what was preempted is not counted, what memory made it wait is.
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "backend/kernel.h"
#include "base/philox.h"
#include "gemm_loops.h"
#include "ir/weight_format.h"
#include "timed_rounds.h"

namespace orrery::bench {
namespace {

struct Options {
  int threads = 1, rounds = 5;
  std::string only;
  int64_t rows = 0;  // 0: all counts
  bool one_billion = false, cpu_clock = true;
};

// The shapes of SmolLM2-135M: q, k and v; the output of attention; gate and up; down.
struct Shape {
  int64_t n, k;
};
constexpr Shape kShapes[] = {{960, 576}, {576, 576}, {3072, 576}, {576, 1536}};
// K types have blocks of 256, so theirs is the nearest such shape.
constexpr Shape kShapesOf256[] = {{960, 512}, {576, 512}, {3072, 512}, {576, 1536}};
constexpr Shape kShapesOf1B[] = {{3072, 2048}, {2048, 2048}, {16384, 2048}, {2048, 8192}};
constexpr int64_t kMostRows = 512, kMostColumns = 16384, kMostDepth = 8192;

struct Case {
  std::string name;
  int64_t rows;
  double multiply_adds, bytes;
  std::function<void()> run;
  std::vector<double> seconds = {};
};

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options), pool_(options.threads), context_{&pool_, cpu_features().best_isa(), native_arithmetic(cpu_features()), true} {
    set_floating_point_mode();
  }

  void add_peak() {
    constexpr int64_t kSteps = 4000000;
    cases_.push_back({"peak", 0, kMultiplyAddsPerDotStep * kSteps * options_.threads, 0, [this] { pool_.run([&](int, int) { sink_ = dot_register_loop(kSteps); }); }});
  }

  void add_format(WeightFormat format) {
    const WeightFormatInfo info = weight_format_info(format);
    if (info.name.find(options_.only) == std::string_view::npos) return;
    const std::span<const Shape> shapes = options_.one_billion ? std::span(kShapesOf1B) : info.scales == ScaleKind::kBlock ? std::span(kShapes) : std::span(kShapesOf256);
    const int64_t layers = options_.one_billion ? 4 : 30;
    int64_t layer_bytes = 0;
    double numbers = 0;
    for (const Shape& shape : shapes) {
      layer_bytes += quantized_weight_bytes(format, shape.n, shape.k);
      numbers += static_cast<double>(shape.n * shape.k * layers);
    }
    const int64_t bytes = layer_bytes * layers;
    // Small scales whatever the bytes mean: halves of 0x1c1c are 0.004.
    std::byte* weights = allocate_huge(bytes);
    std::fill_n(weights, bytes, std::byte{0x1c});
    cases_.push_back({fmt::format("{} read loop", info.name), 0, 0, static_cast<double>(bytes), [this, weights, bytes] {
                        pool_.run([&](int thread, int threads) {
                          const int64_t part = bytes / threads / 512 * 512;
                          sink_ = static_cast<int64_t>(read_loop(weights + part * thread, part));
                        });
                      }});
    for (int64_t rows : {1, 4, 8, 16, 32, 512}) {
      if (options_.rows != 0 && rows != options_.rows) continue;
      cases_.push_back({fmt::format("{}", info.name), rows, numbers * static_cast<double>(rows), static_cast<double>(bytes), [this, format, weights, rows, shapes, layers] {
                          const std::byte* at = weights;
                          for (int64_t layer = 0; layer < layers; ++layer)
                            for (const Shape& shape : shapes) {
                              product(format, at, shape, rows);
                              at += quantized_weight_bytes(format, shape.n, shape.k);
                            }
                        }});
    }
  }

  void run() { run_rounds(cases_, options_.rounds, {options_.cpu_clock, options_.threads}); }

  void print() const {
    double peak = 0;
    for (const Case& one : cases_)
      if (one.name == "peak") peak = one.multiply_adds / median(one.seconds);
    fmt::print("processor: {}\n{} threads, {} time, median of {} interleaved rounds; peak {:.0f} G multiply-adds/s\n\n", cpu_features().model_name, options_.threads,
               options_.cpu_clock ? "processor" : "wall", options_.rounds, peak * 1e-9);
    fmt::print("| case | rows | ms | us a row | of peak | GB/s |\n|---|---|---|---|---|---|\n");
    for (const Case& one : cases_) {
      if (one.name == "peak") continue;
      const double s = median(one.seconds);
      fmt::print("| {} | {} | {:.2f} | {} | {} | {:.1f} |\n", one.name, one.rows > 0 ? std::to_string(one.rows) : "", 1e3 * s,
                 one.rows > 0 ? fmt::format("{:.0f}", 1e6 * s / static_cast<double>(one.rows)) : "", one.rows > 0 ? fmt::format("{:.0f} %", 100 * one.multiply_adds / s / peak) : "",
                 one.bytes / s * 1e-9);
    }
  }

 private:
  void product(WeightFormat format, const std::byte* weights, Shape shape, int64_t rows) {
    const TensorView x = view(DType::kBF16, rows, shape.k, x_), y = view(DType::kBF16, rows, shape.n, y_);
    TensorView weight;
    weight.data = const_cast<std::byte*>(weights);
    weight.dtype = DType::kU8;
    weight.num_dims = 1;
    weight.dims[0] = quantized_weight_bytes(format, shape.n, shape.k);
    weight.row_stride = 1;
    const TensorView inputs[] = {x, weight};
    const Attributes attributes = PackedLinearAttributes{shape.n, shape.k, {{format, shape.n}}};
    OpCall call;
    call.kind = OpKind::kLinearPacked;
    call.inputs = inputs;
    call.outputs = {&y, 1};
    call.attributes = &attributes;
    const KernelEntry& entry = cpu_kernel(OpKind::kLinearPacked, DType::kBF16);
    const int64_t bytes = entry.workspace_bytes({context_.isa, context_.arithmetic, true, options_.threads}, call);
    if (bytes > workspace_bytes_) {
      std::free(workspace_);
      workspace_ = allocate_huge(bytes);
      workspace_bytes_ = bytes;
    }
    call.workspace = {workspace_, static_cast<size_t>(bytes)};
    entry.run(context_, call);
  }
  static TensorView view(DType dtype, int64_t rows, int64_t columns, std::byte* data) {
    TensorView view;
    view.data = data;
    view.dtype = dtype;
    view.num_dims = 2;
    view.dims = {rows, columns};
    view.row_stride = columns;
    return view;
  }

  Options options_;
  ThreadPool pool_;
  KernelContext context_;
  std::vector<Case> cases_;
  std::byte *x_ = filled(kMostRows * kMostDepth * 2), *y_ = allocate_huge(kMostRows * kMostColumns * 2), *workspace_ = nullptr;
  int64_t workspace_bytes_ = 0;
  volatile int64_t sink_ = 0;

  // bf16 numbers about 1.
  static std::byte* filled(int64_t bytes) {
    std::byte* memory = allocate_huge(bytes);
    const PhiloxStream stream(1, RandomPurpose::kInit, 0, 0);
    for (int64_t i = 0; i < bytes / 2; ++i) reinterpret_cast<uint16_t*>(memory)[i] = static_cast<uint16_t>(0x3f00 + static_cast<int>(256 * stream.uniform(static_cast<uint64_t>(i))));
    return memory;
  }
};

int run(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    std::string value;
    if (take(argv[i], "threads", value))
      options.threads = std::atoi(value.c_str());
    else if (take(argv[i], "rounds", value))
      options.rounds = std::atoi(value.c_str());
    else if (take(argv[i], "only", value))
      options.only = value;
    else if (take(argv[i], "rows", value))
      options.rows = std::atoi(value.c_str());
    else if (take(argv[i], "model", value) && (value == "135m" || value == "1b"))
      options.one_billion = value == "1b";
    else if (take(argv[i], "clock", value) && (value == "wall" || value == "cpu"))
      options.cpu_clock = value == "cpu";
    else {
      fmt::print(stderr, "unknown argument {}; wanted --threads= --rounds= --only= --rows= --model=135m|1b --clock=cpu|wall\n", argv[i]);
      return 2;
    }
  }
  if (!cpu_features().avx512 || options.rounds < 1 || options.threads < 1) {
    fmt::print(stderr, "quantized_bench needs a processor with AVX-512, --rounds and --threads of at least 1\n");
    return 2;
  }
  Bench bench(options);
  bench.add_peak();
  for (WeightFormat format : {WeightFormat::kQ8_0, WeightFormat::kQ4_0, WeightFormat::kQ4_1, WeightFormat::kQ5_0, WeightFormat::kQ4_K, WeightFormat::kQ5_K, WeightFormat::kQ6_K}) bench.add_format(format);
  bench.run();
  bench.print();
  return 0;
}

}  // namespace
}  // namespace orrery::bench

int main(int argc, char** argv) { return orrery::bench::run(argc, argv); }
