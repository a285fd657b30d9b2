#include "serve/chat/stop_matcher.h"

#include <algorithm>

#include "base/error.h"

namespace orrery {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop) : stops_(std::move(stops)), include_stop_(include_stop) {
  for (const std::string& stop : stops_) {
    if (stop.empty()) throw Error(ErrorCode::kInvalidArgument, "an empty stop string would end every answer at once; leave it out");
    longest_ = std::max(longest_, stop.size());
  }
}

std::string StopMatcher::push(std::string_view text) {
  if (stopped()) return {};
  const size_t already = held_.size();
  held_ += text;
  // The match that ends first; a longer one at the same end begins earlier and takes more text away.
  size_t end = std::string::npos, begin = 0;
  for (size_t i = 0; i < stops_.size(); ++i) {
    // A match that lay wholly in what was held would have been found before.
    const size_t from = already >= stops_[i].size() ? already - stops_[i].size() + 1 : 0;
    const size_t found = held_.find(stops_[i], from);
    if (found == std::string::npos) continue;
    const size_t found_end = found + stops_[i].size();
    if (found_end < end || (found_end == end && found < begin)) {
      end = found_end;
      begin = found;
      stop_index_ = static_cast<int>(i);
    }
  }
  if (stopped()) {
    std::string result = held_.substr(0, include_stop_ ? end : begin);
    held_.clear();
    return result;
  }
  size_t keep = std::min(held_.size(), longest_ == 0 ? 0 : longest_ - 1);
  for (; keep > 0; --keep) {
    const std::string_view tail = std::string_view(held_).substr(held_.size() - keep);
    if (std::any_of(stops_.begin(), stops_.end(), [&](const std::string& stop) { return stop.size() > keep && stop.starts_with(tail); })) break;
  }
  std::string result = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return result;
}

std::string StopMatcher::finish() {
  std::string rest;
  rest.swap(held_);
  return rest;
}

}  // namespace orrery
