// The two yardsticks of gemm_bench: products from registers only, and plain reads. One call per thread.
#pragma once

#include <cstdint>

namespace orrery::bench {

/// `steps` times four AMX tile products on registers; 16 * 16 * 32 * 2 operations each. Needs AMX.
void amx_register_loop(int64_t steps);
constexpr double kFlopPerAmxStep = 4.0 * 16 * 16 * 32 * 2;

/// `steps` times twelve independent 16-lane f32 FMAs. Needs AVX-512.
float fma_register_loop(int64_t steps);
constexpr double kFlopPerFmaStep = 12.0 * 16 * 2;

/// `steps` times twelve independent vdpbf16ps. Needs AVX-512 with BF16.
float dp_register_loop(int64_t steps);
constexpr double kFlopPerDpStep = 12.0 * 32 * 2;

/// `steps` times twelve independent vpdpbusd. Needs AVX-512 with VNNI.
int32_t dot_register_loop(int64_t steps);
constexpr double kMultiplyAddsPerDotStep = 12.0 * 64;

/// Reads every byte; a multiple of 512 of them, 64-byte aligned. Needs AVX-512.
uint64_t read_loop(const void* data, int64_t bytes);

}  // namespace orrery::bench
