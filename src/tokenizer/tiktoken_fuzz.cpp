// Any bytes as a rank file: a typed Error, or a tokenizer that gives back what it encodes.
#include <cstdlib>

#include "base/error.h"
#include "tokenizer/tokenizer.h"

namespace orrery {

inline int fuzz_tiktoken(const uint8_t* data, size_t size) {
  try {
    const Tokenizer tokenizer = load_tiktoken({reinterpret_cast<const char*>(data), size}, "o200k");
    const std::string text = "The cat's 12 \xFF👍\n <s>";
    if (tokenizer.decode(tokenizer.encode(text)) != text) std::abort();
  } catch (const Error&) {
  }
  return 0;
}

}  // namespace orrery

#ifndef ORRERY_FUZZ_IN_TEST
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return orrery::fuzz_tiktoken(data, size); }
#endif
