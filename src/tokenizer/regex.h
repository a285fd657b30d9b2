// Patterns that nobody wrote by hand for us, run by PCRE2 with limits: a pattern from a file may be hostile, and a nested
// quantifier must become an error and not a hang. Known patterns never come here (splitter.h).
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace orrery {

class Regex {
 public:
  /// Unicode classes, UTF-8; text that is not UTF-8 never matches. Errors: kUnsupported, where PCRE2 does not compile it.
  explicit Regex(std::string pattern);

  /// Calls found(begin, end) for every non-empty match, left to right.
  /// Errors  kUnsupported when one match takes more than a million steps, or all of them more than 2 s + 4 s/MB.
  void for_each_match(std::string_view text, const std::function<void(size_t begin, size_t end)>& found) const;

  const std::string& pattern() const { return pattern_; }

 private:
  struct Code;
  std::string pattern_;
  std::shared_ptr<const Code> code_;
};

}  // namespace orrery
