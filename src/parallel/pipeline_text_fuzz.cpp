// Any bytes as a schedule file: a typed Error, or an order that prints and reads back to itself, and that lowering refuses or verifies
// with at most the circles that a file may describe.
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "ir/verify_schedules.h"
#include "parallel/lower_pipeline.h"

namespace orrery {

inline int fuzz_pipeline_text(const uint8_t* data, size_t size) {
  try {
    const PipelineOrder order = parse_pipeline_order({reinterpret_cast<const char*>(data), size});
    if (!(parse_pipeline_order(to_string(order)) == order)) std::abort();
    if (order.num_micro_batches > 64) return 0;  // time, not correctness
    const auto ranks = lower_pipeline(order, {.share = {.global_batch_size = order.num_micro_batches}});
    for (const std::string& problem : verify_schedules(ranks, {.num_stages = order.num_stages()}))
      if (problem.find("wait for each other") == std::string::npos && problem.find("makes its input") == std::string::npos) std::abort();
  } catch (const Error&) {
  }
  return 0;
}

}  // namespace orrery

#ifndef ORRERY_FUZZ_IN_TEST
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return orrery::fuzz_pipeline_text(data, size); }
#endif
