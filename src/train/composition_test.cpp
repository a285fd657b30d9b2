// Compositions of everything that a layout can be, against one rank, or where ranks share layers against the fewest that do so in the same way,
// which themselves lie near one rank (their gradients' bounds: tests/equivalence): a pairwise cover of all axes (each pair of values of two axes
// occurs, as far as it can be), and random ones on top up to 300. The default run takes every twelfth; ORRERY_COMPOSITIONS=all takes all
// (scripts/compositions.sh), ORRERY_COMPOSITION_STEPS=30 more steps of each than 3.
#include <algorithm>
#include <cstdlib>
#include <random>
#include <set>

#include "base/error.h"
#include "train/rank_group_testing.h"

namespace orrery {
namespace {

using testing::group_options;
using testing::Outcome;

struct Shape {
  ModelFamily family;
  bool tied;
  DType dtype;
  int64_t num_layers;
};
struct Pipe {
  PipelineKind kind;
  int64_t size, virtual_stages, micro_batch_group_size = 0;
};

const std::vector<Shape> kShapes = {{ModelFamily::kLlama, true, DType::kBF16, 5}, {ModelFamily::kLlama, false, DType::kF32, 7}, {ModelFamily::kGpt2, true, DType::kBF16, 6},
                                    {ModelFamily::kGpt2, false, DType::kBF16, 5}};
const std::vector<Pipe> kPipes = {{PipelineKind::k1F1B, 1, 1},  {PipelineKind::k1F1B, 2, 1},       {PipelineKind::k1F1B, 3, 1},       {PipelineKind::kGPipe, 2, 1},
                                  {PipelineKind::kGPipe, 4, 1}, {PipelineKind::kInterleaved, 2, 2}, {PipelineKind::kInterleaved, 2, 3}, {PipelineKind::kInterleaved, 2, 2, 4}, {PipelineKind::kZbH1, 2, 1},
                                  {PipelineKind::kZbH1, 4, 1},  {PipelineKind::kZbV, 2, 1},         {PipelineKind::kZbV, 3, 1},         {PipelineKind::kDualPipeV, 2, 1},
                                  {PipelineKind::kDualPipeV, 3, 1}};
const std::vector<int64_t> kDataSizes = {1, 2, 3, 4, 8};
const std::vector<int> kZeroStages = {0, 1, 2, 3};
// Of ZeRO-2 and 3: a group of all ranks; half of them, with a replica; weights that stay; none or two layers gathered ahead.
struct Sharding {
  int64_t groups = 1;
  bool reshard_after_forward = true;
  int prefetch = 1;
};
const std::vector<Sharding> kShardings = {{}, {2}, {1, false}, {1, true, 0}, {2, true, 2}};
const std::vector<int64_t> kMicroBatches = {1, 2, 3, 4, 16};
const std::vector<Recompute> kRecomputes = {Recompute::kNone, Recompute::kSelective, Recompute::kFull, Recompute::kBudget};
const std::vector<bool> kSplits = {false, true};  // by cost, or all layers but one on the outer stages

constexpr ContextMethod kUlysses = ContextMethod::kUlysses;
const std::vector<ParallelContext> kShares = {{},
                                              {.tensor_size = 2},
                                              {.tensor_size = 4},  // more than kv heads
                                              {.tensor_size = 2, .sequence_parallel = true},
                                              {.tensor_size = 4, .sequence_parallel = true},
                                              {.context_size = 2},
                                              {.context_size = 4},
                                              {.context_size = 2, .context_method = kUlysses},
                                              {.tensor_size = 2, .context_size = 2, .sequence_parallel = true},
                                              {.tensor_size = 2, .context_size = 2}};

// Of state, of activations, of weights too.
struct Offload {
  bool state = false, activations = false, weights = false;
};
const std::vector<Offload> kOffloads = {{}, {true}, {false, true}, {true, true, true}};

constexpr size_t kNumAxes = 10, kShareAxis = 7;
using Composition = std::array<size_t, kNumAxes>;  // an index on each axis
const std::array<size_t, kNumAxes> kAxisSizes = {kShapes.size(), kPipes.size(), kDataSizes.size(), kZeroStages.size(), kMicroBatches.size(), kRecomputes.size(), kSplits.size(), kShares.size(),
                                                 kShardings.size(), kOffloads.size()};

// Layers of each stage: the outer ones take what the inner ones, of one layer each, leave; the first one less.
std::vector<int64_t> uneven_split(int64_t num_layers, int64_t num_stages) {
  std::vector<int64_t> layers(static_cast<size_t>(num_stages), 1);
  const int64_t rest = num_layers - (num_stages - 2);
  layers.front() = std::max<int64_t>(0, rest / 2 - 1);
  layers.back() = rest - layers.front();
  return layers;
}

class CompositionTest : public testing::GroupTest {
 protected:
  TrainingPlanOptions options_of(const Composition& composition) const {
    const Shape& shape = kShapes[composition[0]];
    const Pipe& pipe = kPipes[composition[1]];
    TrainingPlanOptions options = group_options(shape.family, shape.tied, shape.dtype, dataset_);
    options.model.num_layers = shape.num_layers;
    options.pipeline = {pipe.size, 0, pipe.kind, pipe.virtual_stages, {}, {}, pipe.micro_batch_group_size};
    options.data = {kDataSizes[composition[2]], 0, kZeroStages[composition[3]]};
    const Sharding& sharding = kShardings[composition[8]];
    if (sharding.groups > 1) options.data.shard_group_size = options.data.size % sharding.groups == 0 ? options.data.size / sharding.groups : -1;
    options.data.reshard_after_forward = sharding.reshard_after_forward;
    options.data.prefetch = sharding.prefetch;
    options.micro_batch_size = kMicroBatches[composition[4]];
    options.recompute = kRecomputes[composition[5]];
    options.recompute_level = static_cast<int>(kRecomputeLevels * (composition[4] + 1) / kMicroBatches.size());  // a fifth of all steps to all
    const Offload& offload = kOffloads[composition[9]];
    options.optimizer.offload_piece_bytes = offload.state ? 1 << 16 : 0;
    options.optimizer.offload_weights = offload.weights;
    options.offload_activations = offload.activations;
    const bool is_v = pipe.kind == PipelineKind::kZbV || pipe.kind == PipelineKind::kDualPipeV;
    const int64_t num_stages = pipe.size * (is_v ? 2 : pipe.virtual_stages);
    options.parallel = kShares[composition[kShareAxis]];
    if (kSplits[composition[6]] && num_stages > 1) options.pipeline.stage_layers = uneven_split(shape.num_layers, num_stages);
    return options;
  }

