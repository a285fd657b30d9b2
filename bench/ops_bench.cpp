// Time and bytes a second of every op that is not a matrix product, on the shapes of a gpt2-124m micro-batch (4 x 512 tokens),
// beside what this machine's memory gives to a plain copy with the same threads. Attention is reported in milliseconds a layer.
//
//   ops_bench [threads] [filter]
//
// Bytes are what an op must move: operands read once, results written once. Each time is the best of several runs, with the
// operands rotated among copies that together exceed the cache that a step would have flushed (64 MiB).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "backend/kernel.h"
#include "base/bfloat16.h"
#include "base/philox.h"

namespace orrery {
namespace {

constexpr int64_t kTokens = 2048, kWidth = 768, kHeads = 12, kHeadDim = 64, kHidden = 3072, kVocab = 50304;
constexpr int64_t kRotateBytes = 64 << 20;

struct Buffer {
  std::byte* data = nullptr;
  explicit Buffer(int64_t bytes) : data(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {
    std::memset(data, 0, bytes);
  }
};

struct Spec {
  DType dtype;
  std::vector<int64_t> dims;
  enum Fill { kRandom, kIds, kPositions, kLengths, kScale, kHyper, kPositive } fill = kRandom;
};

int64_t bytes_of(const Spec& spec) {
  int64_t count = dtype_bytes(spec.dtype);
  for (int64_t dim : spec.dims) count *= dim;
  return count;
}

TensorView view_of(const Spec& spec, std::byte* data) {
  TensorView view;
  view.data = data;
  view.dtype = spec.dtype;
  view.num_dims = static_cast<int8_t>(spec.dims.size());
  std::copy(spec.dims.begin(), spec.dims.end(), view.dims.begin());
  view.row_stride = view.row_width();
  return view;
}

void fill(const Spec& spec, std::byte* data) {
  const PhiloxStream random(1, RandomPurpose::kInit, static_cast<uint32_t>(bytes_of(spec)), 0);
  const int64_t count = bytes_of(spec) / dtype_bytes(spec.dtype);
  for (int64_t i = 0; i < count; ++i) {
    const float value = spec.fill == Spec::kPositive ? random.uniform(i) + 0.5f : 2 * random.uniform(i) - 1;
    int32_t id = 0;
    if (spec.fill == Spec::kIds) id = static_cast<int32_t>(random.bits(i) % kVocab);
    if (spec.fill == Spec::kPositions) id = static_cast<int32_t>(i % 512);
    if (spec.fill == Spec::kLengths) id = static_cast<int32_t>(i * 512);
    switch (spec.dtype) {
      case DType::kBF16:
        reinterpret_cast<uint16_t*>(data)[i] = f32_to_bf16(value);
        break;
      case DType::kF32:
        reinterpret_cast<float*>(data)[i] = spec.fill == Spec::kScale ? 1.0f : value;
        break;
      case DType::kI32:
        reinterpret_cast<int32_t*>(data)[i] = id;
        break;
      default:
        break;
    }
  }
  if (spec.fill == Spec::kHyper) {
    const OptimizerHyper hyper{1e-4f, 0.9f, 0.95f, 1e-8f, 0.9f, 0.1f, 0.5f, 0.5f, 1.0f, 1.0f};
    std::memcpy(data, &hyper, sizeof hyper);
  }
}

struct Case {
  std::string name;
  OpKind kind;
  Attributes attributes;
  std::vector<Spec> inputs, outputs;
  double extra_bytes = 0;  // beside every operand once; negative when an operand is only partly touched
  double flops = 0;
};

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double best_time(const std::function<void(int)>& body, int num_copies) {
  double best = 1e9, spent = 0;
  for (int i = 0; i < 200 && (i < 2 * num_copies + 3 || spent < 0.15); ++i) {
    const double start = seconds_now();
    body(i % num_copies);
    const double time = seconds_now() - start;
    best = std::min(best, time);
    spent += time;
  }
  return best;
}

double run_case(const KernelContext& context, const Case& c) {
  int64_t total = 0;
  for (const Spec& spec : c.inputs) total += bytes_of(spec);
  for (const Spec& spec : c.outputs) total += bytes_of(spec);
  const int num_copies = static_cast<int>(std::clamp<int64_t>(kRotateBytes / total + 1, 1, 16));
  struct Copy {
    std::vector<TensorView> inputs, outputs;
  };
  std::vector<Copy> copies(num_copies);
  std::vector<std::byte*> owned;
  for (Copy& copy : copies) {
    for (int side = 0; side < 2; ++side)
      for (const Spec& spec : side == 0 ? c.inputs : c.outputs) {
        owned.push_back(Buffer(bytes_of(spec)).data);
        fill(spec, owned.back());
        (side == 0 ? copy.inputs : copy.outputs).push_back(view_of(spec, owned.back()));
      }
  }
  const uint8_t merges[] = {0, 1, 1, 1};
  const GradFold fold{4, kTokens / 4, merges, false};
  const KernelEntry& entry = cpu_kernel(c.kind, DType::kBF16);
  OpCall call{c.kind, copies[0].inputs, copies[0].outputs, &c.attributes, &fold, {}};
  const DeviceSpec device{context.isa, context.arithmetic, context.native_arithmetic, context.pool->num_threads()};
  const int64_t workspace = entry.workspace_bytes ? entry.workspace_bytes(device, call) : 0;
  owned.push_back(Buffer(workspace + 64).data);
  call.workspace = {owned.back(), static_cast<size_t>(workspace)};
  const double time = best_time(
      [&](int copy) {
        call.inputs = copies[copy].inputs;
        call.outputs = copies[copy].outputs;
        entry.run(context, call);
      },
      num_copies);
  for (std::byte* data : owned) std::free(data);
  return time;
}

std::vector<Case> cases() {
  const DType h = DType::kBF16, f = DType::kF32;
  const Spec x{h, {kTokens, kWidth}}, wide{h, {kTokens, kHidden}}, weight{h, {kWidth}}, sums{f, {kWidth}},
      column{f, {kTokens}, Spec::kPositive};
  const Spec ids{DType::kI32, {kTokens}, Spec::kIds}, positions{DType::kI32, {kTokens}, Spec::kPositions},
      table{f, {512, kHeadDim / 2, 2}};
  const Spec lengths{DType::kI32, {5}, Spec::kLengths}, lse{f, {kHeads, kTokens}, Spec::kPositive}, heads = x;
  const NormAttributes norm{1e-5f, kWidth};
  const RopeAttributes rope{kHeads, kHeads, kHeadDim, kHeadDim};
  const AttentionAttributes attention{.num_heads = kHeads, .num_kv_heads = kHeads, .head_dim = kHeadDim, .scale = 0.125f};
  const int64_t n = 16 << 20;
  const Spec gradient{f, {n}}, scale{f, {2}, Spec::kScale}, hyper{DType::kU8, {sizeof(OptimizerHyper)}, Spec::kHyper};
  const Spec high{h, {n}}, low{DType::kI16, {n}}, moment{f, {n}, Spec::kPositive}, moment16{h, {n}, Spec::kPositive};
  // Forward: q k and p v for half of 512 x 512 per segment and head; backward 2.5 times.
  const double attention_flops = 4.0 * 4 * kHeads * 512.0 * 512 / 2 * kHeadDim;
  std::vector<Case> list = {
      {"add", OpKind::kAdd, {}, {x, x}, {x}},
      {"silu", OpKind::kSilu, {}, {wide}, {wide}},
      {"gelu", OpKind::kGelu, {}, {wide}, {wide}},
      {"gelu_grad", OpKind::kGeluGrad, {}, {wide, wide}, {wide}},
      {"swiglu", OpKind::kSwiGlu, {}, {wide}, {{h, {kTokens, kHidden / 2}}}},
      {"swiglu_grad", OpKind::kSwiGluGrad, {}, {{h, {kTokens, kHidden / 2}}, wide}, {wide}},
      {"rms_norm", OpKind::kRmsNorm, norm, {x, weight}, {x, column}},
      {"add_rms_norm", OpKind::kAddRmsNorm, norm, {x, x, weight}, {x, x, column}},
      {"rms_norm_grad_add", OpKind::kRmsNormGradAdd, norm, {x, x, weight, column, x}, {x, sums}},
      {"layer_norm", OpKind::kLayerNorm, norm, {x, weight, weight}, {x, column, column}},
      {"add_layer_norm", OpKind::kAddLayerNorm, norm, {x, x, weight, weight}, {x, x, column, column}},
      {"layer_norm_grad", OpKind::kLayerNormGrad, norm, {x, x, weight, column, column}, {x, sums, sums}},
      {"layer_norm_grad_add", OpKind::kLayerNormGradAdd, norm, {x, x, weight, column, column, x}, {x, sums, sums}},
      {"split_rope", OpKind::kSplitRope, rope, {{h, {kTokens, 3 * kWidth}}, positions, table}, {x, x, x}},
      {"split_rope_grad", OpKind::kSplitRopeGrad, rope, {x, x, x, positions, table}, {{h, {kTokens, 3 * kWidth}}}},
      {"split", OpKind::kSplit, SplitAttributes{{kWidth, kWidth, kWidth}}, {{h, {kTokens, 3 * kWidth}}}, {x, x, x}},
      {"bias_grad", OpKind::kBiasGrad, {}, {wide}, {{f, {kHidden}}}},
      {"embedding", OpKind::kEmbedding, {}, {ids, {h, {kVocab, kWidth}}}, {x}, -(kVocab - kTokens) * kWidth * 2.0},
      // Touched rows of the table are written.
      {"embedding_grad", OpKind::kEmbeddingGrad, {}, {x, ids}, {{f, {kVocab, kWidth}}}, -(kVocab - kTokens) * kWidth * 4.0},
      {"accumulate", OpKind::kAccumulate, {}, {gradient}, {gradient}, n * 4.0},
      {"zero", OpKind::kZero, {}, {}, {gradient}},
      {"squared_sums", OpKind::kSquaredSums, {}, {gradient}, {{DType::kF64, {n / 4096}}}},
      {"adamw", OpKind::kAdamW, OptimizerAttributes{true}, {gradient, scale, hyper}, {high, low, moment, moment}, n * 12.0},
      {"adamw bf16 moments",
       OpKind::kAdamW,
       OptimizerAttributes{true},
       {gradient, scale, hyper},
       {high, low, moment16, moment16},
       n * 8.0},
      {"lion", OpKind::kLion, OptimizerAttributes{true}, {gradient, scale, hyper}, {high, low, moment}, n * 8.0},
      {"attention", OpKind::kAttention, attention, {heads, heads, heads, lengths}, {heads, lse}, 0, attention_flops},
      {"attention_grad",
       OpKind::kAttentionGrad,
       attention,
       {heads, heads, heads, heads, heads, lse, lengths},
       {heads, heads, heads},
       0,
       2.5 * attention_flops},
  };
  return list;
}

// GB/s of reading and writing (2 bytes moved for each copied) with the pool's threads.
double copy_rate(ThreadPool& pool) {
  constexpr int64_t kBytes = int64_t{128} << 20;
  const Buffer from(kBytes), to(kBytes);
  const double time = best_time(
      [&](int) {
        pool.parallel_for(kBytes, 4096,
                          [&](int64_t begin, int64_t end) { std::memcpy(to.data + begin, from.data + begin, end - begin); });
      },
      1);
  std::free(from.data);
  std::free(to.data);
  return 2.0 * kBytes / time * 1e-9;
}

}  // namespace
}  // namespace orrery

int main(int argc, char** argv) {
  using namespace orrery;
  const int num_threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const std::string filter = argc > 2 ? argv[2] : "";
  set_floating_point_mode();
  ThreadPool pool(num_threads);
  const CpuFeatures& features = cpu_features();
  const KernelContext context{&pool, features.best_isa(), native_arithmetic(features), true};
  std::printf("%s, %d threads, %s\ncopy                    %6.1f GB/s\n", features.model_name.c_str(), num_threads,
              std::string(arithmetic_name(context.arithmetic)).c_str(), copy_rate(pool));
  for (const Case& c : cases()) {
    if (!filter.empty() && c.name.find(filter) == std::string::npos) continue;
    double bytes = c.extra_bytes;
    for (const Spec& spec : c.inputs) bytes += static_cast<double>(bytes_of(spec));
    for (const Spec& spec : c.outputs) bytes += static_cast<double>(bytes_of(spec));
    const double time = run_case(context, c);
    std::printf("%-22s %8.3f ms %6.1f GB/s", c.name.c_str(), time * 1e3, bytes / time * 1e-9);
    if (c.flops > 0) std::printf(" %8.0f GFLOP/s", c.flops / time * 1e-9);
    std::printf("\n");
  }
}
