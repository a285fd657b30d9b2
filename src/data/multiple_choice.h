// Multiple-choice questions for evaluation by log-likelihood: JSON lines of context, choices and the right one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/data_builder.h"

namespace orrery {

struct MultipleChoiceQuestion {
  std::string context;
  std::vector<std::string> choices;  // at least 2
  int answer = 0;                    // index into choices
};

/// One line:
///   context   "context", "question", "query", "prompt" or "ctx" (the first that is there)
///   choices   "choices" or "endings": a list of strings; or ARC's {"choices": {"text": [...], "label": [...]}}
///   answer    "answer", "gold", "label" or "answerKey": an index from 0, or a label: one of ARC's, or "A", "B", ...
/// Errors  kCorruptData, saying what is missing; the caller adds file and line.
MultipleChoiceQuestion parse_multiple_choice(std::string_view line);

/// A question as ids: the model scores each choice_ids as the continuation of context_ids. Context and choice are tokenized
/// apart, so that all choices continue the same ids. Spaces at the context's end are dropped and each choice begins with one
/// (not after a line's end, and not when it brings its own), because tokenizers keep a space with the word behind it.
struct TokenizedQuestion {
  std::vector<int32_t> context_ids;  // with the tokenizer's begin token
  std::vector<std::vector<int32_t>> choice_ids;
  std::vector<uint32_t> choice_bytes;  // length of each choice's text, for scores per byte
  int answer = 0;
};
TokenizedQuestion tokenize(const MultipleChoiceQuestion& question, const TokenEncoder& encoder,
                           const TokenEncoder::Session& session);

/// Every question of a file (.gz and .zst too).
/// Errors  kIo, kCorruptData with file and line; an empty file.
std::vector<TokenizedQuestion> load_multiple_choice(const std::string& path, const TokenEncoder& encoder);

}  // namespace orrery
