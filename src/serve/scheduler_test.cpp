// The scheduler and the block manager under random traffic from a seed: a fake model draws each token as a function of (sequence,
// position), so that every sequence must end with the same tokens whatever was batched, chunked, cached, drafted or preempted, and every
// key that a step reads must have been written under that sequence's own tokens.
#include "serve/scheduler.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"

namespace orrery {
namespace {

// Small alphabets repeat, so lookup drafts hit and prefixes are shared.
int32_t token_at(uint64_t id, int64_t position) { return static_cast<int32_t>((id % 3 * 7 + static_cast<uint64_t>(position / 2)) % 5); }

struct Traffic {
  SchedulerOptions options;
  Scheduler scheduler;
  // By slot of the cache: hash of the tokens up to and including the one whose key lies there.
  std::vector<uint64_t> cache;
  std::map<uint64_t, int64_t> wanted;  // live sequences: total length at the end
  std::map<uint64_t, SequenceSpec> specs;

  explicit Traffic(const SchedulerOptions& o) : options(o), scheduler(o), cache(static_cast<size_t>(o.num_blocks * o.block_tokens)) {}

  static uint64_t extend(uint64_t hash, int32_t token) { return (hash ^ static_cast<uint64_t>(token + 1)) * 0x9E3779B97F4A7C15ull + 1; }

  void add(uint64_t id, int64_t prompt, int64_t total, int priority, const std::string& tenant, const std::string& salt) {
    SequenceSpec spec{id, {}, priority, tenant, salt};
    for (int64_t i = 0; i < prompt; ++i) spec.prompt.push_back(static_cast<int32_t>(i % 4));
    wanted[id] = total;
    specs[id] = spec;
    scheduler.add(std::move(spec));
  }

  // One step of the fake model. Returns the ids that ran.
  std::vector<uint64_t> step() {
    const std::vector<StepItem> items = scheduler.schedule();
    int64_t tokens = 0, rows = 0;
    std::vector<uint64_t> ids;
    for (const StepItem& item : items) {
      tokens += item.count;
      rows += item.samples ? 1 + static_cast<int64_t>(item.draft.size()) : 0;
      ids.push_back(item.id);
      std::vector<int32_t> input = scheduler.tokens(item.id);
      const auto length = static_cast<int64_t>(input.size());
      input.insert(input.end(), item.draft.begin(), item.draft.end());
      EXPECT_EQ(item.samples, item.first + item.count == static_cast<int64_t>(input.size()));
      const BlockTable& table = scheduler.block_table(item.id);
      const auto slot = [&](int64_t p) { return static_cast<size_t>(table.blocks[static_cast<size_t>(p / options.block_tokens)] * options.block_tokens + p % options.block_tokens); };
      uint64_t hash = 1;
      for (const char c : specs[item.id].cache_salt) hash = extend(hash, c);
      for (int64_t p = 0; p < item.first + item.count; ++p) {
        hash = extend(hash, input[static_cast<size_t>(p)]);
        if (p >= item.first) cache[slot(p)] = hash;
        EXPECT_EQ(cache[slot(p)], hash) << "sequence " << item.id << " reads a foreign key at " << p;
      }
      std::vector<int32_t> sampled;
      if (item.samples)
        for (size_t k = 0; k <= item.draft.size(); ++k) {
          sampled.push_back(token_at(item.id, length + static_cast<int64_t>(k)));
          if (k == item.draft.size() || sampled.back() != item.draft[k]) break;
        }
      while (length + static_cast<int64_t>(sampled.size()) > wanted[item.id]) sampled.pop_back();
      scheduler.complete(item, sampled);
      if (static_cast<int64_t>(scheduler.tokens(item.id).size()) == wanted[item.id]) finish(item.id);
    }
    EXPECT_LE(tokens, options.max_tokens);
    EXPECT_LE(rows, options.max_rows);
    EXPECT_LE(scheduler.num_running(), options.max_sequences);
    scheduler.blocks().check_invariants();
    return ids;
  }

