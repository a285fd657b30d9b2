// The bridge from a Tokenizer to building data, and the training of a new tokenizer on the same inputs that data are built
// from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/stop_signals.h"
#include "data/data_builder.h"
#include "tokenizer/tokenizer.h"

namespace orrery {

/// Documents begin with what the tokenizer's post-processor puts before a text (BOS, if it does) and end with its EOS, if it
/// has one. User text never becomes special tokens. Hashes the vocabulary, so it takes a moment.
TokenEncoder token_encoder(const Tokenizer& tokenizer);

/// "auto": ChatML, if the tokenizer has no chat template or one in ChatML; else a renderer that refuses chats, saying why.
/// "chatml": ChatML whatever the template says. The result goes into BuildOptions.
/// Errors  kInvalidArgument: another name.
ChatRenderer chat_renderer(const Tokenizer& tokenizer, const std::string& format);

struct TrainTokenizerOptions {
  std::vector<std::string> inputs;  // as BuildOptions::inputs; token files are refused
  int32_t vocab_size = 32000;
  std::string pattern = "gpt2";
  uint64_t text_bytes_max = uint64_t{256} << 20;  // read no more than this; the vocabulary hardly changes beyond
  int num_threads = 2;
  StopRequested stop_requested;  // kCancelled then
};

/// A byte-level BPE tokenizer with "<|endoftext|>" (EOS, which ends documents), "<|im_start|>", "<|im_end|>" and a ChatML
/// template. Deterministic. Errors  as find_inputs and train_bpe; kCorruptData with file and line.
Tokenizer train_tokenizer(const TrainTokenizerOptions& options);

}  // namespace orrery
