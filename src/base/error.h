// The three kinds of failure (a bug, the world said no, an expected answer) and the tools for the first two.
// A bug aborts with ORRERY_CHECK; the world's "no" is thrown as Error; expected answers are [[nodiscard]] values.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace orrery {

enum class ErrorCode {
  kInvalidArgument,
  kInvalidConfig,
  kUnsupported,
  kOutOfMemory,
  kIo,
  kCorruptData,
  kDevice,
  kPeerLost,
  kTimeout,
  kCancelled,
};

std::string_view error_code_name(ErrorCode code);

/// The process exit status for an error that reached main: 2 configuration, 3 environment, 4 data, 5 peer lost, 130 interrupted.
int exit_status(ErrorCode code);

/// The world said no. The message says what was wanted, what was found, where, and the way out.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  template <typename... Args>
  Error(ErrorCode code, fmt::format_string<Args...> format, Args&&... args)
      : Error(code, fmt::format(format, std::forward<Args>(args)...)) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

/// Throws Error{kIo} with the text of `errno_value`, e.g. throw_io_error(errno, fmt::format("cannot write {}", path)). A path that
/// is not there is missing input, kCorruptData: every command answers it with the same exit status.
[[noreturn]] void throw_io_error(int errno_value, const std::string& what);

/// Where this thread stands, for the line that ORRERY_CHECK prints: set by the executor, empty elsewhere.
struct CheckContext {
  int rank = -1;
  long long step = -1;
};
CheckContext& check_context();

namespace detail {
[[noreturn]] void check_failed(const char* expression, const char* file, int line, const std::string& message);
inline std::string check_message() { return {}; }
template <typename... Args>
std::string check_message(fmt::format_string<Args...> format, Args&&... args) {
  return fmt::format(format, std::forward<Args>(args)...);
}
}  // namespace detail

}  // namespace orrery

/// Aborts with the expression, the values, the rank and the step when `condition` is false: a bug in Orrery. Always on.
#define ORRERY_CHECK(condition, ...)                                                                          \
  do {                                                                                                        \
    if (!(condition)) [[unlikely]]                                                                            \
      ::orrery::detail::check_failed(#condition, __FILE__, __LINE__, ::orrery::detail::check_message(__VA_ARGS__)); \
  } while (false)

/// As ORRERY_CHECK, for inner loops: gone in release builds.
#ifdef NDEBUG
#define ORRERY_DCHECK(condition, ...) \
  do {                                \
  } while (false)
#else
#define ORRERY_DCHECK(condition, ...) ORRERY_CHECK(condition, __VA_ARGS__)
#endif
