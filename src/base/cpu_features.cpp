#include "base/cpu_features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace orrery {
namespace {

constexpr int kArchReqXcompPerm = 0x1023;
constexpr int kXfeatureXtileData = 18;

uint64_t read_xcr0() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

std::string processor_name() {
  char name[49] = {};
  for (uint32_t leaf = 0; leaf < 3; ++leaf) {
    uint32_t registers[4] = {};
    __get_cpuid(0x80000002u + leaf, &registers[0], &registers[1], &registers[2], &registers[3]);
    std::memcpy(name + 16 * leaf, registers, 16);
  }
  std::string text = name;
  const size_t begin = text.find_first_not_of(' ');
  const size_t end = text.find_last_not_of(std::string_view(" \0", 2));
  return begin == std::string::npos ? "unknown" : text.substr(begin, end - begin + 1);
}

CpuFeatures detect() {
  CpuFeatures features;
  features.model_name = processor_name();
  uint32_t a = 0, b = 0, c = 0, d = 0;
  __get_cpuid(1, &a, &b, &c, &d);
  const bool osxsave = c & bit_OSXSAVE, fma = c & bit_FMA, f16c = c & bit_F16C;
  if (!osxsave) return features;
  const uint64_t xcr0 = read_xcr0();
  const bool os_avx = (xcr0 & 0x6) == 0x6, os_avx512 = (xcr0 & 0xE6) == 0xE6, os_amx = (xcr0 & 0x60000) == 0x60000;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  features.avx2 = os_avx && fma && f16c && (b & (1u << 5));
  features.avx512 = features.avx2 && os_avx512 && (b & (1u << 16)) && (b & (1u << 17)) && (b & (1u << 30)) && (b & (1u << 31)) &&
                    (c & (1u << 11)) && (c & (1u << 1));
  const bool amx_tile = d & (1u << 24), amx_bf16 = d & (1u << 22), amx_int8 = d & (1u << 25);
  __get_cpuid_count(7, 1, &a, &b, &c, &d);
  features.avx512_bf16 = features.avx512 && (a & (1u << 5));
  if (features.avx512_bf16 && os_amx && amx_tile && syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0) {
    features.amx_bf16 = amx_bf16;
    features.amx_int8 = amx_int8;
  }
  if (const char* limit = std::getenv("ORRERY_ISA")) {
    const std::string_view wanted = limit;
    if (wanted != "avx2" && wanted != "avx512" && wanted != "amx")
      throw Error(ErrorCode::kInvalidConfig, "ORRERY_ISA={}: wanted avx2, avx512 or amx", wanted);
    if (wanted != "amx") features.amx_bf16 = features.amx_int8 = false;
    if (wanted == "avx2") features.avx512 = features.avx512_bf16 = false;
  }
  return features;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

std::string_view vector_isa_name(VectorIsa isa) { return isa == VectorIsa::kAvx512 ? "avx512" : "avx2"; }

}  // namespace orrery
