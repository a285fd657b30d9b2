// The element types of values, and of tensors on disk that can be held as they are.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace orrery {

enum class DType : uint8_t { kF32, kBF16, kF16, kF64, kI8, kU8, kI16, kI32, kI64 };

constexpr int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kI8:
    case DType::kU8: return 1;
    case DType::kBF16:
    case DType::kF16:
    case DType::kI16: return 2;
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kF64:
    case DType::kI64: return 8;
  }
  return 0;
}

/// "f32", "bf16", ...: the names in run.toml, in plans and in messages.
std::string_view dtype_name(DType dtype);
std::optional<DType> parse_dtype(std::string_view name);

}  // namespace orrery
