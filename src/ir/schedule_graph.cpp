#include "ir/schedule_graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <tuple>

namespace orrery {
namespace {

bool same_collective(const Action& a, const Action& b) { return a.kind == b.kind && a.unit == b.unit && a.round == b.round; }

}  // namespace

ScheduleGraph::ScheduleGraph(const std::vector<Schedule>& ranks, const ScheduleContext& context) : ranks_(ranks), context_(context) {
  add_points();
  match_messages();
  match_collectives();
  sort();
}

std::string ScheduleGraph::name(ActionRef ref) const {
  const Schedule& schedule = ranks_[static_cast<size_t>(ref.rank)];
  return fmt::format("rank {} {}", ref.rank, to_string(schedule.actions[static_cast<size_t>(ref.action)], schedule));
}

void ScheduleGraph::add_edge(int32_t from, int32_t to) {
  next_[static_cast<size_t>(from)].push_back(to);
  previous_[static_cast<size_t>(to)].push_back(from);
}

// Between the starts and the ends of a collective's members, so that n of them take 2 n edges; `member` answers for it.
int32_t ScheduleGraph::add_meeting_point(ActionRef member) {
  owner_.push_back(member);
  next_.emplace_back();
  previous_.emplace_back();
  never_ends_.push_back(false);
  visited_.push_back(0);
  return num_points() - 1;
}

void ScheduleGraph::add_points() {
  const auto num_ranks = static_cast<int32_t>(ranks_.size());
  first_point_.resize(ranks_.size());
  cuts_.resize(ranks_.size());
  send_of_.resize(ranks_.size());
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    const std::vector<Action>& actions = ranks_[static_cast<size_t>(rank)].actions;
    const auto num_actions = static_cast<int32_t>(actions.size());
    auto& cuts = cuts_[static_cast<size_t>(rank)];
    cuts.resize(actions.size());
    send_of_[static_cast<size_t>(rank)].assign(actions.size(), {-1, -1});
    for (int32_t index = 0; index < num_actions; ++index)
      for (const Wait& wait : actions[static_cast<size_t>(index)].waits) {
        if (wait.action < 0 || wait.action >= num_actions) continue;
        if (wait.before_op > 0) cuts[static_cast<size_t>(index)].push_back(wait.before_op);
        if (wait.after_op != Wait::kWhole) cuts[static_cast<size_t>(wait.action)].push_back(wait.after_op + 1);
      }
    auto& first = first_point_[static_cast<size_t>(rank)];
    for (int32_t index = 0; index < num_actions; ++index) {
      auto& cut = cuts[static_cast<size_t>(index)];
      std::sort(cut.begin(), cut.end());
      cut.erase(std::unique(cut.begin(), cut.end()), cut.end());
      first.push_back(num_points());
      owner_.insert(owner_.end(), 2 + 2 * cut.size(), ActionRef{rank, index});
    }
    first.push_back(num_points());
  }
  next_.resize(owner_.size());
  previous_.resize(owner_.size());
  never_ends_.assign(owner_.size(), false);
  visited_.assign(owner_.size(), 0);
  for (int32_t point = 0; point + 1 < num_points(); ++point)
    if (owner(point) == owner(point + 1)) add_edge(point, point + 1);
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    const std::vector<Action>& actions = ranks_[static_cast<size_t>(rank)].actions;
    std::map<Stream, int32_t> last_of_stream;
    for (int32_t index = 0; index < static_cast<int32_t>(actions.size()); ++index) {
      const Action& action = actions[static_cast<size_t>(index)];
      const Stream stream = stream_of(action.kind);
      if (stream != Stream::kPoint) {
        const auto last = last_of_stream.find(stream);
        if (last != last_of_stream.end()) add_edge(end({rank, last->second}), start({rank, index}));
        last_of_stream[stream] = index;
      }
      for (const Wait& wait : action.waits) {
        if (wait.action < 0 || wait.action >= static_cast<int32_t>(actions.size())) {
          problems_.push_back(fmt::format("{} waits for action {}, which is not there", name({rank, index}), wait.action));
          continue;
        }
        add_edge(done_point({rank, wait.action}, wait.after_op), go_point({rank, index}, wait.before_op));
      }
    }
  }
  for (int32_t rank = 0; rank < num_ranks; ++rank) join_steps(rank);
}

