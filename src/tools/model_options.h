// What the commands that read a MODEL share: opening it with its tokenizer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/model_source.h"
#include "tokenizer/tokenizer.h"

namespace orrery {

constexpr const char* kModelHelp = "a run folder, a checkpoint, a Hugging Face folder or a .gguf file";

/// The tokenizer at `path`, or, when that is empty, the one that came with the model.
Tokenizer model_tokenizer(const ModelSource& source, const std::string& path = {});

/// The tokens that end an answer: the configuration's, the tokenizer's, and the end-of-turn tokens of usual chat formats that it has.
std::vector<int32_t> end_tokens(const ModelSource& source, const Tokenizer& tokenizer);

}  // namespace orrery
