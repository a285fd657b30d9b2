// Random compositions of schedules are planned, verified and executed symbolically in random order: no deadlock, and gradients that do
// not depend on the order. Then schedules are broken in every way: the verifier rejects each mutant, or the mutant proves harmless by
// ending with the same gradients in every order that was tried.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <random>
#include <string>

#include "ir/interpret_schedules.h"
#include "ir/verify_schedules.h"
#include "parallel/lower_pipeline.h"
#include "parallel/offload.h"
#include "parallel/shard.h"

namespace orrery {
namespace {

struct Composition {
  std::string text;
  std::vector<Schedule> ranks;
  ScheduleContext context;
};

int64_t draw(std::mt19937_64& random, int64_t low, int64_t high) { return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1)); }

// Blocks of some layers as far as shards see them: op by op the unit that it reads, or writes the gradients of. Every unit is written in one
// block. Slots are drawn: any that are not asked for two units at one time will do.
UnitUses draw_units(const Schedule& schedule, int32_t num_stages, bool partial_lanes, std::mt19937_64& random) {
  UnitUses uses;
  uses.blocks.resize(schedule.stage_of_chunk.size() * kNumPhases);
  const bool gradients = !schedule.rounds.empty(), weights = !gradients || draw(random, 0, 2) > 0;
  const int64_t num_weight_slots = draw(random, 1, 4), num_gradient_slots = draw(random, 1, 3);
  const bool splits = std::any_of(schedule.actions.begin(), schedule.actions.end(), [](const Action& action) { return action.kind == ActionKind::kBackwardInput; });
  const auto new_unit = [&] {
    const auto unit = static_cast<int32_t>(uses.gradient_slot.size());
    uses.weight_slot.push_back(weights ? static_cast<int32_t>(draw(random, 0, num_weight_slots - 1)) : -1);
    uses.gradient_slot.push_back(partial_lanes ? unit : static_cast<int32_t>(draw(random, 0, num_gradient_slots - 1)));
    return unit;
  };
  for (size_t chunk = 0; chunk < schedule.stage_of_chunk.size(); ++chunk) {
    const auto block = [&](Phase phase) -> std::vector<UnitUse>& { return uses.blocks[Stage::block_index(phase, static_cast<int32_t>(chunk))]; };
    std::map<Phase, int32_t> num_ops;
    const auto op = [&](Phase phase, int32_t unit, bool writes) {
      if (writes ? gradients : uses.weight_slot[static_cast<size_t>(unit)] >= 0) block(phase).push_back({unit, num_ops[phase], num_ops[phase] + static_cast<int32_t>(draw(random, 0, 1)), writes});
      num_ops[phase] += 2;
    };
    std::vector<int32_t> layers;
    for (int64_t layer = draw(random, 1, 4); layer > 0; --layer) layers.push_back(new_unit());
    for (int32_t unit : layers) op(Phase::kForward, unit, false);
    if (schedule.stage_of_chunk[chunk] + 1 == num_stages) {
      const int32_t head = new_unit();
      op(Phase::kForward, head, false);
      op(Phase::kForward, head, true);
    }
    std::reverse(layers.begin(), layers.end());
    for (int32_t unit : layers) {
      op(splits ? Phase::kBackwardInput : Phase::kBackward, unit, false);
      op(splits ? Phase::kBackwardWeight : Phase::kBackward, unit, true);
      if (splits) op(Phase::kBackwardInput, new_unit(), true);  // norms
    }
  }
  return uses;
}

// Some pieces of state, and some layers of each chunk whose activations leave: any windows that are in order.
StateOffload draw_state(std::mt19937_64& random) {
  StateOffload state;
  int32_t op = 1;
  for (int64_t i = draw(random, 1, 6); i > 0; --i) {
    OffloadPiece piece;
    piece.first_op = op;
    piece.last_op = op + static_cast<int32_t>(draw(random, 0, 2));
    op = piece.last_op + 1;
    state.pieces.push_back(piece);
  }
  state.slots.count = static_cast<int32_t>(draw(random, 1, std::min<int64_t>(3, static_cast<int64_t>(state.pieces.size()))));
  return state;
}

