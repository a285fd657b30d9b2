// Orrery computes what PyTorch computes, as exactly: for each model of tests/golden/torch, logits, the gradients of the parameters and
// a 50-step loss curve lie within twice PyTorch's own distance from float64 (NUMERICS rule 14), in f32 and, but for the curve, in bf16.
#include <gtest/gtest.h>

#include <cstdio>
#include <ostream>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/golden.h"
#include "equivalence/golden_case.h"

namespace orrery {
namespace {

void expect_within(const Measurement& m, DType compute_dtype) {
  EXPECT_TRUE(m.within()) << m.name << " in " << dtype_name(compute_dtype) << ": distance from float64 " << m.error << ", allowed " << m.bound << " (norm " << m.exact_norm << ")";
}

class TorchGolden : public ::testing::TestWithParam<const char*> {
 protected:
  GoldenCase golden{golden_path(std::string("torch/") + GetParam()), /*num_threads=*/1};
};

TEST_P(TorchGolden, Logits) {
  for (DType dtype : {DType::kF32, DType::kBF16}) expect_within(golden.logits(dtype), dtype);
}

TEST_P(TorchGolden, Gradients) {
  for (DType dtype : {DType::kF32, DType::kBF16})
    for (const Measurement& measurement : golden.gradients(dtype)) expect_within(measurement, dtype);
}

struct SharedLayers {
  const char* model;
  ParallelContext parallel;
};
std::string name_of(const ParallelContext& parallel) {
  return fmt::format("tensor{}{}Context{}{}", parallel.tensor_size, parallel.sequence_parallel ? "Sequence" : "", parallel.context_size,
                     parallel.context_size > 1 ? context_method_name(parallel.context_method) : "");
}
std::ostream& operator<<(std::ostream& out, const SharedLayers& shared) { return out << shared.model << " " << name_of(shared.parallel); }

// Ranks that share the layers: heads, columns and a vocabulary of 97 by tensor ranks, tokens by context ranks and between the products. The
// same bounds. The worst tensor is printed.
class LayersShared : public ::testing::TestWithParam<SharedLayers> {
 protected:
  GoldenCase golden{golden_path(std::string("torch/") + GetParam().model), /*num_threads=*/1};
};

TEST_P(LayersShared, Gradients) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Measurement worst{"", 0, 1};
    for (const Measurement& measurement : golden.gradients(dtype, GetParam().parallel)) {
      expect_within(measurement, dtype);
      if (measurement.error / measurement.bound > worst.error / worst.bound) worst = measurement;
    }
    std::printf("%s %s in %s: worst %s, distance %.3g of %.3g allowed\n", GetParam().model, name_of(GetParam().parallel).c_str(), std::string(dtype_name(dtype)).c_str(), worst.name.c_str(), worst.error,
                worst.bound);
  }
}

// Norm, clipping and update of what ranks share and of what they all have.
using LayersSharedCurve = LayersShared;

TEST_P(LayersSharedCurve, FiftySteps) {
  ASSERT_TRUE(golden.has_losses());
  for (const Measurement& measurement : golden.losses(GetParam().parallel)) expect_within(measurement, DType::kF32);
}

// gemma3: read from GGUF, served, not trained. A window of 7 in six of seven layers, two rope tables, one kv head.
using TorchLogits = TorchGolden;

TEST_P(TorchLogits, Logits) {
  for (DType dtype : {DType::kF32, DType::kBF16}) expect_within(golden.logits(dtype), dtype);
}

using TorchLossCurve = TorchGolden;

TEST_P(TorchLossCurve, FiftySteps) {
  ASSERT_TRUE(golden.has_losses());
  for (const Measurement& measurement : golden.losses()) expect_within(measurement, DType::kF32);
}