  void finish(uint64_t id) {
    const std::vector<int32_t>& tokens = scheduler.tokens(id);
    for (size_t p = specs[id].prompt.size(); p < tokens.size(); ++p) ASSERT_EQ(tokens[p], token_at(id, static_cast<int64_t>(p)));
    wanted.erase(id);
    EXPECT_TRUE(scheduler.remove(id));
  }
};

SchedulerOptions small_options() {
  SchedulerOptions options;
  options.max_tokens = 24;
  options.prefill_chunk = 8;
  options.max_sequences = 6;
  options.max_rows = 12;
  options.num_blocks = 20;
  options.block_tokens = 4;
  options.speculative_tokens = 3;
  return options;
}

TEST(Scheduler, RandomTrafficKeepsEverySequencesTokens) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    SchedulerOptions options = small_options();
    options.prefix_cache = seed % 4 != 0;
    options.speculative_tokens = static_cast<int64_t>(seed % 3) * 2;
    Traffic traffic(options);
    uint64_t next_id = 1;
    for (int round = 0; round < 200; ++round) {
      if (random() % 3 == 0) {
        const auto prompt = static_cast<int64_t>(1 + random() % 40);
        traffic.add(next_id++, prompt, prompt + 1 + static_cast<int64_t>(random() % 30), static_cast<int>(random() % 3), random() % 2 ? "a" : "b", random() % 4 ? "" : "salt");
      }
      if (random() % 16 == 0 && !traffic.wanted.empty()) {
        auto victim = traffic.wanted.begin();
        std::advance(victim, static_cast<int64_t>(random() % traffic.wanted.size()));
        EXPECT_TRUE(traffic.scheduler.remove(victim->first));
        traffic.wanted.erase(victim);
      }
      traffic.step();
    }
    for (int round = 0; round < 20000 && !traffic.wanted.empty(); ++round) traffic.step();
    EXPECT_TRUE(traffic.wanted.empty()) << "some sequence never ended";
    EXPECT_EQ(traffic.scheduler.blocks().num_used(), 0);
    EXPECT_EQ(traffic.scheduler.num_running() + traffic.scheduler.num_waiting(), 0);
  }
}

TEST(Scheduler, PreemptsTheLastInLineAndBringsItBack) {
  SchedulerOptions options = small_options();
  options.num_blocks = 8;
  options.speculative_tokens = 0;
  Traffic traffic(options);
  traffic.add(1, 8, 30, 0, "", "");
  traffic.add(2, 8, 30, 0, "", "");
  while (!traffic.wanted.empty()) traffic.step();
  EXPECT_GT(traffic.scheduler.counters().preemptions, 0);
}

TEST(Scheduler, PriorityBeforeArrivalAndTenantsShare) {
  SchedulerOptions options = small_options();
  options.max_sequences = 1;
  Traffic traffic(options);
  for (uint64_t id = 1; id <= 4; ++id) traffic.add(id, 4, 6, 0, "greedy", "");
  traffic.add(5, 4, 6, 0, "modest", "");
  traffic.add(6, 4, 6, -1, "greedy", "");
  std::vector<uint64_t> order;
  while (!traffic.wanted.empty())
    for (const uint64_t id : traffic.step())
      if (order.empty() || order.back() != id) order.push_back(id);
  EXPECT_EQ(order, (std::vector<uint64_t>{6, 5, 1, 2, 3, 4}));
}

TEST(Scheduler, APromptIsReadFromTheCacheOnlyUnderItsOwnSalt) {
  SchedulerOptions options = small_options();
  Traffic traffic(options);
  traffic.add(1, 13, 14, 0, "", "x");
  traffic.step();
  traffic.add(2, 13, 15, 0, "", "x");
  traffic.add(3, 13, 15, 0, "", "y");
  traffic.step();
  EXPECT_EQ(traffic.scheduler.cached_tokens(2), 12);
  EXPECT_EQ(traffic.scheduler.cached_tokens(3), 0);
}

TEST(Scheduler, ALongPromptDoesNotHoldUpDecoding) {
  SchedulerOptions options = small_options();
  options.speculative_tokens = 0;
  Traffic traffic(options);
  traffic.add(1, 1, 20, 0, "", "");
  traffic.step();
  traffic.add(2, 40, 41, 0, "", "");
  for (int i = 0; i < 5; ++i) {
    const auto ids = traffic.step();
    EXPECT_EQ(std::count(ids.begin(), ids.end(), 1u), 1) << "the decoding sequence missed a step";
  }
}

TEST(ProposeByLookup, ContinuesTheLastOccurrence) {
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 1, 2, 3};
  EXPECT_EQ(propose_by_lookup(tokens, 2), (std::vector<int32_t>{6, 7}));
  EXPECT_TRUE(propose_by_lookup(std::vector<int32_t>{1, 2, 3, 4}, 4).empty());
  EXPECT_TRUE(propose_by_lookup(tokens, 0).empty());
}

}  // namespace
}  // namespace orrery