  // Sizes that do not go together are refused, and are no case. Sixteen ranks are enough for two cores.
  bool exists(const Composition& composition) const {
    const TrainingPlanOptions options = options_of(composition);
    if (options.slice_size() == 1 || options.world_size() > 16) return false;
    try {
      make_training_plans(options, [](const Stage&, const Op&) { return 64; });
      return true;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidConfig) << error.what();
      return false;
    }
  }

  static Composition draw(std::mt19937_64& random) {
    Composition composition;
    for (size_t axis = 0; axis < kNumAxes; ++axis) composition[axis] = random() % kAxisSizes[axis];
    if (random() % 2 == 0) composition[kShareAxis] = 0;  // half against one rank
    return composition;
  }

  using Pairs = std::set<std::array<size_t, 4>>;  // (axis, value, later axis, value)
  static Pairs pairs_of(const Composition& composition) {
    Pairs pairs;
    for (size_t a = 0; a < kNumAxes; ++a)
      for (size_t b = a + 1; b < kNumAxes; ++b) pairs.insert({a, composition[a], b, composition[b]});
    return pairs;
  }

  // Greedy: of some candidates the one with most pairs that no earlier one has, until many draws find none.
  std::vector<Composition> cover(size_t at_least) const {
    constexpr int kCandidates = 12, kPatience = 40;
    std::mt19937_64 random(2026);
    std::vector<Composition> chosen;
    Pairs covered;
    for (int misses = 0; misses < kPatience || chosen.size() < at_least;) {
      std::vector<std::pair<size_t, Composition>> candidates;  // with the number of new pairs
      for (int i = 0; i < kCandidates; ++i) {
        const Composition candidate = draw(random);
        size_t fresh = 0;
        for (const auto& pair : pairs_of(candidate)) fresh += covered.count(pair) == 0;
        if (fresh > 0 || misses >= kPatience) candidates.emplace_back(fresh, candidate);
      }
      std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
      const auto best = std::find_if(candidates.begin(), candidates.end(), [&](const auto& candidate) { return exists(candidate.second); });
      if (best == candidates.end()) {
        ++misses;
        continue;
      }
      covered.merge(pairs_of(best->second));
      chosen.push_back(best->second);
    }
    return chosen;
  }
};

TEST_F(CompositionTest, EveryCompositionHasTheBitsOfItsReference) {
  const char* wanted = std::getenv("ORRERY_COMPOSITIONS");
  const char* wanted_steps = std::getenv("ORRERY_COMPOSITION_STEPS");
  const int num_steps = wanted_steps != nullptr ? std::max(1, std::atoi(wanted_steps)) : 3;
  const size_t stride = wanted != nullptr && std::string_view(wanted) == "all" ? 1 : 12;
  const std::vector<Composition> compositions = cover(300);
  ASSERT_GE(compositions.size(), 300u);
  std::map<std::pair<size_t, size_t>, Outcome> references;  // by shape and how layers are shared
  const auto reference_of = [&](size_t shape, size_t share) -> const Outcome& {
    const auto [reference, fresh] = references.try_emplace({shape, share});
    if (fresh) {
      Composition alone{};
      alone[0] = shape, alone[kShareAxis] = share;
      reference->second = train(options_of(alone), num_steps);
    }
    return reference->second;
  };
  size_t num_run = 0;
  for (size_t i = 0; i < compositions.size(); i += stride, ++num_run) {
    const Outcome &one_rank = reference_of(compositions[i][0], 0), &reference = reference_of(compositions[i][0], compositions[i][kShareAxis]);
    const double precision = kShapes[compositions[i][0]].dtype == DType::kBF16 ? 0x1p-8 : 0x1p-20;
    EXPECT_NEAR(reference.numbers[0], one_rank.numbers[0], precision * one_rank.numbers[0]);
    EXPECT_NEAR(reference.numbers[1], one_rank.numbers[1], 4 * precision * one_rank.numbers[1]);
    expect_equal(options_of(compositions[i]), reference, num_steps);
  }
  std::printf("%zu of %zu compositions run, %d steps each\n", num_run, compositions.size(), num_steps);
}

}  // namespace
}  // namespace orrery
