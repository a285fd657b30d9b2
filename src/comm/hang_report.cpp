#include "comm/hang_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace orrery {
namespace {

std::string describe(const FlightRecord& record, int64_t now_ns) {
  std::string text = fmt::format("{} {}", record.label, comm_op_name(record.op));
  if (record.peer >= 0) text += fmt::format(" with rank {}", record.peer);
  if (record.group_sequence >= 0) text += fmt::format(" (number {} of group {})", record.group_sequence, record.group);
  text += fmt::format(" of {} bytes, step {}, {}:{}", record.bytes, record.step, record.file, record.line);
  if (record.state == FlightState::kRunning) return text + fmt::format(", inside for {:.1f} s", static_cast<double>(now_ns - record.enter_ns) * 1e-9);
  if (record.state == FlightState::kPosted) return text + fmt::format(", posted {:.1f} s ago", static_cast<double>(now_ns - record.enter_ns) * 1e-9);
  return text + fmt::format(", {} {:.1f} s ago", record.state == FlightState::kDone ? "left" : "failed", static_cast<double>(now_ns - record.exit_ns) * 1e-9);
}

// The newest collective of the group, or null.
const FlightRecord* newest_collective(const RankStory& story, int32_t group) {
  for (auto record = story.records.rbegin(); record != story.records.rend(); ++record)
    if (record->group == group && record->group_sequence >= 0) return &*record;
  return nullptr;
}

const FlightRecord* running_of(const RankStory& story) {
  for (auto record = story.records.rbegin(); record != story.records.rend(); ++record)
    if (record->state == FlightState::kRunning) return &*record;
  return nullptr;
}

// Having told of another one's failure it may be gone by now, and is not to blame.
bool gave_up(const RankStory& story) { return !story.records.empty() && story.records.back().op == CommOp::kLeave && story.records.back().state == FlightState::kFailed; }

std::string describe(const RankStory& story, int64_t now_ns) {
  std::string text = fmt::format("rank {}", story.world_rank);
  if (!story.process.empty()) text += fmt::format(" ({})", story.process);
  if (!story.known) return text + ": nothing is known of it";
  if (const FlightRecord* running = running_of(story)) return text + ": in " + describe(*running, now_ns);
  if (!story.activity.text.empty())
    text += fmt::format(": in no call; computes {} of step {} for {:.1f} s", story.activity.text, story.activity.step,
                        static_cast<double>(now_ns - story.activity.since_ns) * 1e-9);
  else
    text += ": in no call";
  if (!story.records.empty()) text += "; last call " + describe(story.records.back(), now_ns);
  return text;
}

bool same_call(const FlightRecord& a, const FlightRecord& b) { return a.op == b.op && a.bytes == b.bytes; }

const FlightRecord* collective_at(const RankStory& story, int32_t group, int32_t sequence) {
  for (const FlightRecord& record : story.records)
    if (record.group == group && record.group_sequence == sequence) return &record;
  return nullptr;
}

// The first place of the group's order at which two ranks made different calls: who differs from the majority, and both call sites.
std::string first_difference(const std::vector<RankStory>& stories, int32_t group, int64_t now_ns) {
  std::set<int32_t> sequences;
  for (const RankStory& story : stories)
    for (const FlightRecord& record : story.records)
      if (record.group == group && record.group_sequence >= 0) sequences.insert(record.group_sequence);
  for (const int32_t sequence : sequences) {
    const RankStory *usual = nullptr, *odd = nullptr;
    size_t usual_votes = 0;
    for (const RankStory& story : stories) {
      const FlightRecord* record = collective_at(story, group, sequence);
      if (record == nullptr) continue;
      size_t votes = 0;
      for (const RankStory& other : stories)
        if (const FlightRecord* theirs = collective_at(other, group, sequence)) votes += same_call(*record, *theirs) ? 1 : 0;
      if (votes > usual_votes) usual = &story, usual_votes = votes;
    }
    for (const RankStory& story : stories)
      if (const FlightRecord* record = collective_at(story, group, sequence); odd == nullptr && record != nullptr && !same_call(*record, *collective_at(*usual, group, sequence)))
        odd = &story;
    if (odd != nullptr)
      return fmt::format("rank {} differs from rank {}: {} against {}", odd->world_rank, usual->world_rank, describe(*collective_at(*odd, group, sequence), now_ns),
                         describe(*collective_at(*usual, group, sequence), now_ns));
  }
  return {};
}

std::string join(const std::vector<int>& ranks) { return fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", fmt::join(ranks, ", ")); }

}  // namespace

std::string hang_report(const std::vector<RankStory>& stories, int32_t group, int64_t now_ns) {
  std::vector<int> late, lost, unknown, gone_before;
  for (const RankStory& story : stories) {
    if (gave_up(story))
      gone_before.push_back(story.world_rank);
    else if (story.lost)
      lost.push_back(story.world_rank);
  }
  int32_t first_sequence = INT32_MAX, last_sequence = -1;
  for (const RankStory& story : stories)
    if (const FlightRecord* record = newest_collective(story, group)) {
      first_sequence = std::min(first_sequence, record->group_sequence);
      last_sequence = std::max(last_sequence, record->group_sequence);
    }
  std::string why;
  if (!lost.empty()) why = fmt::format("{} {} lost", join(lost), lost.size() == 1 ? "is" : "are");
  // A difference explains everything after it.
  if (why.empty()) why = first_difference(stories, group, now_ns);
  // Whoever is not inside a call, or is behind in the group's order, keeps the others waiting.
  if (why.empty()) {
    for (const RankStory& story : stories) {
      if (gave_up(story)) continue;
      const FlightRecord* record = newest_collective(story, group);
      const bool behind = last_sequence >= 0 && (record == nullptr || record->group_sequence < last_sequence);
      if (!story.known) {
        unknown.push_back(story.world_rank);
        continue;
      }
      if (running_of(story) == nullptr || (behind && first_sequence < last_sequence)) late.push_back(story.world_rank);
    }
    if (!late.empty())
      why = fmt::format("{} {} late", join(late), late.size() == 1 ? "is" : "are");
    else if (!gone_before.empty())
      why = fmt::format("{} gave up before, with a report of why", join(gone_before));
    else if (!unknown.empty())
      why = fmt::format("{} cannot be asked and every other is inside a call", join(unknown));
    else
      why = "every rank is inside a call: they wait for each other";
  }
  std::string text = why;
  constexpr size_t kMaxLines = 16;
  for (size_t i = 0; i < stories.size() && i < kMaxLines; ++i) text += "\n  " + describe(stories[i], now_ns);
  if (stories.size() > kMaxLines) text += fmt::format("\n  and {} more ranks", stories.size() - kMaxLines);
  return text;
}

}  // namespace orrery
