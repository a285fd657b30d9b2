#include <utility>

#include "backend/kernel.h"

namespace orrery {
namespace {
constexpr std::array<std::pair<Arithmetic, std::string_view>, 3> kNames = {
    {{Arithmetic::kAmx32, "amx32"}, {Arithmetic::kDp2, "dp2"}, {Arithmetic::kFma1, "fma1"}}};
}  // namespace

std::string_view arithmetic_name(Arithmetic arithmetic) { return kNames[static_cast<size_t>(arithmetic)].second; }

std::optional<Arithmetic> parse_arithmetic(std::string_view name) {
  for (const auto& [value, text] : kNames)
    if (text == name) return value;
  return std::nullopt;
}

Arithmetic native_arithmetic(const CpuFeatures& features) {
  if (features.amx_bf16) return Arithmetic::kAmx32;
  return features.avx512_bf16 ? Arithmetic::kDp2 : Arithmetic::kFma1;
}

}  // namespace orrery
