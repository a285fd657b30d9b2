#include "tools/model_options.h"

namespace orrery {

Tokenizer model_tokenizer(const ModelSource& source, const std::string& path) {
  return path.empty() ? load_model_tokenizer(source) : load_tokenizer(path);
}

}  // namespace orrery
