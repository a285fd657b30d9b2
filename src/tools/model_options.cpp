#include "tools/model_options.h"

#include <algorithm>

namespace orrery {

Tokenizer model_tokenizer(const ModelSource& source, const std::string& path) {
  return path.empty() ? load_model_tokenizer(source) : load_tokenizer(path);
}

std::vector<int32_t> end_tokens(const ModelSource& source, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  for (const int64_t id : source.config().eos_token_ids) ids.push_back(static_cast<int32_t>(id));
  if (tokenizer.eos_id() >= 0) ids.push_back(tokenizer.eos_id());
  // Many files name only the end of a text: ChatML, Llama 3, Gemma, Phi 3.
  for (const char* turn : {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"})
    if (const int32_t id = tokenizer.token_id(turn); id >= 0) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace orrery
