// Stop strings in a growing text, wherever token boundaries fall. Text is handed out as soon as it can no longer become part of a stop
// string; a stop string itself is never handed out, unless asked for.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace orrery {

class StopMatcher {
 public:
  /// Errors: kInvalidArgument for an empty stop string.
  explicit StopMatcher(std::vector<std::string> stops, bool include_stop = false);

  /// The text that is certain after these bytes; nothing once stopped. The stop string that ends first counts; of those that end together,
  /// the longest.
  std::string push(std::string_view text);
  /// What was held back; call when the text has ended without a stop.
  std::string finish();

  bool stopped() const { return stop_index_ >= 0; }
  /// Which stop string was found, -1: none.
  int stop_index() const { return stop_index_; }

 private:
  std::vector<std::string> stops_;
  bool include_stop_;
  int stop_index_ = -1;
  size_t longest_ = 0;
  std::string held_;  // the end of the text, a prefix of some stop string
};

}  // namespace orrery
