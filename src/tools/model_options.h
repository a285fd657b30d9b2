// What the commands that read a MODEL share: opening it with its tokenizer.
#pragma once

#include <string>

#include "checkpoint/model_source.h"
#include "tokenizer/tokenizer.h"

namespace orrery {

constexpr const char* kModelHelp = "a run folder, a checkpoint, a Hugging Face folder or a .gguf file";

/// The tokenizer that came with a model, or the one at `path` when it is not empty.
/// Errors: kInvalidArgument when the model brings none.
Tokenizer model_tokenizer(const ModelSource& source, const std::string& path = {});

}  // namespace orrery
