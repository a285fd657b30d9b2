// The search: the same winner as scoring everything on a reduced space, the same answer twice, limits respected, and a message that
// says the way out where nothing does.
#include "planner/search.h"

#include <gtest/gtest.h>

#include <cmath>

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
  request.deadline_seconds = 1;
  EXPECT_NE(message_of(request).find("fastest layout takes"), std::string::npos) << message_of(request);
  request = small_request();
  request.budget = 1;
  EXPECT_NE(message_of(request).find("cheapest costs"), std::string::npos);
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
