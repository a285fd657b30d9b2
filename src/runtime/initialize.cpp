#include "runtime/initialize.h"

#include <algorithm>
#include <cmath>

#include "base/bfloat16.h"
#include "base/philox.h"
#include "base/portable_math.h"
#include "runtime/normal_draws.h"

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

namespace {

// Where the values of a parameter go.
struct Destination {
  DType compute_dtype;
  void* weight;
  int16_t* low;

  void store(int64_t index, float value) const {
    if (compute_dtype == DType::kF32) {
      static_cast<float*>(weight)[index] = value;
    } else {
      static_cast<uint16_t*>(weight)[index] = master_high(value);
      if (low) low[index] = master_low(value);
    }
  }
};

// `count` values of a segment that lie side by side in its tensor, from (tensor_row, tensor_column) on in the tensor as the world stores it.
void draw_run(const ParameterSpec& spec, const ParameterSegment& segment, uint64_t seed, int64_t stored_row, int64_t stored_column, int64_t count, float* out) {
  if (spec.init != InitKind::kNormal) return static_cast<void>(std::fill_n(out, count, spec.init == InitKind::kOnes ? 1.0f : 0.0f));
  const int64_t width = segment.tensor_shape.size() > 1 ? segment.tensor_shape[1] : 1;
  initial_normals(seed, segment.tensor_index, stored_row * width + stored_column, count, spec.init_std, out);
}

}  // namespace

void initialize_parameter(const ParameterSpec& spec, uint64_t seed, DType compute_dtype, void* weight, int16_t* low, ThreadPool& pool) {
  // Runs of at most kRun values; a transposed segment is written kLanes runs at a time, so that whole cache lines are.
  constexpr int64_t kRun = 256, kLanes = 32;
  const Destination to{compute_dtype, weight, low};
  const int64_t columns = spec.columns();
  for (const ParameterSegment& segment : spec.segments) {
    if (!segment.transpose) {
      pool.parallel_for(segment.num_rows, std::max<int64_t>(1, kRun / std::max<int64_t>(1, columns)), [&](int64_t begin, int64_t end) {
        float values[kRun];
        for (int64_t row = begin; row < end; ++row)
          for (int64_t column = 0; column < columns; column += kRun) {
            const int64_t count = std::min(kRun, columns - column);
            draw_run(spec, segment, seed, segment.tensor_row_begin + row, segment.tensor_column_begin + column, count, values);
            for (int64_t i = 0; i < count; ++i) to.store((segment.row_begin + row) * columns + column + i, values[i]);
          }
      });
      continue;
    }
    pool.parallel_for(columns, kLanes, [&](int64_t begin, int64_t end) {
      float values[kLanes][kRun];
      for (int64_t column = begin; column < end; column += kLanes)
        for (int64_t row = 0; row < segment.num_rows; row += kRun) {
          const int64_t lanes = std::min(kLanes, end - column), count = std::min(kRun, segment.num_rows - row);
          for (int64_t lane = 0; lane < lanes; ++lane)
            draw_run(spec, segment, seed, segment.tensor_column_begin + column + lane, segment.tensor_row_begin + row, count, values[lane]);
          for (int64_t i = 0; i < count; ++i)
            for (int64_t lane = 0; lane < lanes; ++lane) to.store((segment.row_begin + row + i) * columns + column + lane, values[lane][i]);
        }
    });
  }
  for (int64_t index = (spec.rows() - spec.padding_rows) * columns; index < spec.num_elements(); ++index) to.store(index, 0);
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