std::vector<ActivationGroup> draw_groups(const Schedule& schedule, std::mt19937_64& random) {
  std::vector<ActivationGroup> groups;
  for (size_t chunk = 0; chunk < schedule.stage_of_chunk.size(); ++chunk) {
    const auto num_layers = static_cast<int32_t>(draw(random, 0, 3));
    for (int32_t layer = 0; layer < num_layers; ++layer) {
      ActivationGroup group;
      group.chunk = static_cast<int32_t>(chunk);
      group.leaves_after = 3 * layer + static_cast<int32_t>(draw(random, 0, 2));
      group.gone_before = group.leaves_after + static_cast<int32_t>(draw(random, 1, 4));
      group.comes_after = 3 * (num_layers - 1 - layer) + static_cast<int32_t>(draw(random, 0, 2));
      group.needed_before = group.comes_after + static_cast<int32_t>(draw(random, 1, 4));
      groups.push_back(group);
    }
  }
  return groups;
}

// Between the last reductions and OPT: where there are more groups than one, the sums of each unit join.
void join_groups(Schedule& schedule, int32_t num_units, bool joins) {
  std::vector<int32_t> last(static_cast<size_t>(num_units), -1);
  for (size_t i = 0; i < schedule.actions.size(); ++i)
    if (const Action& action = schedule.actions[i]; action.kind == ActionKind::kReduceScatterGradients) last[static_cast<size_t>(action.unit)] = static_cast<int32_t>(i);
  Action update = schedule.actions.back();
  schedule.actions.pop_back();
  for (int32_t unit = 0; unit < num_units; ++unit) {
    Action join;
    join.kind = ActionKind::kAllReduceGradients;
    join.unit = unit;
    join.waits = {{.action = last[static_cast<size_t>(unit)]}};
    if (joins) schedule.actions.push_back(join);
    update.waits.push_back({.action = joins ? static_cast<int32_t>(schedule.actions.size()) - 1 : last[static_cast<size_t>(unit)]});
  }
  schedule.actions.push_back(update);
}

