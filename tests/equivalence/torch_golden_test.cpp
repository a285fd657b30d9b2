// Orrery computes what PyTorch computes, as exactly: for each model of tests/golden/torch, logits, the gradients of the parameters and
// a 50-step loss curve lie within twice PyTorch's own distance from float64 (NUMERICS rule 14), in f32 and, but for the curve, in bf16.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <string_view>

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

// Tensor parallel: heads, MLP columns and the vocabulary of 97 shared by ranks; the same bounds. The worst tensor is printed.
using TensorParallel = TorchGolden;

TEST_P(TensorParallel, Gradients) {
  for (int tensor_size : {2, 4}) {
    // The grouped models have two kv heads.
    if (tensor_size == 4 && std::string_view(GetParam()) != "gpt2") continue;
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      Measurement worst{"", 0, 1};
      for (const Measurement& measurement : golden.gradients(dtype, tensor_size)) {
        expect_within(measurement, dtype);
        if (measurement.error / measurement.bound > worst.error / worst.bound) worst = measurement;
      }
      std::printf("%s on %d tensor ranks in %s: worst %s, distance %.3g of %.3g allowed\n", GetParam(), tensor_size, std::string(dtype_name(dtype)).c_str(), worst.name.c_str(), worst.error,
                  worst.bound);
    }
  }
}

// Norm, clipping and update of what ranks share and of what they all have.
using TensorParallelCurve = TorchGolden;

TEST_P(TensorParallelCurve, FiftySteps) {
  ASSERT_TRUE(golden.has_losses());
  for (const Measurement& measurement : golden.losses(2)) expect_within(measurement, DType::kF32);
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
INSTANTIATE_TEST_SUITE_P(Models, TensorParallel, ::testing::Values("gpt2", "llama", "qwen2", "llama3", "mistral"), kName);
INSTANTIATE_TEST_SUITE_P(Models, TensorParallelCurve, ::testing::Values("gpt2", "llama"), kName);
INSTANTIATE_TEST_SUITE_P(Models, TorchLogits, ::testing::Values("gemma3"), kName);
INSTANTIATE_TEST_SUITE_P(Models, TorchLossCurve, ::testing::Values("gpt2", "llama", "qwen3"), kName);

}  // namespace
}  // namespace orrery
