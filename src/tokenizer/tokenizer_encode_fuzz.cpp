// Any bytes as text, for byte-level tokenizers of every known pattern: decode(encode(x)) == x, with a used cache and without.
#include <cstdlib>
#include <string>
#include <vector>

#include "tokenizer/bpe_trainer.h"
#include "tokenizer/tokenizer.h"

namespace orrery {

inline std::vector<Tokenizer> make_fuzz_tokenizers() {
  std::vector<Tokenizer> tokenizers;
  for (const char* pattern : {"gpt2", "cl100k", "o200k", "llama3", "qwen2", "tekken", "digits+gpt2"}) {
    TrainBpeOptions options;
    options.vocab_size = 330;
    options.min_frequency = 1;
    options.pattern = pattern;
    options.special_tokens = {"<s>", "<|end|>"};
    bool done = false;
    tokenizers.push_back(train_bpe(
        [&](std::string* chunk) {
          if (done) return false;
          *chunk = "the cat's hat and the cat 123 éa 👍 aaaaaa  \n\n the end";
          return done = true;
        },
        options));
  }
  return tokenizers;
}

inline int fuzz_tokenizer_encode(const uint8_t* data, size_t size) {
  static const std::vector<Tokenizer> tokenizers = make_fuzz_tokenizers();
  static std::vector<EncodeScratch> scratches(tokenizers.size());
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (size_t i = 0; i < tokenizers.size(); ++i) {
    for (const bool allow_special : {false, true}) {
      std::vector<int32_t> ids, again;
      tokenizers[i].encode(text, {.allow_special = allow_special}, &scratches[i], &ids);
      tokenizers[i].encode(text, {.allow_special = allow_special}, &scratches[i], &again);
      if (ids != again || tokenizers[i].decode(ids) != text) std::abort();
    }
  }
  return 0;
}

}  // namespace orrery

#ifndef ORRERY_FUZZ_IN_TEST
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return orrery::fuzz_tokenizer_encode(data, size); }
#endif