// Replicas of a pipeline, each with its share of the lanes, alone or in shard groups; the ranks of a replica are `data_parallel` apart or side
// by side.
Composition compose(std::mt19937_64& random) {
  PipelineOptions pipeline;
  pipeline.kind = static_cast<PipelineKind>(draw(random, 0, 6));
  pipeline.num_ranks = static_cast<int32_t>(draw(random, 1, 5));
  const bool v_shaped = pipeline.kind == PipelineKind::kZbV || pipeline.kind == PipelineKind::kDualPipeV;
  pipeline.chunks_per_rank = v_shaped ? 2 : pipeline.kind == PipelineKind::kInterleaved ? static_cast<int32_t>(draw(random, 1, 3)) : 1;
  const int32_t p = pipeline.num_ranks;
  LowerOptions options;
  options.spare_slots = static_cast<int32_t>(draw(random, 0, 2));
  const bool together = draw(random, 0, 1) == 1, shards = draw(random, 0, 1) == 1, offloads = draw(random, 0, 2) == 0;
  const bool weights_elsewhere = offloads && !shards && draw(random, 0, 1) == 1, offloads_activations = offloads && (weights_elsewhere || draw(random, 0, 1) == 1);
  pipeline.carries = pipeline.kind == PipelineKind::k2Bw && p > 1 && !shards && !weights_elsewhere;
  if (pipeline.kind == PipelineKind::kInterleaved && draw(random, 0, 1) == 1) pipeline.micro_batch_group_size = static_cast<int32_t>(draw(random, p, 2 * p + 1));
  Composition made;
  made.context.num_stages = p * pipeline.chunks_per_rank;
  // Sizes are drawn until the kind accepts every replica's number of micro-batches.
  for (;;) {
    const int64_t lanes = int64_t{1} << draw(random, 0, 3), per_lane = draw(random, 1, 3);
    const auto members = static_cast<int32_t>(draw(random, 1, std::min<int64_t>(3, lanes)));
    const auto groups = shards ? static_cast<int32_t>(draw(random, 1, std::min<int64_t>(2, lanes / members))) : 1;
    const int32_t replicas = members * groups;
    options.share = {.global_batch_size = lanes * per_lane, .lanes = lanes, .micro_batch_size = draw(random, 1, 2 * per_lane)};
    made.ranks.assign(static_cast<size_t>(p * replicas), {});
    made.context.lanes.assign(static_cast<size_t>(p * replicas), {});
    made.context.unit_uses.assign(shards || weights_elsewhere ? static_cast<size_t>(p * replicas) : 0, {});
    made.context.offload.assign(offloads ? static_cast<size_t>(p * replicas) : 0, {});
    made.context.activation_groups.assign(offloads ? static_cast<size_t>(p * replicas) : 0, {});
    const uint64_t offload_seed = random();
    made.text = fmt::format("{} p={} v={} replicas={} lanes={} x {} micro_batch_size={} spare={}{}{}", pipeline_name(pipeline.kind), p, pipeline.chunks_per_rank, replicas, lanes, per_lane,
                            options.share.micro_batch_size, options.spare_slots, shards ? fmt::format(" in groups of {}", members) : "", offloads ? " offloaded" : "");
    const uint64_t unit_seed = random();
    const auto place = [=](int32_t replica, int32_t rank) { return together ? replica * p + rank : rank * replicas + replica; };
    if (shards)
      made.context.group = [=](int32_t world_rank, const Action& action) {
        const int32_t replica = together ? world_rank / p : world_rank % replicas, rank = together ? world_rank % p : world_rank / replicas;
        std::vector<int32_t> group;
        if (action.kind == ActionKind::kAllReduceGradients)
          for (int32_t other = replica % members; other < replicas; other += members) group.push_back(place(other, rank));
        else
          for (int32_t member = 0; member < members; ++member) group.push_back(place(replica / members * members + member, rank));
        return group;
      };
    bool accepted = true;
    for (int32_t replica = 0; accepted && replica < replicas; ++replica) {
      const int32_t held_by = shards ? members : 1, first = replica / held_by * held_by;
      options.share.first_lane = first * lanes / replicas;
      options.share.num_lanes = (first + held_by) * lanes / replicas - options.share.first_lane;
      options.share.num_members = shards ? members : 0;
      options.share.member = replica % held_by;
      pipeline.num_micro_batches = static_cast<int32_t>(lane_folds(options.share).micro_batches.size());
      const int32_t m = pipeline.num_micro_batches, group = std::min(m, std::max(p, pipeline.micro_batch_group_size));
      accepted = (pipeline.kind != PipelineKind::kInterleaved || (m >= p && (m % group == 0 || m % group >= p))) && (pipeline.kind != PipelineKind::kDualPipeV || pipeline.num_micro_batches >= 2 * p) &&
                 (pipeline.kind != PipelineKind::k2Bw || pipeline.num_micro_batches >= p);
      if (!accepted) break;
      options.world_ranks.clear();
      for (int32_t rank = 0; rank < p; ++rank) options.world_ranks.push_back(place(replica, rank));
      const std::vector<Schedule> lowered = lower_pipeline(pipeline_order(pipeline), options);
      for (int32_t rank = 0; rank < p; ++rank) {
        const auto world_rank = static_cast<size_t>(options.world_ranks[static_cast<size_t>(rank)]);
        Schedule& schedule = made.ranks[world_rank] = lowered[static_cast<size_t>(rank)];
        if (shards) {
          std::mt19937_64 of_rank(unit_seed + static_cast<uint64_t>(rank));
          UnitUses& uses = made.context.unit_uses[world_rank] = draw_units(schedule, made.context.num_stages, options.share.micro_batch_size < per_lane, of_rank);
          shard_schedule(schedule, uses, static_cast<int>(draw(of_rank, 0, 2)));
          join_groups(schedule, static_cast<int32_t>(uses.gradient_slot.size()), groups > 1);
        }
        if (weights_elsewhere) {
          std::mt19937_64 of_rank(unit_seed + static_cast<uint64_t>(rank));
          UnitUses& uses = made.context.unit_uses[world_rank] = draw_units(schedule, made.context.num_stages, false, of_rank);
          shard_schedule(schedule, uses, static_cast<int>(draw(of_rank, 0, 2)), ActionKind::kFetchParameters);
        }
        if (offloads) {
          std::mt19937_64 of_rank(offload_seed + static_cast<uint64_t>(world_rank));
          offload_state(schedule, made.context.offload[world_rank] = draw_state(of_rank));
          if (offloads_activations) offload_activations(schedule, made.context.activation_groups[world_rank] = draw_groups(schedule, of_rank));
        }
        made.context.lanes[world_rank] = {options.share.first_lane, options.share.num_lanes};
      }
    }
    if (accepted) return made;
    // Small pipelines accept more batches; without this a deep dualpipe-v might never find one.
    if (draw(random, 0, 19) == 0) pipeline = {.num_ranks = p}, made.context.num_stages = p;
  }
}

