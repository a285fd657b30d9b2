#include "comm/transport.h"

namespace orrery {

void CommFailure::set(ErrorCode code, const std::string& message) {
  std::lock_guard lock(mutex_);
  if (failed_.load(std::memory_order_relaxed)) return;
  code_ = code;
  message_ = message;
  failed_.store(true, std::memory_order_release);
}

void CommFailure::raise() const {
  std::lock_guard lock(mutex_);
  throw Error(code_, message_);
}

}  // namespace orrery
