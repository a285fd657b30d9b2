#include "train/message_stream.h"

#include <algorithm>

#include "base/error.h"
#include "comm/futex.h"

namespace orrery {
namespace {

constexpr int kNumKinds = 4;                    // activation, gradient, sum, weight
constexpr int kNumTags = 32768 / kNumKinds;     // Communicator's tags
// While a message is on its way nobody wakes this thread, so it looks again after an eighth of the time that it has waited.
constexpr int64_t kShortestSleepNs = 20'000, kLongestSleepNs = 500'000;
// With nothing on its way an action will wake it; this is for a failure that comes from elsewhere.
constexpr int64_t kIdleSleepNs = 50'000'000;

int kind_index(ActionKind kind) {
  switch (kind) {
    case ActionKind::kSendActivation:
    case ActionKind::kRecvActivation: return 0;
    case ActionKind::kSendGradient:
    case ActionKind::kRecvGradient: return 1;
    case ActionKind::kSendSum:
    case ActionKind::kRecvSum: return 2;
    default: return 3;
  }
}

// The stage that sends: both ends name it alike.
int32_t sending_stage(const Action& action, const Schedule& schedule) {
  const int32_t stage = schedule.stage_of_chunk[static_cast<size_t>(action.chunk)];
  switch (action.kind) {
    case ActionKind::kRecvActivation: return stage - 1;
    case ActionKind::kRecvGradient: return stage + 1;
    default: return stage;
  }
}

}  // namespace

MessageStream::MessageStream(const Schedule& schedule, int32_t num_stages, int64_t ranks_apart, Communicator& group, std::vector<std::span<std::byte>> buffers, ActionProgress& progress)
    : schedule_(schedule), group_(group), buffers_(std::move(buffers)), progress_(progress) {
  const auto num_micro_batches = static_cast<int32_t>(schedule.micro_batches.size());
  if (static_cast<int64_t>(num_micro_batches) * (1 + schedule.carries) * num_stages > kNumTags)
    throw Error(ErrorCode::kUnsupported, "{} micro-batches through {} stages: messages can be told apart up to a product of {}; use a larger train.micro_batch_size",
                schedule.micro_batches.size(), num_stages, kNumTags);
  for (size_t i = 0; i < schedule.actions.size(); ++i) {
    const Action& action = schedule.actions[i];
    if (stream_of(action.kind) != Stream::kPoint) continue;
    Message& message = messages_.emplace_back();
    message.action = i;
    message.peer = static_cast<int>(action.peer / ranks_apart);
    message.tag = kind_index(action.kind);
    if (is_boundary_message(action.kind)) message.tag += kNumKinds * ((action.micro_batch + (action.next_step ? num_micro_batches : 0)) * num_stages + sending_stage(action, schedule));
    message.sends = is_send(action.kind);
    message.label = to_string(action, schedule);
  }
}

// Whether something happened.
bool MessageStream::advance(Message& message) {
  if (message.state == State::kWaiting) {
    if (!progress_.is_ready(schedule_.actions[message.action])) return false;
    const std::span<std::byte> buffer = buffers_[message.action];
    message.work = message.sends ? group_.post_send(buffer, message.peer, message.tag, std::string_view(message.label))
                                 : group_.post_recv(buffer, message.peer, message.tag, std::string_view(message.label));
    message.state = State::kActive;
  }
  if (message.state != State::kActive || !message.work.test()) return false;
  message.state = State::kDone;
  progress_.mark_done(message.action);
  return true;
}

void MessageStream::run(bool next_step_alone) {
  for (Message& message : messages_) message.state = next_step_alone && !schedule_.actions[message.action].next_step ? State::kDone : State::kWaiting;
  const int64_t timeout_ns = group_.timeout_ms() * 1'000'000;
  int64_t last_event = monotonic_ns();
  for (uint32_t last_seen = progress_.num_events();;) {
    const uint32_t seen = progress_.num_events();
    bool moved = seen != last_seen, all_done = true, active = false;
    for (Message& message : messages_) {
      moved |= advance(message);
      all_done &= message.state == State::kDone;
      active |= message.state == State::kActive;
    }
    if (all_done) return;
    if (progress_.failed()) break;
    last_seen = seen;
    const int64_t now = monotonic_ns();
    if (moved) {
      last_event = now;
      continue;
    }
    // Neither a message nor an action of this rank for as long as a call may take: the first that is waited for names its peer.
    if (active && now - last_event > timeout_ns)
      for (Message& message : messages_)
        if (message.state == State::kActive) message.work.expire();
    progress_.sleep(seen, now + (active ? std::clamp((now - last_event) / 8, kShortestSleepNs, kLongestSleepNs) : kIdleSleepNs));
  }
  for (Message& message : messages_) message.work = Work();
}

}  // namespace orrery
