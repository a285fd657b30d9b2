// Any bytes as a SentencePiece tokenizer.model: a typed Error, or a tokenizer that encodes, decodes and saves itself.
#include "base/error.h"
#include "tokenizer/tokenizer.h"

namespace orrery {

inline int fuzz_sentencepiece(const uint8_t* data, size_t size) {
  try {
    const Tokenizer tokenizer = load_sentencepiece({reinterpret_cast<const char*>(data), size});
    (void)tokenizer.decode(tokenizer.encode("The cat's 12 \xFF👍\n <s>ＡＢ", {.allow_special = true}));
    (void)tokenizer.content_hash();
  } catch (const Error&) {
  }
  return 0;
}

}  // namespace orrery

#ifndef ORRERY_FUZZ_IN_TEST
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return orrery::fuzz_sentencepiece(data, size); }
#endif
