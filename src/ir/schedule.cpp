#include "ir/schedule.h"

#include <fmt/format.h>

#include <algorithm>

namespace orrery {

Stream stream_of(ActionKind kind) {
  switch (kind) {
    case ActionKind::kSendActivation:
    case ActionKind::kRecvActivation:
    case ActionKind::kSendGradient:
    case ActionKind::kRecvGradient:
    case ActionKind::kSendSum:
    case ActionKind::kRecvSum:
    case ActionKind::kSendWeight:
    case ActionKind::kRecvWeight: return Stream::kPoint;
    case ActionKind::kAllGatherParameters:
    case ActionKind::kReduceScatterGradients:
    case ActionKind::kAllGatherGradients:
    case ActionKind::kAllReduceGradients:
    case ActionKind::kExchangeSums: return Stream::kCollective;
    case ActionKind::kOffload:
    case ActionKind::kFetch:
    case ActionKind::kFetchParameters: return Stream::kCopy;
    default: return Stream::kCompute;
  }
}

bool is_boundary_message(ActionKind kind) {
  return kind == ActionKind::kSendActivation || kind == ActionKind::kRecvActivation || kind == ActionKind::kSendGradient || kind == ActionKind::kRecvGradient;
}

bool is_send(ActionKind kind) {
  return kind == ActionKind::kSendActivation || kind == ActionKind::kSendGradient || kind == ActionKind::kSendSum || kind == ActionKind::kSendWeight;
}

int64_t num_sequences(const Schedule& schedule) {
  int64_t count = 0;
  for (const MicroBatch& batch : schedule.micro_batches) count += batch.num_sequences;
  return count;
}

std::string to_string(const Action& action, const Schedule& schedule) {
  const auto per_step = static_cast<int32_t>(schedule.micro_batches.size() / std::max<size_t>(1, schedule.step_begins.size()));
  const std::string batch = action.micro_batch < 0 || schedule.step_begins.empty() || per_step == 0
                                ? fmt::format("{}{}", action.micro_batch, action.next_step ? "'" : "")
                                : fmt::format("{}@{}", action.micro_batch % per_step, action.micro_batch / per_step);
  const std::string stage =
      schedule.stage_of_chunk.size() > 1 ? fmt::format("{}", schedule.stage_of_chunk[static_cast<size_t>(action.chunk)]) : std::string();
  // A copy moves a group of a micro-batch's activations, or a piece of the state.
  const auto copy = [&](char direction) {
    return action.micro_batch >= 0 ? fmt::format("{}{}F{}.{}", stage, direction, action.micro_batch, action.unit) : fmt::format("{}U{}", direction, action.unit);
  };
  switch (action.kind) {
    case ActionKind::kForward: return fmt::format("{}F{}", stage, batch);
    case ActionKind::kBackward: return fmt::format("{}B{}", stage, batch);
    case ActionKind::kBackwardInput: return fmt::format("{}I{}", stage, batch);
    case ActionKind::kBackwardWeight: return fmt::format("{}W{}", stage, batch);
    case ActionKind::kMerge: return fmt::format("{}M{}>{}{}", stage, action.source_buffer, action.gradient_buffer, action.next_step ? "'" : "");
    case ActionKind::kNorm: return "NORM";
    case ActionKind::kOptimizer: return "OPT";
    case ActionKind::kSendActivation: return fmt::format("{}SF{}>{}", stage, batch, action.peer);
    case ActionKind::kRecvActivation: return fmt::format("{}RF{}<{}", stage, batch, action.peer);
    case ActionKind::kSendGradient: return fmt::format("{}SB{}>{}", stage, batch, action.peer);
    case ActionKind::kRecvGradient: return fmt::format("{}RB{}<{}", stage, batch, action.peer);
    case ActionKind::kSendSum: return fmt::format("SU{}>{}", action.unit, action.peer);
    case ActionKind::kRecvSum: return fmt::format("RU{}<{}", action.unit, action.peer);
    case ActionKind::kSendWeight: return fmt::format("SW{}>{}", action.unit, action.peer);
    case ActionKind::kRecvWeight: return fmt::format("RW{}<{}", action.unit, action.peer);
    case ActionKind::kAllGatherParameters: return fmt::format("AG{}", action.unit);
    case ActionKind::kReduceScatterGradients: return action.round < 0 ? fmt::format("RS{}", action.unit) : fmt::format("RS{}.{}", action.unit, action.round);
    case ActionKind::kAllReduceGradients: return fmt::format("AR{}", action.unit);
    case ActionKind::kAllGatherGradients: return fmt::format("GG{}", action.unit);
    case ActionKind::kExchangeSums: return "XS";
    case ActionKind::kOffload: return copy('O');
    case ActionKind::kFetch: return copy('E');
    case ActionKind::kFetchParameters: return fmt::format("EP{}", action.unit);
  }
  return "?";
}

std::string to_string(const Schedule& schedule) {
  std::string text;
  for (const Action& action : schedule.actions) {
    if (!text.empty()) text += ' ';
    text += to_string(action, schedule);
  }
  return text;
}

}  // namespace orrery
