#include "runtime/initialize.h"

#include <cmath>

#include "base/bfloat16.h"
#include "base/philox.h"
#include "base/portable_math.h"

namespace orrery {

constexpr double kTwoPi = 6.283185307179586;

float initial_normal(uint64_t seed, int32_t tensor_index, int64_t index, float std) {
  const PhiloxStream stream(seed, RandomPurpose::kInit, static_cast<uint32_t>(tensor_index), 0);
  // One group of four words makes two pairs: elements 2g and 2g + 1 share a pair.
  const auto words = stream.group(static_cast<uint64_t>(index) >> 1);
  const double u = (words[0] + 1.0) * 0x1p-32, v = words[1] * 0x1p-32;  // u in (0, 1]
  const double radius = std::sqrt(-2.0 * portable_log(u));              // sqrt is exact rounding everywhere
  const SinCos angle = portable_sincos(kTwoPi * v);
  return static_cast<float>(std * radius * ((index & 1) ? angle.sin : angle.cos));
}

void initialize_parameter(const ParameterSpec& spec, uint64_t seed, DType compute_dtype, void* weight, int16_t* low) {
  const int64_t columns = spec.columns();
  const auto store = [&](int64_t index, float value) {
    if (compute_dtype == DType::kF32) {
      static_cast<float*>(weight)[index] = value;
    } else {
      static_cast<uint16_t*>(weight)[index] = master_high(value);
      if (low) low[index] = master_low(value);
    }
  };
  for (const ParameterSegment& segment : spec.segments)
    for (int64_t row = 0; row < segment.num_rows; ++row)
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t tensor_row = segment.tensor_row_begin + row, tensor_column = segment.tensor_column_begin + column;
        const int64_t width = segment.tensor_shape.size() > 1 ? segment.tensor_shape[1] : 1;  // as stored in the world
        const int64_t logical = segment.transpose ? tensor_column * width + tensor_row : tensor_row * width + tensor_column;
        float value = 0;
        if (spec.init == InitKind::kOnes) value = 1;
        if (spec.init == InitKind::kNormal) value = initial_normal(seed, segment.tensor_index, logical, spec.init_std);
        store((segment.row_begin + row) * columns + column, value);
      }
  for (int64_t index = (spec.rows() - spec.padding_rows) * columns; index < spec.num_elements(); ++index) store(index, 0);
}

namespace {

// The frequency of pair i after Llama 3's rule: long waves are slowed by `factor`, short ones kept, a ramp between.
double scaled_frequency(const RopeTable& table, double frequency) {
  if (!table.llama3) return frequency / table.factor;
  const double wavelength = kTwoPi / frequency;
  const double low = static_cast<double>(table.original_max_positions) / table.low_freq_factor;
  const double high = static_cast<double>(table.original_max_positions) / table.high_freq_factor;
  if (wavelength < high) return frequency;
  if (wavelength > low) return frequency / table.factor;
  const double smooth = (static_cast<double>(table.original_max_positions) / wavelength - table.low_freq_factor) / (table.high_freq_factor - table.low_freq_factor);
  return (1 - smooth) * frequency / table.factor + smooth * frequency;
}

}  // namespace

void fill_rope_table(const RopeTable& table, float* out) {
  const int64_t pairs = table.rotary_dim / 2;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const double exponent = 2.0 * static_cast<double>(pair) / static_cast<double>(table.rotary_dim);
    const double frequency = scaled_frequency(table, portable_exp(-exponent * portable_log(table.theta)));
    for (int64_t position = 0; position < table.max_positions; ++position) {
      const SinCos angle = portable_sincos(static_cast<double>(position) * frequency);
      float* cell = out + (position * pairs + pair) * 2;
      cell[0] = static_cast<float>(angle.cos);
      cell[1] = static_cast<float>(angle.sin);
    }
  }
}

}  // namespace orrery
