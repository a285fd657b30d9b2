// What memory holds before the first step: initial weights and constants. Functions of (seed, tensor, element) alone, so every
// layout starts from the same bits (NUMERICS rule 10).
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "ir/block.h"

namespace orrery {

/// Element `index` (row-major in the logical Hugging Face tensor) of a kNormal tensor: Box-Muller on Philox(seed, kInit, tensor_index).
float initial_normal(uint64_t seed, int32_t tensor_index, int64_t index, float std);

/// Writes a parameter's initial f32 values as its compute weight (bf16 high or f32) and, when `low` is not null, its low halves.
void initialize_parameter(const ParameterSpec& spec, uint64_t seed, DType compute_dtype, void* weight, int16_t* low, ThreadPool& pool);

/// cos and sin of position * frequency, [max_positions, rotary_dim / 2, 2] f32, computed in f64 and rounded once.
/// Source  Su et al. 2021, arXiv:2104.09864; Llama 3 scaling as in Meta's reference (wavelength blend between two bounds).
void fill_rope_table(const RopeTable& table, float* out);

}  // namespace orrery
