// Attention over the cache of a server, through the ops: keys and values are written, then read by one new row a sequence (decoding) or by a
// prompt of 512. Shapes are those of SmolLM2-135M, Gemma 3 270M, a Llama of a billion and a model without groups.
//   paged_bench [--threads=1] [--rounds=9] [--arithmetic=dp2|fma1|amx32] [--clock=cpu|wall]
// A line a shape and format of the cache. "cached": one sequence of 256 tokens again and again, which the first two caches hold; "memory": 32 such
// sequences in turn through layers that no cache holds; both in nanoseconds a key and kv head, kv_write of those 32 rows in microseconds.
// "prompt": 512 rows over as many tokens, milliseconds. Medians.
#include <fmt/core.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "backend/kernel.h"
#include "base/bfloat16.h"
#include "base/philox.h"
#include "ir/kv_format.h"
#include "timed_rounds.h"

namespace orrery::bench {
namespace {

constexpr int64_t kBlockTokens = 32, kContext = 256, kSequences = 32, kPrompt = 512;
constexpr int64_t kMemoryBytes = int64_t{256} << 20;  // of the layers that take turns

struct Shape {
  const char* name;
  int64_t num_heads, num_kv_heads, head_dim;
};
constexpr Shape kShapes[] = {{"9 heads of 64, 3 kv", 9, 3, 64}, {"4 heads of 256, 1 kv", 4, 1, 256}, {"32 heads of 64, 8 kv", 32, 8, 64}, {"12 heads of 64, 12 kv", 12, 12, 64}};

struct Case {
  std::string what;
  std::function<void()> run;
  std::vector<double> seconds = {};
};

TensorView view_of(void* data, DType dtype, std::vector<int64_t> dims) {
  TensorView view;
  view.data = static_cast<std::byte*>(data);
  view.dtype = dtype;
  view.num_dims = static_cast<int8_t>(dims.size());
  for (size_t i = 0; i < dims.size(); ++i) view.dims[i] = dims[i];
  view.row_stride = view.row_width();
  return view;
}

class Bench {
 public:
  Bench(int threads, Arithmetic arithmetic, BenchClock clock, int rounds) : pool_(threads), context_{&pool_, cpu_features().best_isa(), arithmetic, true}, clock_(clock), rounds_(rounds) {}

