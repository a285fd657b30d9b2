// What this processor can do, asked once. Kernels are chosen by it at run time, so that one binary starts anywhere.
#pragma once

#include <string>
#include <string_view>

namespace orrery {

/// The ladder of vector instruction sets that kernels are built for. AMX is a separate capability on top of kAvx512.
enum class VectorIsa { kAvx2, kAvx512 };

struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA and F16C: the least that Orrery runs on
  bool avx512 = false;       // F, BW, DQ, VL, VNNI, VBMI
  bool avx512_bf16 = false;  // vdpbf16ps
  bool amx_bf16 = false;     // tile + bf16, and the kernel granted the tile state
  bool amx_int8 = false;
  std::string model_name;
  VectorIsa best_isa() const { return avx512 ? VectorIsa::kAvx512 : VectorIsa::kAvx2; }
};

/// Asks CPUID, the OS (XCR0) and, for AMX, requests the tile state for the process. The environment variable
/// ORRERY_ISA=avx2|avx512|amx lowers the answer, for tests. Cached; thread-safe.
const CpuFeatures& cpu_features();

std::string_view vector_isa_name(VectorIsa isa);

}  // namespace orrery
