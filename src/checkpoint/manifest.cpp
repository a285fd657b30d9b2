#include "checkpoint/manifest.h"

#include <charconv>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "checkpoint/digest.h"
#include "checkpoint/file_system.h"

namespace orrery {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::string_view kSelfKey = ",\n\"self\": \"";
constexpr std::string_view kTail = "\"\n}\n";

std::string self_hash(std::string_view body) {
  Hash128 hash;
  hash.update(body);
  return hash.hex();
}

[[noreturn]] void corrupt(std::string_view where, const std::string& what) {
  throw Error(ErrorCode::kCorruptData, "{}: {}; use another checkpoint", where, what);
}

uint64_t unsigned_field(const Json& object, const char* key, std::string_view where) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_unsigned()) corrupt(where, fmt::format("\"{}\" is not a count", key));
  return it->get<uint64_t>();
}

std::string hash_field(const Json& object, const char* key, std::string_view where) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_string()) corrupt(where, fmt::format("\"{}\" is missing", key));
  const std::string text = it->get<std::string>();
  if (text.size() != 32 || text.find_first_not_of("0123456789abcdef") != std::string::npos) {
    corrupt(where, fmt::format("\"{}\" is not a hash", key));
  }
  return text;
}

ManifestFile file_from_json(const Json& json, std::string_view where) {
  if (!json.is_object()) corrupt(where, "a file entry is not an object");
  ManifestFile file;
  const auto name = json.find("name");
  if (name == json.end() || !name->is_string() || !is_plain_file_name(name->get<std::string>())) corrupt(where, "a file entry has no plain name");
  file.name = name->get<std::string>();
  file.bytes = unsigned_field(json, "bytes", where);
  file.xxh3_128 = hash_field(json, "xxh3_128", where);
  const auto crcs = json.find("crc32c");
  if (crcs == json.end() || !crcs->is_string()) corrupt(where, "\"crc32c\" is missing");
  const std::string& hex = crcs->get_ref<const std::string&>();
  const uint64_t num_blocks = file.bytes / kChecksumBlockBytes + (file.bytes % kChecksumBlockBytes != 0 ? 1 : 0);
  if (hex.size() % 8 != 0 || hex.size() / 8 != num_blocks) {
    corrupt(where, fmt::format("{}: {} digits of block checksums for {} bytes", file.name, hex.size(), file.bytes));
  }
  file.block_crcs.resize(num_blocks);
  for (uint64_t i = 0; i < num_blocks; ++i) {
    const char* begin = hex.data() + 8 * i;
    if (std::from_chars(begin, begin + 8, file.block_crcs[i], 16).ptr != begin + 8) corrupt(where, file.name + ": a block checksum is not hexadecimal");
  }
  return file;
}

}  // namespace

std::string manifest_to_text(const Manifest& manifest) {
  std::string text = fmt::format(
      "{{\n\"format\": \"orrery-checkpoint\",\n\"version\": {},\n\"step\": {},\n\"digest\": \"{}\",\n\"state_digest\": \"{}\",\n\"files\": [",
      kManifestVersion, manifest.step, manifest.digest, manifest.state_digest);
  bool first = true;
  for (const ManifestFile& file : manifest.files) {
    std::string crcs;
    crcs.reserve(8 * file.block_crcs.size());
    for (const uint32_t crc : file.block_crcs) fmt::format_to(std::back_inserter(crcs), "{:08x}", crc);
    text += fmt::format("{}\n  {{\"name\": {}, \"bytes\": {}, \"xxh3_128\": \"{}\", \"crc32c\": \"{}\"}}", first ? "" : ",", Json(file.name).dump(),
                        file.bytes, file.xxh3_128, crcs);
    first = false;
  }
  text += "\n]";
  const std::string hash = self_hash(text);
  return text.append(kSelfKey).append(hash).append(kTail);
}

Manifest manifest_from_text(std::string_view text, std::string_view where) {
  const size_t tail_bytes = kSelfKey.size() + 32 + kTail.size();
  if (text.size() < tail_bytes) corrupt(where, "too short for a manifest");
  const std::string_view body = text.substr(0, text.size() - tail_bytes);
  if (text.substr(body.size()) != std::string(kSelfKey) + self_hash(body) + std::string(kTail)) {
    corrupt(where, "its own checksum does not match: it was changed or cut");
  }
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::exception& error) {
    corrupt(where, fmt::format("not valid JSON ({})", error.what()));
  }
  if (!json.is_object() || !json.contains("format") || json["format"] != "orrery-checkpoint") corrupt(where, "not the manifest of a checkpoint");
  const uint64_t version = unsigned_field(json, "version", where);
  if (version != static_cast<uint64_t>(kManifestVersion)) {
    throw Error(ErrorCode::kUnsupported, "{}: format version {}, but this program reads version {}; use the program that wrote it", where, version,
                kManifestVersion);
  }
  Manifest manifest;
  const uint64_t step = unsigned_field(json, "step", where);
  if (step > static_cast<uint64_t>(INT64_MAX)) corrupt(where, "\"step\" is too large");
  manifest.step = static_cast<int64_t>(step);
  manifest.digest = hash_field(json, "digest", where);
  manifest.state_digest = hash_field(json, "state_digest", where);
  const auto files = json.find("files");
  if (files == json.end() || !files->is_array()) corrupt(where, "\"files\" is not a list");
  std::set<std::string> names;
  for (const Json& entry : *files) {
    manifest.files.push_back(file_from_json(entry, where));
    if (!names.insert(manifest.files.back().name).second) corrupt(where, manifest.files.back().name + " stands twice");
  }
  return manifest;
}

}  // namespace orrery