TEST(ScheduleFuzz, TenThousandCompositionsVerifyAndRun) {
  std::map<std::string, int> kinds;
  int num_sharded = 0, num_offloaded = 0, num_carrying = 0, num_carrying_offloaded = 0;
  for (uint64_t seed = 0; seed < 10000; ++seed) {
    std::mt19937_64 random(seed);
    const Composition composition = compose(random);
    ++kinds[composition.text.substr(0, composition.text.find(' '))];
    num_sharded += !composition.context.unit_uses.empty();
    num_offloaded += !composition.context.offload.empty();
    num_carrying += composition.ranks.front().carries;
    num_carrying_offloaded += composition.ranks.front().carries && !composition.context.offload.empty();
    const auto problems = verify_schedules(composition.ranks, composition.context);
    ASSERT_TRUE(problems.empty()) << "seed " << seed << " " << composition.text << ": " << problems.front();
    const Interpretation one = interpret_schedules(composition.ranks, composition.context, 2 * seed);
    const Interpretation other = interpret_schedules(composition.ranks, composition.context, 2 * seed + 1);
    ASSERT_TRUE(one.finished && other.finished) << "seed " << seed << " " << composition.text << ": stuck at " << one.stuck << other.stuck;
    ASSERT_EQ(one.gradients, other.gradients) << "seed " << seed << " " << composition.text;
  }
  EXPECT_EQ(kinds.size(), 7u);
  EXPECT_GT(num_sharded, 4000);
  EXPECT_GT(num_offloaded, 3000);
  EXPECT_GT(num_carrying, 200);
  EXPECT_GT(num_carrying_offloaded, 30);
  for (const auto& [kind, count] : kinds) EXPECT_GT(count, 100) << kind;
}

