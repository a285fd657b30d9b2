// Any bytes as a line of a multiple-choice file end in a question or in an Error.
#include <cstdint>

#include "base/error.h"
#include "data/multiple_choice.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    orrery::parse_multiple_choice({reinterpret_cast<const char*>(data), size});
  } catch (const orrery::Error&) {
  }
  return 0;
}
