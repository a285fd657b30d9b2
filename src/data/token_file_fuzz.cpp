// Any bytes as a shard (byte 0 even) or as a Megatron index over a fixed .bin (odd) end in a file or in an Error.
#include <cstring>
#include <vector>

#include "base/error.h"
#include "data/token_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace orrery;
  if (size == 0) return 0;
  std::vector<uint8_t> bytes(data + 1, data + size);
  try {
    if (data[0] % 2 == 1) {
      static const std::vector<uint8_t> tokens(64, 1);
      TokenFile::from_megatron_bytes("fuzz", bytes, tokens)->verify_all();
      return 0;
    }
    if (bytes.size() >= kShardHeaderBytes) {  // past the checksum, or nothing behind it would be reached
      const uint32_t crc = crc32c_of(bytes.data(), offsetof(ShardHeader, header_crc));
      std::memcpy(bytes.data() + offsetof(ShardHeader, header_crc), &crc, 4);
    }
    TokenFile::from_shard_bytes("fuzz", bytes)->verify_all();
  } catch (const Error&) {
  }
  return 0;
}
