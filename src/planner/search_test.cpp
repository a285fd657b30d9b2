// The search: the same winner as scoring everything on a reduced space, the same answer twice, limits respected, and a message that
// says the way out where nothing does.
#include "planner/search.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "planner/goodput.h"

namespace orrery {
namespace {

SearchRequest small_request() {
  SearchRequest request;
  request.model = {.num_layers = 24, .hidden = 4096, .num_heads = 32, .num_kv_heads = 8, .head_dim = 128, .ffn_hidden = 14336, .vocab = 32000, .seq_len = 8192, .gated = true};
  request.global_batch = 256;
  request.total_tokens = 1e11;
  request.cluster = parse_cluster("[devices]\nkind = \"H100\"\ncount = 64\n[prices]\nper_device_hour = 2\nper_kwh = 0.1\n", "c.toml");
  return request;
}

SearchResult search(const SearchRequest& request) {
  SearchResult result;
  search_layouts(request, result);
  return result;
}

std::string message_of(const SearchRequest& request) {
  try {
    search(request);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Search, PruningKeepsTheWinners) {
  for (const Objective objective : {Objective::kTime, Objective::kCost, Objective::kEnergy, Objective::kMemory}) {
    SearchRequest request = small_request();
    request.objective = objective;
    const SearchResult pruned = search(request);
    request.prune = false;
    const SearchResult all = search(request);
    EXPECT_GE(all.considered, pruned.considered);
    ASSERT_EQ(pruned.best.size(), all.best.size());
    for (size_t i = 0; i < all.best.size(); ++i) ASSERT_EQ(layout_text(pruned.best[i].job.layout), layout_text(all.best[i].job.layout)) << i;
    EXPECT_LE(static_cast<int64_t>(pruned.best.size()), kFinalists);
  }
}

TEST(Search, EqualInputsGiveEqualPlans) {
  const SearchRequest request = small_request();
  const SearchResult a = search(request), b = search(request);
  EXPECT_EQ(search_to_json(request, a), search_to_json(request, b));
  EXPECT_EQ(search_to_html(request, a, ""), search_to_html(request, b, ""));
}

TEST(Search, EveryCandidateFitsAndDivides) {
  const SearchRequest request = small_request();
  const SearchResult result = search(request);
  for (const Candidate& c : result.best) {
    const JobLayout& l = c.job.layout;
    EXPECT_EQ(l.tp * l.pp * l.cp * l.dp, c.job.cluster.num_devices);
    EXPECT_EQ(l.dp * l.micro_batch * l.num_micro_batches, request.global_batch);
    EXPECT_LT(c.memory.total(), result.devices[0].memory_bytes);
    EXPECT_TRUE(std::isfinite(c.objective));
    EXPECT_LT(c.low_seconds, c.step.seconds);
    EXPECT_GT(c.high_seconds, c.step.seconds);
  }
}

TEST(Search, ImpossibleWishesSayTheWayOut) {
  SearchRequest request = small_request();
  // A missed limit: what was wanted, what the fastest and the cheapest layout take of both, and what helps against which.
  const auto has = [](const std::string& message, std::initializer_list<std::string_view> parts) {
    size_t at = 0;
    for (const std::string_view part : parts) {
      at = message.find(part, at);
      EXPECT_NE(at, std::string::npos) << part << " is not, or not there, in: " << message;
    }
  };
  request.limits.seconds = 60;
  has(message_of(request), {"no layout meets a deadline of 1m00s: on 64 H100 the fastest layout takes ", " and ", ", the cheapest layout takes ",
                            "; the run needs more time or more devices, or fewer tokens"});
  request.cluster = parse_cluster("[devices]\nkind = \"H100\"\ncount = 64\n", "c.toml");
  EXPECT_EQ(message_of(request).find("costs"), std::string::npos) << "without prices there is no talk of money: " << message_of(request);
  request = small_request();
  request.limits.money = 1;
  has(message_of(request), {"no layout meets a budget of 1: on 64 H100 the fastest layout takes ", "; the run needs more money or cheaper devices, or fewer tokens"});
  request.limits.seconds = 60;
  has(message_of(request), {"no layout meets a deadline of 1m00s and a budget of 1: ", "; the run needs more time or more devices, and more money or cheaper devices, or fewer tokens"});
  // Each limit by itself can be met, by the fastest layout and by the cheapest, but no layout meets both.
  request = small_request();
  const Candidate fastest = search(request).best.front();
  request.objective = Objective::kCost;
  const Candidate cheapest = search(request).best.front();
  ASSERT_LT(cheapest.money, fastest.money);
  request.limits.seconds = fastest.run_seconds * (1 + 1e-9), request.limits.money = cheapest.money * (1 + 1e-9);
  has(message_of(request), {"no layout meets a deadline of ", " together: on 64 H100", "; the run needs more of one of them, or fewer tokens"});
  // Energy: what the thriftiest layout takes is enough, less is not.
  request = small_request();
  request.objective = Objective::kEnergy;
  const double least_kwh = search(request).best.front().kwh;
  request.limits.kwh = least_kwh * (1 + 1e-9);
  for (const Candidate& c : search(request).best) EXPECT_LE(c.kwh, request.limits.kwh);
  request.limits.kwh = least_kwh * (1 - 1e-9);
  has(message_of(request), {"no layout meets ", " kWh of energy: on 64 H100 the fastest layout takes ", ", the thriftiest layout takes ", " kWh; the run needs more energy or thriftier devices, or fewer tokens"});
  request = small_request();
  request.model.num_layers = 400, request.model.hidden = 32768, request.model.num_heads = 256, request.model.ffn_hidden = 131072;
  EXPECT_NE(message_of(request).find("smallest cluster of them that would hold it has"), std::string::npos) << message_of(request);
  // That many devices hold it, one host fewer do not.
  const std::string message = message_of(request);
  const int64_t devices = std::stoll(message.substr(message.rfind(' ') + 1));
  request.front = false;
  request.cluster.devices[0].count = devices;
  EXPECT_EQ(message_of(request), "");
  request.cluster.devices[0].count = devices - request.cluster.devices[0].per_node;
  EXPECT_NE(message_of(request), "");
  request = small_request();
  request.global_batch = 0;
  EXPECT_NE(message_of(request), "");
  request.global_batch = 5;
  request.cluster.devices[0].count = request.cluster.devices[0].per_node = 7;
  request.model.num_heads = request.model.num_kv_heads = request.model.num_layers = 1;
  EXPECT_NE(message_of(request).find("divides"), std::string::npos);
}

// budget.memory bounds the tensors of a rank on every device; one that asks for more than there is changes nothing; what does not fit says by which limit.
TEST(Search, AMemoryBudgetIsKept) {
  const SearchRequest usual = small_request();
  const SearchResult all = search(usual);
  SearchRequest request = usual;
  request.memory.fraction = 1;
  EXPECT_EQ(search_to_json(request, search(request)), search_to_json(usual, all));
  EXPECT_EQ(search_to_text(request, search(request), true), search_to_text(usual, all, true));
  for (const MemoryBudget& memory : {MemoryBudget{.bytes = 6.0 * (1 << 30)}, MemoryBudget{.fraction = 0.075}}) {
    request.memory = memory;
    const double limit = memory.capacity_bytes(all.devices[0]);
    EXPECT_DOUBLE_EQ(limit, 6.0 * (1 << 30));  // of 80 GiB
    const SearchResult result = search(request);
    for (const Candidate& c : result.best) EXPECT_LE(c.memory.total(), limit) << layout_text(c.job.layout);
    EXPECT_GT(result.best.front().run_seconds, all.best.front().run_seconds) << "the best of all needs more";
    const std::string text = search_to_text(request, result, true);
    EXPECT_NE(text.find("of 6.00 GiB (" + memory.text() + ") on the fullest H100"), std::string::npos) << text;
    EXPECT_NE(text.find("does not fit into " + memory.text() + ": at least "), std::string::npos) << text;
  }
  request.memory = {.bytes = 1 << 20};
  const std::string message = message_of(request);
  EXPECT_NE(message.find("than the fullest of 64 H100 has for tensors (1.00 MiB, budget.memory = 1.00 MiB); raise budget.memory, or: "), std::string::npos) << message;
}

// Ulysses: a context rank gets heads and kv heads of its own, so its number divides what tensor ranks leave of both (here 32 and 8).
TEST(Search, UlyssesSharesHeads) {
  SearchRequest request = small_request();
  request.model.seq_len = 65536, request.global_batch = 32;
  request.fixed.context_method = ContextMethod::kUlysses;
  double most = 0;
  for (const Candidate& c : search(request).best) {
    const JobLayout& l = c.job.layout;
    EXPECT_EQ(l.context_method, ContextMethod::kUlysses);
    EXPECT_EQ(std::fmod(std::max(1.0, 8 / l.tp), l.cp), 0) << layout_text(l);
    EXPECT_EQ(layout_text(l).find("(ulysses)") != std::string::npos, l.cp > 1) << layout_text(l);
    most = std::max(most, l.cp);
  }
  EXPECT_GT(most, 1) << "no layout shares a sequence";
  request.fixed.cp = 16;
  const std::string message = message_of(request);
  EXPECT_NE(message.find("context_parallel_size = 16 does not divide the heads and kv heads of a rank; use one of 2, 4, 8, or context_method = \"ring\""), std::string::npos) << message;
}

TEST(Search, WhatIsFixedStays) {
  SearchRequest request = small_request();
  request.fixed = {.tp = 8, .cp = 1, .dp = 4, .micro_batch = 2, .zero = ZeroStage::kOptimizer, .schedule = PipelineSchedule::kZeroBubbleH1, .recompute = RecomputeKind::kSelective, .sequence_parallel = false};
  for (const Candidate& c : search(request).best) {
    const JobLayout& l = c.job.layout;
    EXPECT_EQ(std::tuple(l.tp, l.pp, l.cp, l.dp, l.micro_batch), std::tuple(8, 2, 1, 4, 2));
    EXPECT_EQ(l.zero, ZeroStage::kOptimizer);
    EXPECT_EQ(l.schedule, PipelineSchedule::kZeroBubbleH1);
    EXPECT_EQ(l.recompute, RecomputeKind::kSelective);
    EXPECT_FALSE(l.sequence_parallel);
  }
  request.fixed = {.cp = 4, .shard_size = 4, .zero = ZeroStage::kFull};
  for (const Candidate& c : search(request).best) EXPECT_EQ(std::pair(c.job.layout.cp, c.job.layout.shard_size), std::pair(4.0, 4.0));
  const std::pair<FixedLayout, const char*> kImpossible[] = {{{.tp = 3}, "use one of 1, 2, 4, 8, 16, 32"}, {{.pp = 25}, "use at most 24"}, {{.cp = 3}, "into 6 chunks"}, {{.dp = 7}, "does not divide the batch"},
                                                             {{.pp = 3}, "use 48 of the devices"}};
  for (const auto& [fixed, way_out] : kImpossible) {
    request.fixed = fixed;
    EXPECT_NE(message_of(request).find(way_out), std::string::npos) << message_of(request);
  }
}

TEST(Search, RanksCutTheModelAsARunDoes) {
  // Ranks of a layout share kv heads wholly and columns evenly, also where heads alone would allow more, and tokens where norms are shared.
  SearchRequest request = small_request();
  request.model.num_heads = 24, request.model.num_kv_heads = 6, request.model.ffn_hidden = 14334, request.model.seq_len = 4098;
  for (const Candidate& c : search(request).best) {
    EXPECT_TRUE(c.job.layout.tp == 1 || c.job.layout.tp == 2) << layout_text(c.job.layout);
    EXPECT_EQ(c.job.layout.cp, 1);
  }
  request.model.seq_len = 4097;
  for (const Candidate& c : search(request).best) EXPECT_FALSE(c.job.layout.sequence_parallel);
}

TEST(Search, ABatchThatDoesNotDivideSaysWhichWould) {
  SearchRequest request = small_request();
  request.cluster.devices[0].count = 1000;
  const std::string message = message_of(request);
  EXPECT_NE(message.find("a multiple of 25, or 960 of the devices"), std::string::npos) << message;
  request.global_batch = 25;
  EXPECT_EQ(message_of(request), "");
  request = small_request();
  request.cluster.devices[0].count = 960;
  EXPECT_EQ(message_of(request), "");
}

TEST(Search, WhatCostsNothingIsExplained) {
  SearchRequest request = small_request();
  request.objective = Objective::kCost;
  request.cluster = parse_cluster("[[devices]]\nkind = \"H100\"\ncount = 16\nper_device_hour = 0\n[[devices]]\nkind = \"A100\"\ncount = 16\nper_device_hour = 1\n", "c.toml");
  const SearchResult result = search(request);
  const std::string text = search_to_text(request, result, true);
  EXPECT_EQ(text.find("nan"), std::string::npos) << text;
  EXPECT_EQ(text.find("inf"), std::string::npos) << text;
  // Of layouts that cost nothing the fastest is best.
  for (const Candidate& c : result.best) EXPECT_LE(result.best.front().run_seconds, c.run_seconds);
}

TEST(Search, ARunThatFaultsMoreThanItWorksIsRefused) {
  SearchRequest request = small_request();
  request.cluster.failures = {.device_mtbf_hours = 1, .restart_seconds = 1e6};
  EXPECT_NE(message_of(request).find("failures.device_mtbf_hours"), std::string::npos) << message_of(request);
}

TEST(Search, AFailedHostLeavesAPlan) {
  SearchResult result;
  replan_after_loss(small_request(), 0, 1, result);
  EXPECT_LE(result.best.front().job.cluster.num_devices, 56);
  EXPECT_THROW(replan_after_loss(small_request(), 0, 8, result), Error);
}

TEST(Goodput, WorkedExamples) {
  // M = 11,135 s (Llama 3's rate of faults on 16,384 devices), C = 60 s, R = 600 s: an interval of 1,116 s keeps 0.853.
  const FailureModel llama{11135, 60, 600};
  EXPECT_NEAR(best_checkpoint_interval(llama), 1116, 2);
  EXPECT_NEAR(goodput(llama, best_checkpoint_interval(llama)), 0.853, 0.002);
  EXPECT_EQ(best_checkpoint_interval({10, 100, 0}), 10);
  // The interval is the best one to within a percent of its neighbours.
  const double best = goodput(llama, best_checkpoint_interval(llama));
  EXPECT_GT(best * 1.0001, goodput(llama, best_checkpoint_interval(llama) * 1.3));
  EXPECT_GT(best * 1.0001, goodput(llama, best_checkpoint_interval(llama) / 1.3));
}

}  // namespace
}  // namespace orrery
