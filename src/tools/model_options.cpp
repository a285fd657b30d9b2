#include "tools/model_options.h"

#include "base/error.h"

namespace orrery {

Tokenizer model_tokenizer(const ModelSource& source, const std::string& path) {
  if (!path.empty()) return load_tokenizer(path);
  const ModelTokenizer& found = source.tokenizer();
  if (const std::string* json = found.file("tokenizer.json")) {
    const std::string* config = found.file("tokenizer_config.json");
    return load_tokenizer_json(*json, config ? *config : std::string());
  }
  if (!found.directory.empty() && !found.files.empty()) return load_tokenizer(found.directory);
  if (found.vocabulary) {
    const GgufVocabulary& vocabulary = *found.vocabulary;
    GgufTokenizerData data;
    data.model = vocabulary.model;
    data.pre = vocabulary.pre;
    data.tokens = vocabulary.tokens;
    data.scores = vocabulary.scores;
    data.token_types = vocabulary.token_types;
    data.merges = vocabulary.merges;
    data.bos_id = vocabulary.bos_id;
    data.eos_id = vocabulary.eos_id;
    data.pad_id = vocabulary.pad_id;
    data.unk_id = vocabulary.unk_id;
    data.add_bos = vocabulary.add_bos;
    data.add_eos = vocabulary.add_eos;
    data.add_space_prefix = vocabulary.add_space_prefix;
    data.remove_extra_whitespaces = vocabulary.remove_extra_whitespaces;
    data.precompiled_charsmap = vocabulary.precompiled_charsmap;
    data.chat_template = found.chat_template;
    return load_gguf_tokenizer(data);
  }
  throw Error(ErrorCode::kInvalidArgument, "{} brings no tokenizer; name one with --tokenizer (a folder or file)", source.path());
}

}  // namespace orrery
