#include "tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <chrono>

#include "base/error.h"

namespace orrery {
namespace {

constexpr size_t kPatternBytesMax = 16384;
constexpr uint32_t kMatchStepsMax = 1'000'000;
constexpr uint32_t kDepthMax = 20'000;
constexpr uint32_t kHeapKibMax = 16 * 1024;
constexpr size_t kJitStackBytes = 1 << 20;

// What one thread needs to run matches; PCRE2's stack and match data may not be shared.
struct MatchState {
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 * 1024, kJitStackBytes, nullptr);
  MatchState() {
    if (!context || !data) throw Error(ErrorCode::kOutOfMemory, "no memory for matching a pre-tokenizer pattern");
    pcre2_set_match_limit(context, kMatchStepsMax);
    pcre2_set_depth_limit(context, kDepthMax);
    pcre2_set_heap_limit(context, kHeapKibMax);
    if (stack) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchState() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (stack) pcre2_jit_stack_free(stack);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
};

std::string pcre2_message(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

std::string shortened(const std::string& pattern) { return pattern.size() <= 120 ? pattern : pattern.substr(0, 117) + "..."; }

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(std::string pattern) : pattern_(std::move(pattern)) {
  if (pattern_.size() > kPatternBytesMax) {
    throw Error(ErrorCode::kUnsupported, "tokenizer pattern of {} bytes; at most {} are supported", pattern_.size(),
                kPatternBytesMax);
  }
  auto code = std::make_shared<Code>();
  int error = 0;
  PCRE2_SIZE offset = 0;
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C;
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern_.data()), pattern_.size(), options, &error, &offset, nullptr);
  if (!code->code) {
    throw Error(ErrorCode::kUnsupported, "tokenizer pattern '{}' does not compile at byte {}: {}", shortened(pattern_), offset,
                pcre2_message(error));
  }
  pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);  // where it fails the interpreter runs, with the same limits
  code_ = std::move(code);
}

void Regex::for_each_match(std::string_view text, const std::function<void(size_t, size_t)>& found) const {
  using Clock = std::chrono::steady_clock;
  static thread_local MatchState state;
  const Clock::time_point start = Clock::now();
  const std::chrono::duration<double> budget(2.0 + 4e-6 * static_cast<double>(text.size()));
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t position = 0;
  for (size_t match_index = 0; position < text.size(); ++match_index) {
    const int rc = pcre2_match(code_->code, subject, text.size(), position, PCRE2_NOTEMPTY, state.data, state.context);
    if (rc == PCRE2_ERROR_NOMATCH) return;
    if (rc < 0) {
      throw Error(
          ErrorCode::kUnsupported,
          "tokenizer pattern '{}' gave up on a text of {} bytes at byte {}: {} (nested quantifiers backtrack without end; "
          "rewrite the pattern)",
          shortened(pattern_), text.size(), position, pcre2_message(rc));
    }
    if (match_index % 64 == 63 && Clock::now() - start > budget) {
      throw Error(ErrorCode::kUnsupported, "tokenizer pattern '{}' is too slow: {} of {} bytes split in {:.1f} s",
                  shortened(pattern_), position, text.size(), budget.count());
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(state.data);
    // A \K or lookbehind may move the start of a match backwards; a piece never begins before the last one ended.
    const size_t begin = range[0] < position ? position : range[0];
    if (range[1] <= begin) {
      ++position;
      continue;
    }
    found(begin, range[1]);
    position = range[1];
  }
}

}  // namespace orrery