// One change to one action; the name of what was done, empty when it changed nothing.
std::string mutate(std::vector<Schedule>& ranks, std::mt19937_64& random) {
  Schedule& schedule = ranks[static_cast<size_t>(draw(random, 0, static_cast<int64_t>(ranks.size()) - 1))];
  auto& actions = schedule.actions;
  const auto last = static_cast<int64_t>(actions.size()) - 1;
  const auto at = static_cast<size_t>(draw(random, 0, last));
  const auto shift_waits = [&](int32_t from, int32_t by) {
    for (Action& action : actions)
      for (Wait& wait : action.waits)
        if (wait.action >= from) wait.action += by;
  };
  switch (draw(random, 0, 13)) {
    case 0: {  // drop, with the waits on it
      for (Action& action : actions) std::erase_if(action.waits, [&](const Wait& wait) { return wait.action == static_cast<int32_t>(at); });
      actions.erase(actions.begin() + static_cast<int64_t>(at));
      shift_waits(static_cast<int32_t>(at) + 1, -1);
      return "drop";
    }
    case 1: {  // swap with another, each keeping its waits and what waits for it
      const auto other = static_cast<size_t>(draw(random, 0, last));
      if (other == at) return {};
      std::swap(actions[at], actions[other]);
      for (Action& action : actions)
        for (Wait& wait : action.waits) {
          if (wait.action == static_cast<int32_t>(at)) wait.action = static_cast<int32_t>(other);
          else if (wait.action == static_cast<int32_t>(other)) wait.action = static_cast<int32_t>(at);
        }
      return "swap";
    }
    case 2: insert_actions(schedule, static_cast<int32_t>(at), {actions[at]}); return "duplicate";
    case 3: {
      if (actions[at].waits.empty()) return {};
      actions[at].waits.erase(actions[at].waits.begin() + draw(random, 0, static_cast<int64_t>(actions[at].waits.size()) - 1));
      return "drop a wait";
    }
    case 4: {
      if (actions[at].waits.empty()) return {};
      actions[at].waits[0].action = static_cast<int32_t>(draw(random, 0, last));
      return "retarget a wait";
    }
    case 5: actions[at].slot = static_cast<int32_t>(draw(random, 0, 4)); return "another slot";
    case 6: actions[at].gradient_buffer = static_cast<int32_t>(draw(random, 0, 3)); return "another gradient buffer";
    case 7: actions[at].peer = static_cast<int32_t>(draw(random, 0, static_cast<int64_t>(ranks.size()))); return "another peer";
    case 8: actions[at].micro_batch = static_cast<int32_t>(draw(random, 0, static_cast<int64_t>(schedule.micro_batches.size()))); return "another micro-batch";
    case 9: {
      if (actions[at].merges.empty()) return {};
      if (draw(random, 0, 1) == 0) {
        actions[at].add_to_destination = !actions[at].add_to_destination;
      } else {
        uint8_t& merges = actions[at].merges[static_cast<size_t>(draw(random, 0, static_cast<int64_t>(actions[at].merges.size()) - 1))];
        merges = static_cast<uint8_t>(merges + (merges == 0 || draw(random, 0, 1) == 0 ? 1 : -1));
      }
      return "another fold";
    }
    case 10: actions[at].unit = static_cast<int32_t>(draw(random, 0, 6)); return "another unit";
    case 11: {
      if (schedule.rounds.empty()) return {};
      actions[at].round = static_cast<int32_t>(draw(random, 0, static_cast<int64_t>(schedule.rounds.size()) - 1));
      return "another round";
    }
    case 12: actions[at].next_step = !actions[at].next_step; return "another step";
    default: {
      actions[at].kind = static_cast<ActionKind>(draw(random, 0, static_cast<int64_t>(ActionKind::kRecvGradient)));
      return "another kind";
    }
  }
}