// gpt2: learned positions, biases. llama: grouped heads, tied. qwen3: q and k norms, head_dim 24 of hidden 64 and 4 heads, untied.
// qwen2: biases on q, k, v. llama3: rope scaling. mistral: a window of 7 in 32 tokens.
constexpr auto kName = [](const auto& model) { return model.param; };
INSTANTIATE_TEST_SUITE_P(Models, TorchGolden, ::testing::Values("gpt2", "llama", "qwen3", "qwen2", "llama3", "mistral"), kName);
constexpr auto kSharedName = [](const auto& shared) { return std::string(shared.param.model) + name_of(shared.param.parallel); };
constexpr ParallelContext tensor(int64_t size, bool sequence_parallel = false) { return {.tensor_size = size, .sequence_parallel = sequence_parallel}; }
constexpr ParallelContext context(int64_t size, ContextMethod method = ContextMethod::kRing, int64_t tensor_size = 1, bool sequence_parallel = false) {
  return {.tensor_size = tensor_size, .context_size = size, .sequence_parallel = sequence_parallel, .context_method = method};
}
// With four tensor ranks neighbours share one of the two kv heads of the grouped models.
INSTANTIATE_TEST_SUITE_P(Models, LayersShared,
                         ::testing::Values(SharedLayers{"gpt2", tensor(2)}, SharedLayers{"gpt2", tensor(4)}, SharedLayers{"llama", tensor(2)}, SharedLayers{"llama", tensor(4)},
                                           SharedLayers{"qwen3", tensor(2)}, SharedLayers{"qwen3", tensor(4)}, SharedLayers{"qwen2", tensor(2)}, SharedLayers{"qwen2", tensor(4)},
                                           SharedLayers{"llama3", tensor(2)}, SharedLayers{"mistral", tensor(2)}),
                         kSharedName);
// mistral's window of 7 is shorter than a chunk on two ranks and longer on four.
INSTANTIATE_TEST_SUITE_P(Context, LayersShared,
                         ::testing::Values(SharedLayers{"gpt2", context(2)}, SharedLayers{"gpt2", context(4)}, SharedLayers{"gpt2", context(4, ContextMethod::kUlysses)}, SharedLayers{"llama", context(2)},
                                           SharedLayers{"llama", context(4)}, SharedLayers{"llama", context(8)}, SharedLayers{"llama", context(2, ContextMethod::kUlysses)},
                                           SharedLayers{"qwen3", context(2)}, SharedLayers{"mistral", context(2)}, SharedLayers{"mistral", context(4)},
                                           SharedLayers{"mistral", context(2, ContextMethod::kUlysses)}, SharedLayers{"gpt2", context(2, ContextMethod::kRing, 2)},
                                           SharedLayers{"qwen3", context(2, ContextMethod::kRing, 4)}, SharedLayers{"gpt2", context(2, ContextMethod::kUlysses, 2)}),
                         kSharedName);
INSTANTIATE_TEST_SUITE_P(Sequence, LayersShared,
                         ::testing::Values(SharedLayers{"gpt2", tensor(2, true)}, SharedLayers{"gpt2", tensor(4, true)}, SharedLayers{"llama", tensor(2, true)}, SharedLayers{"llama", tensor(4, true)},
                                           SharedLayers{"qwen3", tensor(4, true)}, SharedLayers{"qwen2", tensor(2, true)}, SharedLayers{"llama3", tensor(2, true)},
                                           SharedLayers{"mistral", context(2, ContextMethod::kRing, 2, true)}, SharedLayers{"qwen3", context(2, ContextMethod::kRing, 4, true)},
                                           SharedLayers{"gpt2", context(2, ContextMethod::kUlysses, 2, true)}),
                         kSharedName);
INSTANTIATE_TEST_SUITE_P(Models, LayersSharedCurve, ::testing::Values(SharedLayers{"gpt2", tensor(2)}, SharedLayers{"llama", tensor(2)}, SharedLayers{"qwen3", tensor(4)}, SharedLayers{"llama", context(2)},
                                           SharedLayers{"gpt2", context(2, ContextMethod::kUlysses, 2, true)}),
                         kSharedName);
INSTANTIATE_TEST_SUITE_P(Models, TorchLogits, ::testing::Values("gemma3"), kName);
INSTANTIATE_TEST_SUITE_P(Models, TorchLossCurve, ::testing::Values("gpt2", "llama", "qwen3"), kName);

}  // namespace
}  // namespace orrery
