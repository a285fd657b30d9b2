#include "register_loop.h"

#include "backend/cpu/loop_seconds.h"
#include "base/cpu_features.h"
#include "gemm_loops.h"

namespace orrery::bench {
namespace {

void dp_loop(int64_t steps) { [[maybe_unused]] volatile float sink = dp_register_loop(steps); }
void fma_loop(int64_t steps) { [[maybe_unused]] volatile float sink = fma_register_loop(steps); }

}  // namespace

RegisterLoop register_loop(DType dtype) {
  const CpuFeatures& features = cpu_features();
  const RegisterLoop fma{fma_loop, kFlopPerFmaStep}, dp{dp_loop, kFlopPerDpStep};
  if (dtype == DType::kBF16 && features.amx_bf16) return {amx_register_loop, kFlopPerAmxStep};
  if (!features.avx512) return {};
  if (dtype != DType::kBF16 || !features.avx512_bf16) return fma;
  return loop_seconds(dp.run) / dp.flop_per_step < loop_seconds(fma.run) / fma.flop_per_step ? dp : fma;
}

}  // namespace orrery::bench
