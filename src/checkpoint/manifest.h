// manifest.json, the last file of a checkpoint: what belongs to it and what its bytes are. A directory without one is no checkpoint.
//   {"format": "orrery-checkpoint", "version": 1, "step": S, "digest": H, "state_digest": H,
//    "files": [{"name", "bytes", "xxh3_128": H, "crc32c": 8 hex digits for each block of 1 MiB}, ...],
//    "self": H}       H = 32 hex digits. "self" is the XXH3-128 of every byte before its line, so no byte is unguarded.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orrery {

constexpr uint64_t kChecksumBlockBytes = uint64_t{1} << 20;
constexpr uint64_t kMaxManifestBytes = uint64_t{256} << 20;
constexpr int64_t kManifestVersion = 1;

struct ManifestFile {
  std::string name;
  uint64_t bytes = 0;
  std::string xxh3_128;
  std::vector<uint32_t> block_crcs;
  bool operator==(const ManifestFile&) const = default;
};

struct Manifest {
  int64_t step = 0;
  std::string digest;
  std::string state_digest;
  std::vector<ManifestFile> files;
  bool operator==(const Manifest&) const = default;
};

std::string manifest_to_text(const Manifest& manifest);

/// Errors: kCorruptData: any byte changed, a field missing or ill-typed, a file name with a directory in it. kUnsupported: a version
/// that this program does not know.
Manifest manifest_from_text(std::string_view text, std::string_view where);

}  // namespace orrery
