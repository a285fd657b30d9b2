// What must happen before what in a set of schedules, one a rank: the order of each stream, waits, messages and collectives as edges
// between points in time. The verifier asks it for order, the interpreter walks it at random, the grid takes longest paths in it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ir/offload.h"
#include "ir/parameter_unit.h"
#include "ir/schedule.h"

namespace orrery {

/// What a schedule does not say itself: who takes part in a collective, and how long messages are.
struct ScheduleContext {
  /// World ranks of the group of a collective of this rank, ascending; empty function: all ranks.
  std::function<std::vector<int32_t>(int32_t rank, const Action& action)> group;
  /// Of a kPoint or kCollective action as this rank sees it; both ends have to agree. Empty function: not compared.
  std::function<int64_t(int32_t rank, const Action& action)> bytes;
  int32_t num_stages = 1;
  bool delays_gradients = false;  // forwards and backwards read the weights of the update before (NUMERICS rule 15); always so where schedules carry
  /// By rank, the lanes it holds, or that its shard group holds in turns: the sums that reach OPT have to be theirs. Empty: every rank holds all
  /// lanes of its schedule.
  std::vector<LaneRange> lanes;
  /// By rank, where schedules have rounds: which units its ops use.
  std::vector<UnitUses> unit_uses;
  std::vector<StateOffload> offload;  // by rank; empty where none offloads
  std::vector<std::vector<ActivationGroup>> activation_groups;  // by rank; empty where none offloads
};

struct ActionRef {
  int32_t rank = 0;
  int32_t action = 0;
  bool operator==(const ActionRef&) const = default;
};

/// Points of an action: its start, its end, and for each place between its ops that a wait names, "the ops before are done" and "the
/// ops behind may start". A message's or collective's end comes after the start of every other side: correct for transports that
/// buffer and for those that do not. Behind the points of all actions stands one for each collective, where its members meet,
/// and for each step behind another.
class ScheduleGraph {
 public:
  ScheduleGraph(const std::vector<Schedule>& ranks, const ScheduleContext& context);

  int32_t num_points() const { return static_cast<int32_t>(owner_.size()); }
  int32_t start(ActionRef ref) const { return first_point_[static_cast<size_t>(ref.rank)][static_cast<size_t>(ref.action)]; }
  int32_t end(ActionRef ref) const { return first_point_[static_cast<size_t>(ref.rank)][static_cast<size_t>(ref.action) + 1] - 1; }
  ActionRef owner(int32_t point) const { return owner_[static_cast<size_t>(point)]; }
  /// Ops of the action at whose front there are two points between its start and its end, ascending.
  const std::vector<int32_t>& cuts(ActionRef ref) const { return cuts_[static_cast<size_t>(ref.rank)][static_cast<size_t>(ref.action)]; }
  /// The latest point that comes before op `op` of the action, and the earliest that comes behind it.
  int32_t before_op(ActionRef ref, int32_t op) const;
  int32_t behind_op(ActionRef ref, int32_t op) const;
  const std::vector<int32_t>& next(int32_t point) const { return next_[static_cast<size_t>(point)]; }
  const std::vector<int32_t>& previous(int32_t point) const { return previous_[static_cast<size_t>(point)]; }

  /// Problems of construction: messages without their other side or of another size, collectives that differ. Their ends never come.
  const std::vector<std::string>& problems() const { return problems_; }
  bool never_ends(int32_t point) const { return never_ends_[static_cast<size_t>(point)]; }
  /// The send of a receive; {-1, -1} for anything else.
  ActionRef send_of(ActionRef receive) const;

  /// All points in an order that keeps every edge; shorter than num_points() when there is a cycle.
  const std::vector<int32_t>& order() const { return order_; }
  /// One cycle as "rank 0 F1 -> rank 1 B0 -> ..."; empty when there is none.
  std::string cycle() const;
  /// Whether point `a` comes before `b` (or is it) in every execution. Needs a graph without cycles. Cost: the points between.
  bool before(int32_t a, int32_t b) const;
  std::string name(ActionRef ref) const;

 private:
  void add_points();
  void join_steps(int32_t rank);
  int32_t add_meeting_point(ActionRef member);
  void add_edge(int32_t from, int32_t to);
  void match_messages();
  void match_collectives();
  void sort();
  int32_t done_point(ActionRef ref, int32_t after_op) const;
  int32_t go_point(ActionRef ref, int32_t before_op) const;

  const std::vector<Schedule>& ranks_;
  const ScheduleContext& context_;
  std::vector<std::vector<int32_t>> first_point_;         // by rank, by action, and one behind
  std::vector<std::vector<std::vector<int32_t>>> cuts_;   // by rank, by action: ops at whose front there are two points, ascending
  std::vector<ActionRef> owner_;                          // by point
  std::vector<std::vector<int32_t>> next_, previous_;     // by point
  std::vector<bool> never_ends_;                          // by point
  std::vector<std::vector<ActionRef>> send_of_;           // by rank, by action
  std::vector<int32_t> order_, position_;
  std::vector<std::string> problems_;
  mutable std::vector<int32_t> visited_;                  // by point: the number of the search that saw it
  mutable int32_t search_ = 0;
};

}  // namespace orrery
