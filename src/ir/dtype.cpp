#include "ir/dtype.h"

#include <array>
#include <utility>

namespace orrery {
namespace {
constexpr std::array<std::pair<DType, std::string_view>, 9> kNames = {{{DType::kF32, "f32"},
                                                                       {DType::kBF16, "bf16"},
                                                                       {DType::kF16, "f16"},
                                                                       {DType::kF64, "f64"},
                                                                       {DType::kI8, "i8"},
                                                                       {DType::kU8, "u8"},
                                                                       {DType::kI16, "i16"},
                                                                       {DType::kI32, "i32"},
                                                                       {DType::kI64, "i64"}}};
}  // namespace

std::string_view dtype_name(DType dtype) {
  for (const auto& [value, name] : kNames)
    if (value == dtype) return name;
  return "?";
}

std::optional<DType> parse_dtype(std::string_view name) {
  for (const auto& [value, text] : kNames)
    if (text == name) return value;
  return std::nullopt;
}

}  // namespace orrery
