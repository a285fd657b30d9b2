#include "ir/parameter_spec.h"

#include "base/error.h"

namespace orrery {

bool is_part(const ParameterSpec& spec) {
  for (const ParameterSegment& segment : spec.segments) {
    int64_t held = 0, whole = 1;
    for (int64_t extent : segment.tensor_shape) whole *= extent;
    for (const ParameterSegment& other : spec.segments) held += other.tensor == segment.tensor ? other.num_rows * spec.columns() : 0;
    if (held < whole) return true;
  }
  return false;
}

void check_parameter_spec(const ParameterSpec& spec) {
  ORRERY_CHECK(spec.shape.size() == 1 || spec.shape.size() == 2, "{} has {} dimensions", spec.name, spec.shape.size());
  int64_t next_row = 0;
  for (const ParameterSegment& segment : spec.segments) {
    ORRERY_CHECK(segment.row_begin == next_row, "{}: segment {} starts at row {}, wanted {}", spec.name, segment.tensor,
                 segment.row_begin, next_row);
    ORRERY_CHECK(segment.tensor_shape.size() == spec.shape.size(), "{}: {}", spec.name, segment.tensor);
    const bool matrix = spec.shape.size() == 2;
    const int64_t tensor_rows = segment.transpose ? segment.tensor_shape[1] : segment.tensor_shape[0];
    const int64_t tensor_columns = !matrix ? 1 : segment.transpose ? segment.tensor_shape[0] : segment.tensor_shape[1];
    ORRERY_CHECK(segment.tensor_column_begin + spec.columns() <= tensor_columns, "{}: {} has {} columns, wanted {} from {} on", spec.name, segment.tensor,
                 tensor_columns, spec.columns(), segment.tensor_column_begin);
    ORRERY_CHECK(segment.tensor_row_begin + segment.num_rows <= tensor_rows, "{}: {}", spec.name, segment.tensor);
    next_row += segment.num_rows;
  }
  ORRERY_CHECK(next_row + spec.padding_rows == spec.rows(), "{}: segments and padding cover {} of {} rows", spec.name,
               next_row + spec.padding_rows, spec.rows());
}

}  // namespace orrery
