// Learns a byte-level BPE vocabulary from text, as the `tokenizers` package's BpeTrainer does with the full byte alphabet: the
// same vocabulary and merges for the same text and options (tokenizer_golden_test.cpp).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/stop_signals.h"
#include "base/thread_pool.h"
#include "tokenizer/tokenizer.h"

namespace orrery {

struct TrainBpeOptions {
  int32_t vocab_size = 32000;               // special tokens and the 256 bytes included; fewer when the text has no more pairs
  std::string pattern = "gpt2";             // gpt2, cl100k, o200k, llama3, qwen2, tekken, digits+gpt2
  std::vector<std::string> special_tokens;  // get the first ids
  std::string bos_token, eos_token, pad_token;  // among special_tokens; empty: none
  bool add_bos = false;                         // the post-processor puts BOS before every text
  int64_t min_frequency = 2;                    // pairs seen less often are not merged
  ThreadPool* pool = nullptr;                   // counts words in parallel; the result does not depend on it
  StopRequested stop_requested;                 // asked between stretches of text and between merges
};

/// The next stretch of text, false at the end. Words do not cross stretches. Called by one thread at a time.
using NextChunk = std::function<bool(std::string* chunk)>;

/// Deterministic: the most frequent pair first, among equals the smallest ids.
/// Cost    one pass over the text, then per merge the words that hold the pair.
/// Errors  kInvalidArgument: unknown pattern, a vocabulary too small for the bytes, BOS/EOS/PAD not special. kCancelled: a stop was requested.
Tokenizer train_bpe(const NextChunk& next_chunk, const TrainBpeOptions& options);

}  // namespace orrery
