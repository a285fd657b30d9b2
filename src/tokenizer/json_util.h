// Reading JSON values with errors that name the place. For .cpp files of this folder only.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>

namespace orrery {

/// Errors: kCorruptData with the parser's position. Nesting deeper than 64 is refused.
nlohmann::json parse_json(std::string_view text, std::string_view what);
/// The same value in one spelling: no spaces, keys sorted.
std::string canonical_json(std::string_view text, std::string_view what);
const nlohmann::json& json_member(const nlohmann::json& node, const char* key, std::string_view where);
std::string json_string(const nlohmann::json& node, const char* key, std::string_view where);
const nlohmann::json& json_array(const nlohmann::json& node, const char* key, std::string_view where);
/// `fallback` where the key is absent or null.
bool json_bool(const nlohmann::json& node, const char* key, bool fallback);
/// {"pattern": {"String": s} or {"Regex": s}}: the text, and whether it is a regex.
std::pair<std::string, bool> json_pattern(const nlohmann::json& node, std::string_view where);

/// As json_string, at most 256 bytes: what a component may put in place of a character, so that text cannot grow without bound.
std::string json_short_string(const nlohmann::json& node, const char* key, std::string_view where);

/// Errors: kCorruptData.
std::string base64_decode(std::string_view text);
std::string base64_encode(std::string_view bytes);
/// Errors: kIo, also for files above `bytes_max`.
std::string read_file_bytes(const std::string& path, size_t bytes_max = size_t{1} << 30);
/// Written beside, synced, then renamed into place.
void write_file_bytes(const std::string& path, std::string_view bytes);

}  // namespace orrery