// A step begins when all actions of the one before are done.
void ScheduleGraph::join_steps(int32_t rank) {
  const Schedule& schedule = ranks_[static_cast<size_t>(rank)];
  const auto num_actions = static_cast<int32_t>(schedule.actions.size());
  for (size_t step = 1; step < schedule.step_begins.size(); ++step) {
    const int32_t begin = schedule.step_begins[step], end_of_step = step + 1 < schedule.step_begins.size() ? schedule.step_begins[step + 1] : num_actions;
    if (begin == 0 || begin == num_actions) continue;
    const int32_t meeting = add_meeting_point({rank, begin});
    for (int32_t index = schedule.step_begins[step - 1]; index < begin; ++index) add_edge(end({rank, index}), meeting);
    for (int32_t index = begin; index < end_of_step; ++index) add_edge(meeting, start({rank, index}));
  }
}

int32_t ScheduleGraph::done_point(ActionRef ref, int32_t after_op) const {
  if (after_op == Wait::kWhole) return end(ref);
  const auto& cut = cuts_[static_cast<size_t>(ref.rank)][static_cast<size_t>(ref.action)];
  const auto index = std::lower_bound(cut.begin(), cut.end(), after_op + 1) - cut.begin();
  return start(ref) + 1 + 2 * static_cast<int32_t>(index);
}

int32_t ScheduleGraph::go_point(ActionRef ref, int32_t before_op) const {
  if (before_op <= 0) return start(ref);
  const auto& cut = cuts_[static_cast<size_t>(ref.rank)][static_cast<size_t>(ref.action)];
  const auto index = std::lower_bound(cut.begin(), cut.end(), before_op) - cut.begin();
  return start(ref) + 2 + 2 * static_cast<int32_t>(index);
}

int32_t ScheduleGraph::before_op(ActionRef ref, int32_t op) const {
  const auto& cut = cuts(ref);
  const auto num_before = static_cast<int32_t>(std::upper_bound(cut.begin(), cut.end(), op) - cut.begin());
  return start(ref) + 2 * num_before;
}

int32_t ScheduleGraph::behind_op(ActionRef ref, int32_t op) const {
  const auto& cut = cuts(ref);
  const auto num_before = static_cast<int32_t>(std::upper_bound(cut.begin(), cut.end(), op) - cut.begin());
  return start(ref) + 2 * num_before + 1;
}

ActionRef ScheduleGraph::send_of(ActionRef receive) const { return send_of_[static_cast<size_t>(receive.rank)][static_cast<size_t>(receive.action)]; }

