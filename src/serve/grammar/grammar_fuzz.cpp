// The first byte chooses the kind, the rest is the text: compiled within small limits, then one mask, which is never empty.
#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "serve/grammar/grammar.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto vocabulary = [] {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    for (const char* piece : {"<end>", "{\"", "\": ", "true", "123", "\xC3\xA9"}) tokens.emplace_back(piece);
    return std::make_shared<const orrery::GrammarVocabulary>(std::move(tokens), std::vector<int32_t>{256});
  }();
  if (size == 0) return 0;
  try {
    const auto grammar = orrery::Grammar::compile(static_cast<orrery::GrammarKind>(data[0] % 5), std::string_view(reinterpret_cast<const char*>(data) + 1, size - 1), vocabulary,
                                                  {.states_max = 20000, .work_max = 200000});
    orrery::GrammarMatcher matcher(grammar);
    std::vector<uint64_t> mask(vocabulary->mask_words());
    matcher.fill_mask(mask);
    uint64_t any = 0;
    for (const uint64_t word : mask) any |= word;
    if (any == 0) std::abort();
  } catch (const orrery::Error&) {
  }
  return 0;
}
