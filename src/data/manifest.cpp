#include "data/manifest.h"

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/mapped_file.h"
#include "data/shard_writer.h"

namespace orrery {
namespace {

using Json = nlohmann::ordered_json;
constexpr char kFormat[] = "orrery token shards";

Json split_json(const SplitSummary& split) {
  return {{"shards", split.shards},
          {"tokens", split.tokens},
          {"documents", split.documents},
          {"masked_tokens", split.masked_tokens}};
}

SplitSummary read_split(const Json& json) {
  SplitSummary split;
  json.at("shards").get_to(split.shards);
  json.at("tokens").get_to(split.tokens);
  json.at("documents").get_to(split.documents);
  json.at("masked_tokens").get_to(split.masked_tokens);
  for (const std::string& shard : split.shards)
    if (shard.find('/') != std::string::npos)
      throw Error(ErrorCode::kCorruptData, "shard name {} is not a plain file name", shard);
  return split;
}

}  // namespace

void save_manifest(const DataManifest& manifest, const std::string& folder) {
  const Json json{{"format", kFormat},
                  {"version", 1},
                  {"inputs_hash", manifest.inputs_hash},
                  {"tokenizer_hash", manifest.tokenizer_hash},
                  {"vocab_size", manifest.vocab_size},
                  {"val_fraction", manifest.val_fraction},
                  {"seed", manifest.seed},
                  {"inputs", manifest.inputs},
                  {"train", split_json(manifest.train)},
                  {"validation", split_json(manifest.validation)}};
  // A path may hold bytes that are not UTF-8; the manifest only describes it.
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  const std::string path = folder + "/manifest.json";
  std::FILE* file = std::fopen(path.c_str(), "wbe");
  if (file == nullptr) throw_io_error(errno, fmt::format("cannot create {}", path));
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const int error = errno;
  if (std::fclose(file) != 0 || !written) throw_io_error(written ? errno : error, fmt::format("cannot write {}", path));
  sync_path(path);
}

DataManifest parse_manifest(std::string_view text, const std::string& name) {
  try {
    const Json json = Json::parse(text);
    if (json.at("format") != kFormat) throw Error(ErrorCode::kCorruptData, "{}: not a manifest of token shards", name);
    if (json.at("version") != 1)
      throw Error(ErrorCode::kUnsupported, "{}: version {}, this program reads 1", name, json.at("version").dump());
    DataManifest manifest;
    json.at("inputs_hash").get_to(manifest.inputs_hash);
    json.at("tokenizer_hash").get_to(manifest.tokenizer_hash);
    json.at("vocab_size").get_to(manifest.vocab_size);
    json.at("val_fraction").get_to(manifest.val_fraction);
    json.at("seed").get_to(manifest.seed);
    json.at("inputs").get_to(manifest.inputs);
    manifest.train = read_split(json.at("train"));
    manifest.validation = read_split(json.at("validation"));
    return manifest;
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorCode::kCorruptData, "{}: {}; build the data again", name, error.what());
  }
}

DataManifest load_manifest(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  const MappedFile file(path);
  return parse_manifest({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path);
}

bool is_shard_folder(const std::string& path) {
  const std::string name = path + "/manifest.json";
  if (!std::filesystem::exists(name)) return false;
  try {
    load_manifest(path);
    return true;
  } catch (const Error&) {
    // Damaged, but recognisably ours: a folder of shards whose manifest does not parse.
    const MappedFile file(name);
    return std::string_view(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()).find(kFormat) !=
           std::string_view::npos;
  }
}

}  // namespace orrery
