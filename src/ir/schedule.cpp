#include "ir/schedule.h"

#include <fmt/format.h>

namespace orrery {

std::string to_string(const Action& action) {
  switch (action.kind) {
    case ActionKind::kForward: return fmt::format("F{}", action.micro_batch);
    case ActionKind::kBackward: return fmt::format("B{}", action.micro_batch);
    case ActionKind::kZero: return fmt::format("Z{}", action.gradient_buffer);
    case ActionKind::kMerge: return fmt::format("M{}>{}", action.source_buffer, action.gradient_buffer);
    case ActionKind::kOptimizer: return "OPT";
  }
  return "?";
}

std::string to_string(const Schedule& schedule) {
  std::string text;
  for (const Action& action : schedule.actions) {
    if (!text.empty()) text += ' ';
    text += to_string(action);
  }
  return text;
}

}  // namespace orrery
