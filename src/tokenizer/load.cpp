// Which kind of tokenizer a folder or file holds.
#include <sys/stat.h>

#include <cerrno>

#include "base/error.h"
#include "tokenizer/json_util.h"
#include "tokenizer/tokenizer.h"

namespace orrery {
namespace {

bool exists(const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0;
}

// The pattern of a rank file, from its name, which is all there is to go by.
std::string pattern_of_file_name(const std::string& path) {
  const std::string name = path.substr(path.find_last_of('/') + 1);
  const auto has = [&](std::string_view part) { return name.find(part) != std::string::npos; };
  if (has("cl100k")) return "cl100k";
  if (has("o200k")) return "o200k";
  if (has("qwen")) return "cl100k";
  if (has("gpt2") || has("r50k") || has("p50k") || has("multilingual")) return "gpt2";
  throw Error(ErrorCode::kUnsupported,
              "{}: token ranks do not say which pattern splits text; name the file after it (gpt2, cl100k, o200k) or give a "
              "tokenizer.json",
              path);
}

Tokenizer load_file(const std::string& path, const std::string& config) {
  const std::string data = read_file_bytes(path);
  const size_t first = data.find_first_not_of(" \t\r\n\xEF\xBB\xBF");
  if (first == std::string::npos) throw Error(ErrorCode::kCorruptData, "{}: the file is empty", path);
  if (data.starts_with("GGUF")) {
    throw Error(ErrorCode::kUnsupported, "{}: a GGUF file is a whole model; give it as the model, its tokenizer comes with it",
                path);
  }
  try {
    if (data[first] == '{') {
      const bool tekken = data.find("\"added_tokens\"") == std::string::npos &&
                          data.find("\"default_num_special_tokens\"") != std::string::npos;
      return tekken ? load_tekken(data) : load_tokenizer_json(data, config);
    }
    const std::string_view line = std::string_view(data).substr(0, std::min(data.find('\n'), data.size()));
    const size_t space = line.find(' ');
    const bool ranks = space != std::string_view::npos &&
                       line.find_first_not_of("0123456789\r", space + 1) == std::string_view::npos &&
                       static_cast<uint8_t>(data[0]) > 0x20;
    return ranks ? load_tiktoken(data, pattern_of_file_name(path)) : load_sentencepiece(data, config);
  } catch (const Error& e) {
    throw Error(e.code(), fmt::format("{}: {}", path, e.what()));
  }
}

}  // namespace

Tokenizer load_tokenizer(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) throw_io_error(errno, fmt::format("cannot open the tokenizer {} (a folder with tokenizer.json, or a file)", path));
  const bool is_folder = S_ISDIR(status.st_mode);
  const std::string folder =
      is_folder ? path : path.substr(0, path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  const std::string base = folder.empty() ? (is_folder || path.starts_with('/') ? "/" : "./") : folder + "/";
  const std::string config =
      exists(base + "tokenizer_config.json") ? read_file_bytes(base + "tokenizer_config.json") : std::string();
  std::string file = path;
  if (is_folder) {
    file.clear();
    for (const char* name : {"tokenizer.json", "tekken.json", "tokenizer.model", "spiece.model"}) {
      if (file.empty() && exists(base + name)) file = base + name;
    }
    if (file.empty()) {
      throw Error(ErrorCode::kIo, "{}: no tokenizer in this folder; wanted tokenizer.json, tekken.json or tokenizer.model",
                  path);
    }
  }
  Tokenizer tokenizer = load_file(file, config);
  if (tokenizer.chat_template().empty() && exists(base + "chat_template.jinja")) {
    return tokenizer.with_chat_template(read_file_bytes(base + "chat_template.jinja"));
  }
  return tokenizer;
}

}  // namespace orrery
