// Proves the optimizer ops against the f64 reference in all state types, that master weights survive as (high, low) pairs
// exactly as plain f32 weights would, that a skipped step leaves every bit, and that the norm follows its blocks of 4,096.
#include "backend/cpu/op_test_util.h"
#include "backend/reference/ops.h"

namespace orrery {
namespace {

using namespace test;
using reference::Array;

const OptimizerHyper kHyper{.lr = 1e-2f,
                            .beta1 = 0.9f,
                            .beta2 = 0.95f,
                            .eps = 1e-8f,
                            .momentum = 0.9f,
                            .weight_decay = 0.1f,
                            .bias_correction1 = 0.271f,
                            .bias_correction2 = 0.142625f,
                            .clip = 1.0f,
                            .loss_scale = 1.0f};

Tensor hyper_tensor(const OptimizerHyper& hyper) {
  Tensor tensor(DType::kU8, {sizeof hyper});
  std::memcpy(tensor.data(), &hyper, sizeof hyper);
  return tensor;
}

struct UpdateCase {
  OpKind kind;
  reference::OptimizerState (*oracle)(reference::OptimizerState, const Array&, const OptimizerHyper&, bool);
};
const UpdateCase kUpdates[] = {
    {OpKind::kAdamW, reference::adamw}, {OpKind::kSgd, reference::sgd}, {OpKind::kLion, reference::lion}};

// The state in the order of the op's outputs, from f32 masters.
std::vector<Tensor> make_state(OpKind kind, DType compute, DType moments, const Tensor& master, const Tensor& m,
                               const Tensor& v) {
  const int64_t n = master.size();
  std::vector<Tensor> state;
  if (compute == DType::kBF16) {
    state = {Tensor(DType::kBF16, {n}), Tensor(DType::kI16, {n})};
    for (int64_t i = 0; i < n; ++i) {
      state[0].as<uint16_t>()[i] = master_high(master.as<float>()[i]);
      state[1].as<int16_t>()[i] = master_low(master.as<float>()[i]);
    }
  } else {
    state = {master};
  }
  state.emplace_back(moments, std::vector<int64_t>{n});
  if (kind == OpKind::kAdamW) state.emplace_back(moments, std::vector<int64_t>{n});
  for (int64_t i = 0; i < n; ++i) {
    state[compute == DType::kBF16 ? 2 : 1].set(i, m.get(i));
    if (kind == OpKind::kAdamW) state.back().set(i, v.get(i));
  }
  return state;
}

Tensor joined(const std::vector<Tensor>& state) {
  if (state[0].dtype() == DType::kF32) return state[0];
  Tensor master(DType::kF32, {state[0].size()});
  for (int64_t i = 0; i < master.size(); ++i)
    master.as<float>()[i] = join_master(state[0].as<uint16_t>()[i], state[1].as<int16_t>()[i]);
  return master;
}

TEST(Optimizer, UpdatesFollowTheReference) {
  for (const UpdateCase& update : kUpdates)
    for (DType moments : kComputeTypes)
      for (bool decay : {false, true})
        for (int64_t n : {1, 17, 5003}) {
          const Tensor master = Tensor::random(DType::kF32, {n}, 1), gradient = Tensor::random(DType::kF32, {n}, 2, 100.0);
          // Moments that both types hold exactly, so that one reference serves both.
          Tensor m = Tensor::random(DType::kBF16, {n}, 3), v = Tensor::random(DType::kBF16, {n}, 4);
          for (int64_t i = 0; i < n; ++i) v.set(i, std::fabs(v.get(i)));
          const Tensor scale = [] {
            Tensor s(DType::kF32, {2});
            s.set(0, 0.01);
            s.set(1, 1);
            return s;
          }();
          const OptimizerAttributes attributes{decay};
          Tensor first_master;
          for (DType compute : kComputeTypes) {
            std::vector<Tensor> state = make_state(update.kind, compute, moments, master, m, v);
            run_everywhere(update.kind, compute, attributes, {gradient, scale, hyper_tensor(kHyper)}, state);
            Array scaled = gradient.array();
            for (double& g : scaled) g *= scale.get(0);
            const auto expected = update.oracle({master.array(), m.array(), v.array()}, scaled, kHyper, decay);
            // A weight of at most 2 takes a step of at most lr * (m / bc1) / sqrt(v / bc2), small beside it except where v is
            // small.
            double largest_step = 0;
            for (int64_t i = 0; i < n; ++i)
              largest_step = std::max(largest_step, std::fabs(expected.weight[i] - master.get(i)));
            expect_near(joined(state), expected.weight, 0, 16, 2 + largest_step, std::string(op_name(update.kind)) + " weight");
            expect_near(state[compute == DType::kBF16 ? 2 : 1], expected.m, 1, 8, 4, "m");
            if (update.kind == OpKind::kAdamW) expect_near(state.back(), expected.v, 1, 8, 4, "v");
            // bf16 compute keeps the very f32 master that f32 compute has.
            if (compute == DType::kBF16)
              first_master = joined(state);
            else
              EXPECT_TRUE(first_master.same_bits(state[0]));
          }
        }
}

TEST(Optimizer, SkippedStepChangesNothing) {
  const int64_t n = 1000;
  const Tensor master = Tensor::random(DType::kF32, {n}, 1), gradient = Tensor::filled(DType::kF32, {n}, NAN);
  const Tensor scale = Tensor::filled(DType::kF32, {2}, 0.0);
  for (const UpdateCase& update : kUpdates)
    for (DType compute : kComputeTypes) {
      const std::vector<Tensor> before = make_state(update.kind, compute, DType::kF32, master, master, master);
      std::vector<Tensor> state = before;
      run_everywhere(update.kind, compute, OptimizerAttributes{true}, {gradient, scale, hyper_tensor(kHyper)}, state);
      for (size_t i = 0; i < state.size(); ++i) EXPECT_TRUE(state[i].same_bits(before[i]));
    }
}

TEST(Optimizer, ZeroAndAccumulate) {
  for (int64_t n : {0, 1, 17, 20011}) {
    const Tensor source = Tensor::random(DType::kF32, {n}, 1), start = Tensor::random(DType::kF32, {n}, 2);
    std::vector<Tensor> destination = {start};
    run_everywhere(OpKind::kAccumulate, DType::kBF16, NoAttributes{}, {source}, destination);
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(destination[0].as<float>()[i], start.as<float>()[i] + source.as<float>()[i]);
    run_everywhere(OpKind::kZero, DType::kBF16, NoAttributes{}, {}, destination);
    EXPECT_EQ(max_abs(destination[0].array()), 0);
  }
}

TEST(Optimizer, Copy) {
  for (DType compute : kComputeTypes)
    for (int64_t n : {0, 1, 17, 20011}) {
      const Tensor source = Tensor::random(compute, {n}, 1);
      std::vector<Tensor> destination = {Tensor::random(compute, {n}, 2)};
      run_everywhere(OpKind::kCopy, compute, NoAttributes{}, {source}, destination);
      EXPECT_TRUE(destination[0].same_bits(source));
    }
}

TEST(Optimizer, SquaredSums) {
  for (int64_t n : {1, 100, 4096, 4097, 20000}) {
    const Tensor gradient = Tensor::random(DType::kF32, {n}, 1);
    std::vector<Tensor> sums = {Tensor(DType::kF64, {(n + 4095) / 4096})};
    run_everywhere(OpKind::kSquaredSums, DType::kF32, NoAttributes{}, {gradient}, sums);
    const Array expected = reference::squared_sums(gradient.array());
    // A chain of 256 additions in f64 and the lanes' tree.
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(sums[0].get(static_cast<int64_t>(i)), expected[i], 300 * 0x1p-53 * expected[i]);
  }
}

TEST(Optimizer, Scale) {
  const auto run = [](double sum0, double sum1, int32_t num_valid, float clip, float loss_scale) {
    Tensor sums(DType::kF64, {2});
    sums.set(0, sum0);
    sums.set(1, sum1);
    OptimizerHyper hyper = kHyper;
    hyper.clip = clip;
    hyper.loss_scale = loss_scale;
    std::vector<Tensor> outputs = {Tensor(DType::kF32, {2}), Tensor(DType::kF64, {4})};
    run_everywhere(OpKind::kOptimizerScale, DType::kBF16, NoAttributes{}, {sums, Tensor::ids({num_valid}), hyper_tensor(hyper)},
                   outputs);
    Array result = outputs[0].array();
    const Array stats = outputs[1].array();
    result.insert(result.end(), stats.begin(), stats.end());
    return result;
  };
  // sqrt(9e4 + 16e4) = 500 over 1,000 tokens: a mean gradient of norm 0.5.
  Array r = run(9e4, 16e4, 1000, 1.0f, 1.0f);
  EXPECT_EQ(r, (Array{static_cast<float>(1e-3), 1, 0.5, 1, 1000, 1}));
  r = run(9e4, 16e4, 1000, 0.25f, 1.0f);
  EXPECT_NEAR(r[3], 0.5, 1e-5);
  EXPECT_EQ(r[0], static_cast<float>(r[3] / 1000));
  r = run(9e4, 16e4, 1000, 0.0f, 2.0f);  // gradients were doubled, so the mean gradient is half
  EXPECT_EQ(r, (Array{static_cast<float>(1.0 / 2000), 1, 0.25, 1, 1000, 1}));
  r = run(9e4, 16e4, 0, 1.0f, 1.0f);
  EXPECT_EQ(r[1], 0);
  EXPECT_EQ(r[5], 0);
  r = run(NAN, 1, 10, 1.0f, 1.0f);
  EXPECT_EQ(r[1], 0);
  EXPECT_TRUE(std::isnan(r[2]));
  r = run(HUGE_VAL, 1, 10, 1.0f, 1.0f);
  EXPECT_EQ(r[1], 0);
}

}  // namespace
}  // namespace orrery
