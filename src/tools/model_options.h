// What the commands that read a MODEL share: opening it with its tokenizer.
#pragma once

#include <string>

#include "checkpoint/model_source.h"
#include "tokenizer/tokenizer.h"

namespace orrery {

constexpr const char* kModelHelp = "a run folder, a checkpoint, a Hugging Face folder or a .gguf file";

/// The tokenizer at `path`, or, when that is empty, the one that came with the model.
Tokenizer model_tokenizer(const ModelSource& source, const std::string& path = {});

}  // namespace orrery
