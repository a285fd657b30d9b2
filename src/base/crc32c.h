// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), the checksum of checkpoint blocks. The SSE4.2 instruction where the
// processor has it, a table elsewhere; both give the same value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace orrery {

/// The CRC of `data` appended to bytes whose CRC is `crc` (0 for none). crc32c(0, "123456789") = 0xE3069283.
uint32_t crc32c(uint32_t crc, std::span<const std::byte> data);

/// The table version, for the test that compares them.
uint32_t crc32c_portable(uint32_t crc, std::span<const std::byte> data);

}  // namespace orrery
