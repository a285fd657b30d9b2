// Ids to bytes: what each token contributes, worked out once from tokenizer.json's "decoder", and what is trimmed at the two
// ends.
#pragma once

#include <string>
#include <vector>

#include "tokenizer/spec.h"

namespace orrery {

struct DecoderTable {
  std::vector<std::string> bytes;  // by id
  std::string strip_text;  // trimmed from the decoded text: at most strip_left times at its start, strip_right at its end
  int strip_left = 0;
  int strip_right = 0;
};

/// Errors: kUnsupported naming the decoder, kCorruptData.
DecoderTable make_decoder(const TokenizerSpec& spec, bool byte_level);

}  // namespace orrery