void ScheduleGraph::match_messages() {
  // (from, to, activation or gradient, sender's stage, micro-batch and whether it is the next step's); stages out of range are reported elsewhere and
  // match nothing.
  constexpr int32_t kNoStage = std::numeric_limits<int32_t>::min();
  using Key = std::tuple<int32_t, int32_t, bool, int32_t, int32_t, bool>;
  std::map<Key, std::pair<std::vector<ActionRef>, std::vector<ActionRef>>> messages;
  for (int32_t rank = 0; rank < static_cast<int32_t>(ranks_.size()); ++rank) {
    const Schedule& schedule = ranks_[static_cast<size_t>(rank)];
    for (int32_t index = 0; index < static_cast<int32_t>(schedule.actions.size()); ++index) {
      const Action& action = schedule.actions[static_cast<size_t>(index)];
      if (stream_of(action.kind) != Stream::kPoint) continue;
      if (!is_boundary_message(action.kind)) {
        // One of a kind between two ranks: the sum, or the weight, of the matrix that they share.
        const bool sum = action.kind == ActionKind::kSendSum || action.kind == ActionKind::kRecvSum;
        if (is_send(action.kind))
          messages[{rank, action.peer, sum, kNoStage, -1, false}].first.push_back({rank, index});
        else
          messages[{action.peer, rank, sum, kNoStage, -1, false}].second.push_back({rank, index});
        continue;
      }
      const int32_t stage = action.chunk >= 0 && action.chunk < static_cast<int32_t>(schedule.stage_of_chunk.size())
                                ? schedule.stage_of_chunk[static_cast<size_t>(action.chunk)] : -1;
      const bool activation = action.kind == ActionKind::kSendActivation || action.kind == ActionKind::kRecvActivation;
      if (is_send(action.kind))
        messages[{rank, action.peer, activation, stage, action.micro_batch, action.next_step}].first.push_back({rank, index});
      else
        messages[{action.peer, rank, activation, activation ? stage - 1 : stage + 1, action.micro_batch, action.next_step}].second.push_back({rank, index});
    }
  }
  const auto lonely = [&](ActionRef ref, const char* wanted) {
    const Action& action = ranks_[static_cast<size_t>(ref.rank)].actions[static_cast<size_t>(ref.action)];
    problems_.push_back(fmt::format("{} has no {} on rank {}", name(ref), wanted, action.peer));
    never_ends_[static_cast<size_t>(end(ref))] = true;
  };
  for (const auto& [key, sides] : messages) {
    const auto& [sends, receives] = sides;
    for (size_t i = 0; i < std::max(sends.size(), receives.size()); ++i) {
      if (i >= sends.size()) {
        lonely(receives[i], "send");
      } else if (i >= receives.size()) {
        lonely(sends[i], "receive");
      } else {
        add_edge(start(sends[i]), end(receives[i]));
        add_edge(start(receives[i]), end(sends[i]));
        send_of_[static_cast<size_t>(receives[i].rank)][static_cast<size_t>(receives[i].action)] = sends[i];
        if (!context_.bytes) continue;
        const auto bytes = [&](ActionRef ref) { return context_.bytes(ref.rank, ranks_[static_cast<size_t>(ref.rank)].actions[static_cast<size_t>(ref.action)]); };
        if (bytes(sends[i]) != bytes(receives[i]))
          problems_.push_back(fmt::format("{} sends {} bytes, {} receives {}", name(sends[i]), bytes(sends[i]), name(receives[i]), bytes(receives[i])));
      }
    }
  }
}

void ScheduleGraph::match_collectives() {
  std::map<std::vector<int32_t>, std::map<int32_t, std::vector<ActionRef>>> calls;  // group -> rank -> in order
  std::vector<int32_t> all(ranks_.size());
  std::iota(all.begin(), all.end(), 0);
  for (int32_t rank = 0; rank < static_cast<int32_t>(ranks_.size()); ++rank) {
    const std::vector<Action>& actions = ranks_[static_cast<size_t>(rank)].actions;
    for (int32_t index = 0; index < static_cast<int32_t>(actions.size()); ++index)
      if (stream_of(actions[static_cast<size_t>(index)].kind) == Stream::kCollective)
        calls[context_.group ? context_.group(rank, actions[static_cast<size_t>(index)]) : all][rank].push_back({rank, index});
  }
  for (const auto& [group, by_rank] : calls) {
    size_t longest = 0;
    for (const auto& [rank, list] : by_rank) longest = std::max(longest, list.size());
    for (size_t k = 0; k < longest; ++k) {
      std::vector<ActionRef> members;
      int32_t missing = -1;
      for (int32_t rank : group) {
        const auto list = by_rank.find(rank);
        if (list == by_rank.end() || k >= list->second.size())
          missing = rank;
        else
          members.push_back(list->second[k]);
      }
      if (members.empty()) continue;
      const auto action = [&](ActionRef ref) -> const Action& { return ranks_[static_cast<size_t>(ref.rank)].actions[static_cast<size_t>(ref.action)]; };
      if (missing >= 0) {
        problems_.push_back(fmt::format("{} is collective {} of its group, rank {} has no more", name(members[0]), k, missing));
        for (ActionRef ref : members) never_ends_[static_cast<size_t>(end(ref))] = true;
      }
      const int32_t meeting = add_meeting_point(members[0]);
      for (ActionRef ref : members) {
        if (!same_collective(action(ref), action(members[0]))) {
          problems_.push_back(fmt::format("collective {} of the group is {} but {}", k, name(members[0]), name(ref)));
          never_ends_[static_cast<size_t>(end(ref))] = true;
        } else if (context_.bytes && context_.bytes(ref.rank, action(ref)) != context_.bytes(members[0].rank, action(members[0]))) {
          problems_.push_back(fmt::format("collective {} of the group has {} bytes as {} but {} as {}", k, context_.bytes(members[0].rank, action(members[0])), name(members[0]),
                                          context_.bytes(ref.rank, action(ref)), name(ref)));
        }
        add_edge(start(ref), meeting);
        add_edge(meeting, end(ref));
      }
    }
  }
}