  void run(const Shape& shape, DType dtype, DType cache_dtype) {
    AttentionAttributes a;
    a.num_heads = static_cast<int32_t>(shape.num_heads), a.num_kv_heads = static_cast<int32_t>(shape.num_kv_heads), a.head_dim = static_cast<int32_t>(shape.head_dim);
    a.scale = 0.125f, a.block_tokens = kBlockTokens;
    const int64_t head_bytes = cache_dtype == DType::kI8 ? kv_int8_head_bytes(shape.head_dim) : shape.head_dim * dtype_bytes(cache_dtype);
    const int64_t row_bytes = shape.num_kv_heads * head_bytes, width = shape.num_kv_heads * shape.head_dim, most_rows = std::max(kPrompt, kSequences * kContext);
    const int64_t layer_slots = kSequences * kContext, layers = kMemoryBytes / (2 * layer_slots * row_bytes) + 1;
    std::byte *k_cache = allocate_huge(layers * layer_slots * row_bytes), *v_cache = allocate_huge(layers * layer_slots * row_bytes);
    std::byte* rows = allocate_huge(2 * most_rows * shape.num_heads * shape.head_dim * 4);
    std::byte* out = rows + most_rows * shape.num_heads * shape.head_dim * 4;
    const PhiloxStream stream(5, RandomPurpose::kInit, 1, 0);
    for (int64_t i = 0; i < most_rows * shape.num_heads * shape.head_dim; ++i) {
      const auto x = static_cast<float>(stream.uniform(static_cast<uint64_t>(i)) - 0.5);
      if (dtype == DType::kF32) reinterpret_cast<float*>(rows)[i] = x;
      else reinterpret_cast<uint16_t*>(rows)[i] = f32_to_bf16(x);
    }
    std::vector<int32_t> slots(static_cast<size_t>(layer_slots)), table(static_cast<size_t>(layer_slots / kBlockTokens)), starts(kSequences + 1);
    std::iota(slots.begin(), slots.end(), 0);
    std::iota(table.begin(), table.end(), 0);
    std::iota(starts.begin(), starts.end(), 0);
    const std::vector<int32_t> lengths(kSequences, kContext), prompt_starts = {0, kPrompt}, prompt_length = {kPrompt};
    std::vector<int32_t> last_slots;  // of each sequence's last token
    for (int32_t s = 0; s < kSequences; ++s) last_slots.push_back(s * static_cast<int32_t>(kContext) + static_cast<int32_t>(kContext) - 1);
    const Attributes attributes = a;

    const auto cache_of = [&](std::byte* cache, int64_t layer) {
      return view_of(cache + layer * layer_slots * row_bytes, cache_dtype, {layer_slots / kBlockTokens, kBlockTokens, row_bytes / dtype_bytes(cache_dtype)});
    };
    const auto call = [&](OpKind kind, std::vector<TensorView> inputs, std::vector<TensorView> outputs) {
      OpCall op;
      op.kind = kind, op.inputs = inputs, op.outputs = outputs, op.attributes = &attributes;
      const KernelEntry& kernel = cpu_kernel(kind, dtype);
      const int64_t bytes = kernel.workspace_bytes == nullptr ? 0 : kernel.workspace_bytes({context_.isa, context_.arithmetic, context_.native_arithmetic, pool_.num_threads()}, op);
      if (static_cast<int64_t>(workspace_.size()) < bytes + 64) workspace_.resize(static_cast<size_t>(bytes + 64));
      std::byte* aligned = workspace_.data() + (64 - reinterpret_cast<uintptr_t>(workspace_.data()) % 64) % 64;
      op.workspace = {aligned, static_cast<size_t>(bytes)};
      kernel.run(context_, op);
    };
    const auto write = [&](int64_t layer, std::vector<int32_t>& where) {
      const auto n = static_cast<int64_t>(where.size());
      const TensorView k = view_of(rows, dtype, {n, width});
      call(OpKind::kKvWrite, {k, k, view_of(where.data(), DType::kI32, {n})}, {cache_of(k_cache, layer), cache_of(v_cache, layer)});
    };
    const auto attend = [&](int64_t layer, int64_t sequences, const std::vector<int32_t>& lens, const std::vector<int32_t>& ends) {
      const int64_t n = ends[static_cast<size_t>(sequences)];
      const int64_t blocks = lens[0] / kBlockTokens;
      call(OpKind::kPagedAttention,
           {view_of(rows, dtype, {n, shape.num_heads * shape.head_dim}), cache_of(k_cache, layer), cache_of(v_cache, layer), view_of(table.data(), DType::kI32, {sequences, blocks}),
            view_of(const_cast<int32_t*>(lens.data()), DType::kI32, {sequences}), view_of(const_cast<int32_t*>(ends.data()), DType::kI32, {sequences + 1})},
           {view_of(out, dtype, {n, shape.num_heads * shape.head_dim})});
    };
    for (int64_t layer = 0; layer < layers; ++layer) write(layer, slots);

    constexpr int kRepeats = 200;
    std::vector<Case> cases;
    cases.push_back({"cached", [&] { for (int i = 0; i < kRepeats; ++i) attend(0, 1, lengths, starts); }});
    cases.push_back({"memory", [&] { for (int64_t layer = 0; layer < layers; ++layer) attend(layer, kSequences, lengths, starts); }});
    cases.push_back({"write", [&] { for (int64_t layer = 0; layer < layers; ++layer) write(layer, last_slots); }});
    cases.push_back({"prompt", [&] { attend(0, 1, prompt_length, prompt_starts); }});
    run_rounds(cases, rounds_, clock_);
    const auto of = [&](size_t i) { return median(cases[i].seconds); };
    const double pairs = static_cast<double>(kContext * shape.num_kv_heads);
    fmt::print("| {} | {} | {:.1f} | {:.1f} | {:.1f} | {:.2f} |\n", shape.name, dtype_name(cache_dtype), 1e9 * of(0) / kRepeats / pairs, 1e9 * of(1) / static_cast<double>(layers * kSequences) / pairs,
               1e6 * of(2) / static_cast<double>(layers), 1e3 * of(3));
    for (std::byte* memory : {k_cache, v_cache, rows}) std::free(memory);
  }

 private:
  ThreadPool pool_;
  KernelContext context_;
  BenchClock clock_;
  int rounds_;
  std::vector<std::byte> workspace_;
};

int run(int argc, char** argv) {
  int threads = 1, rounds = 9;
  Arithmetic arithmetic = native_arithmetic(cpu_features());
  BenchClock clock{.processor_time = true};
  for (int i = 1; i < argc; ++i) {
    std::string value;
    if (take(argv[i], "threads", value)) threads = std::max(1, std::atoi(value.c_str()));
    else if (take(argv[i], "rounds", value)) rounds = std::max(1, std::atoi(value.c_str()));
    else if (take(argv[i], "clock", value)) clock.processor_time = value == "cpu";
    else if (const auto named = take(argv[i], "arithmetic", value) ? parse_arithmetic(value) : std::nullopt) arithmetic = *named;
    else {
      fmt::print(stderr, "error: {} is not known; the flags are listed at the top of paged_bench.cpp\n", argv[i]);
      return 2;
    }
  }
  clock.threads = threads;
  set_floating_point_mode();
  Bench bench(threads, arithmetic, clock, rounds);
  fmt::print("{} by {}, {} thread{}\n\n| shape | cache | cached, ns | memory, ns | write, us | prompt, ms |\n|---|---|---|---|---|---|\n", vector_isa_name(cpu_features().best_isa()), arithmetic_name(arithmetic),
             threads, threads == 1 ? "" : "s");
  for (const Shape& shape : kShapes)
    for (const DType cache : {DType::kBF16, DType::kI8}) bench.run(shape, DType::kBF16, cache);
  return 0;
}

}  // namespace
}  // namespace orrery::bench

int main(int argc, char** argv) { return orrery::bench::run(argc, argv); }