TEST(ScheduleFuzz, MutantsAreRejectedOrHarmless) {
  std::map<std::string, std::pair<int, int>> rejected_of;
  for (uint64_t seed = 0; seed < 6000; ++seed) {
    std::mt19937_64 random(seed + 1000000);
    const Composition composition = compose(random);
    std::vector<Schedule> mutant = composition.ranks;
    const std::string mutation = mutate(mutant, random);
    if (mutation.empty() || mutant == composition.ranks) continue;
    auto& [rejected, all] = rejected_of[mutation];
    ++all;
    if (!verify_schedules(mutant, composition.context).empty()) {
      ++rejected;
      continue;
    }
    const Interpretation wanted = interpret_schedules(composition.ranks, composition.context, 0);
    for (uint64_t interleaving = 1; interleaving <= 8; ++interleaving) {
      const Interpretation found = interpret_schedules(mutant, composition.context, interleaving);
      ASSERT_TRUE(found.finished) << "seed " << seed << " " << composition.text << ", " << mutation << ": stuck at " << found.stuck;
      ASSERT_EQ(found.gradients, wanted.gradients) << "seed " << seed << " " << composition.text << ", " << mutation;
    }
  }
  EXPECT_EQ(rejected_of.size(), 14u);
  for (const auto& [mutation, counts] : rejected_of) {
    EXPECT_GT(counts.second, 50) << mutation;
    EXPECT_GT(counts.first, 0) << mutation;
    std::printf("%-24s %4d of %4d rejected\n", mutation.c_str(), counts.first, counts.second);
  }
}

// The bytes of a message, of its other side, and of collectives.
TEST(ScheduleFuzz, SizesAndCollectivesThatDifferAreNamed) {
  auto ranks = lower_pipeline(pipeline_order({.num_ranks = 2, .num_micro_batches = 2}), {.share = {.global_batch_size = 2, .lanes = 2}});
  ScheduleContext context{.num_stages = 2};
  context.bytes = [](int32_t rank, const Action& action) { return int64_t{64} + (rank == 1 && action.kind == ActionKind::kRecvActivation && action.micro_batch == 1 ? 64 : 0); };
  auto problems = verify_schedules(ranks, context);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_EQ(problems[0], "rank 0 SF1>1 sends 64 bytes, rank 1 RF1<0 receives 128");
  context.bytes = nullptr;
  Action gather;
  gather.kind = ActionKind::kAllGatherParameters;
  for (Schedule& schedule : ranks)
    for (int32_t unit : {1, 0}) {
      gather.unit = unit;
      insert_actions(schedule, 0, {gather});
    }
  EXPECT_TRUE(verify_schedules(ranks, context).empty());
  std::swap(ranks[1].actions[0], ranks[1].actions[1]);
  problems = verify_schedules(ranks, context);
  ASSERT_FALSE(problems.empty());
  EXPECT_EQ(problems[0], "collective 0 of the group is rank 0 AG0 but rank 1 AG1");
  ranks[1].actions.erase(ranks[1].actions.begin());
  problems = verify_schedules(ranks, context);
  EXPECT_TRUE(std::any_of(problems.begin(), problems.end(), [](const std::string& text) { return text.find("rank 1 has no more") != std::string::npos; }));
}

// Waits between single ops: OPT sums squares, the exchange runs beside it, and the rest of OPT waits for it. No circle, though each
// action waits for the other.
TEST(ScheduleFuzz, WaitsBetweenOpsAreNotACycle) {
  auto ranks = lower_pipeline(pipeline_order({.num_ranks = 2, .num_micro_batches = 2}), {.share = {.global_batch_size = 2, .lanes = 2}});
  for (Schedule& schedule : ranks) {
    const auto optimizer = static_cast<int32_t>(schedule.actions.size()) - 1;
    Action exchange;
    exchange.kind = ActionKind::kExchangeSums;
    exchange.waits = {{.action = optimizer, .after_op = 3}};
    schedule.actions.push_back(exchange);
    schedule.actions[static_cast<size_t>(optimizer)].waits = {{.action = optimizer + 1, .before_op = 4}};
  }
  const ScheduleContext context{.num_stages = 2};
  EXPECT_TRUE(verify_schedules(ranks, context).empty());
  ranks[0].actions[ranks[0].actions.size() - 2].waits[0].before_op = 0;
  const auto problems = verify_schedules(ranks, context);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_NE(problems[0].find("rank 0 OPT"), std::string::npos) << problems[0];
  EXPECT_NE(problems[0].find("XS"), std::string::npos) << problems[0];
}

}  // namespace
}  // namespace orrery
