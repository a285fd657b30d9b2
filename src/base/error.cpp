#include "base/error.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace orrery {

std::string_view error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return "invalid argument";
    case ErrorCode::kInvalidConfig: return "invalid configuration";
    case ErrorCode::kUnsupported: return "unsupported";
    case ErrorCode::kOutOfMemory: return "out of memory";
    case ErrorCode::kIo: return "i/o error";
    case ErrorCode::kCorruptData: return "corrupt data";
    case ErrorCode::kDevice: return "device error";
    case ErrorCode::kPeerLost: return "peer lost";
    case ErrorCode::kTimeout: return "timeout";
    case ErrorCode::kCancelled: return "cancelled";
  }
  return "error";
}

int exit_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kInvalidConfig:
    case ErrorCode::kUnsupported: return 2;
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kIo:
    case ErrorCode::kDevice: return 3;
    case ErrorCode::kCorruptData: return 4;
    case ErrorCode::kPeerLost:
    case ErrorCode::kTimeout: return 5;
    case ErrorCode::kCancelled: return 130;
  }
  return 1;
}

void throw_io_error(int errno_value, const std::string& what) {
  const bool missing = errno_value == ENOENT || errno_value == ENOTDIR;
  throw Error(missing ? ErrorCode::kCorruptData : ErrorCode::kIo, what + ": " + std::strerror(errno_value));
}

CheckContext& check_context() {
  thread_local CheckContext context;
  return context;
}

namespace detail {

void check_failed(const char* expression, const char* file, int line, const std::string& message) {
  const CheckContext& context = check_context();
  std::fprintf(stderr, "orrery: check failed: %s at %s:%d rank=%d step=%lld%s%s\n", expression, file, line, context.rank,
               context.step, message.empty() ? "" : ": ", message.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace detail
}  // namespace orrery
