// The peak that products are held against.
#pragma once

#include <cstdint>

#include "ir/dtype.h"

namespace orrery::bench {

/// What this processor's products of numbers of `dtype` are held against: of the loops that give their bits, the fastest. run is null
/// where there is none.
struct RegisterLoop {
  void (*run)(int64_t steps) = nullptr;
  double flop_per_step = 0;
};
RegisterLoop register_loop(DType dtype);

}  // namespace orrery::bench