void ScheduleGraph::sort() {
  std::vector<int32_t> missing(owner_.size());
  for (size_t point = 0; point < owner_.size(); ++point) missing[point] = static_cast<int32_t>(previous_[point].size());
  for (int32_t point = 0; point < num_points(); ++point)
    if (missing[static_cast<size_t>(point)] == 0) order_.push_back(point);
  for (size_t at = 0; at < order_.size(); ++at)
    for (int32_t later : next(order_[at]))
      if (--missing[static_cast<size_t>(later)] == 0) order_.push_back(later);
  position_.assign(owner_.size(), -1);
  for (size_t at = 0; at < order_.size(); ++at) position_[static_cast<size_t>(order_[at])] = static_cast<int32_t>(at);
}

std::string ScheduleGraph::cycle() const {
  if (order_.size() == owner_.size()) return {};
  // Every point that could not be sorted has a predecessor that could not: going back from one must come round.
  int32_t point = static_cast<int32_t>(std::find(position_.begin(), position_.end(), -1) - position_.begin());
  std::vector<int32_t> path, seen_at(owner_.size(), -1);
  while (seen_at[static_cast<size_t>(point)] < 0) {
    seen_at[static_cast<size_t>(point)] = static_cast<int32_t>(path.size());
    path.push_back(point);
    for (int32_t earlier : previous(point))
      if (position_[static_cast<size_t>(earlier)] < 0) {
        point = earlier;
        break;
      }
  }
  path.erase(path.begin(), path.begin() + seen_at[static_cast<size_t>(point)]);
  std::reverse(path.begin(), path.end());
  std::vector<ActionRef> actions;
  for (int32_t on_path : path) {
    const ActionRef ref = owner(on_path);
    if (on_path > end(ref)) continue;  // where a collective's members meet
    if (actions.empty() || !(actions.back() == ref)) actions.push_back(ref);
  }
  std::string text;
  for (ActionRef ref : actions) text += name(ref) + " -> ";
  return text + name(actions.front());
}

bool ScheduleGraph::before(int32_t a, int32_t b) const {
  // Backwards from b in breadth, because what is asked for is nearly always a wait or two away; nothing sorted before a leads to a.
  ++search_;
  std::vector<int32_t> queue = {b};
  visited_[static_cast<size_t>(b)] = search_;
  for (size_t at = 0; at < queue.size(); ++at) {
    if (queue[at] == a) return true;
    for (int32_t earlier : previous(queue[at]))
      if (position_[static_cast<size_t>(earlier)] >= position_[static_cast<size_t>(a)] && visited_[static_cast<size_t>(earlier)] != search_) {
        visited_[static_cast<size_t>(earlier)] = search_;
        queue.push_back(earlier);
      }
  }
  return false;
}

}  // namespace orrery
