// A table of published training runs (one measured figure a row), read into jobs that the cost model can price. What a row leaves out
// is filled from the model's published architecture or the source's cluster, and a row that stays incomplete says why.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "planner/training_job.h"

namespace orrery {

/// What a row's figure is compared with.
enum class RunMetric : uint8_t { kStepTime, kMemory, kOutOfMemory, kPower, kOther };

struct PublishedRun {
  int line = 0;  // in the file
  std::string source, system, model_name, release;
  TrainingJob job;
  RunMetric metric = RunMetric::kOther;
  double step_seconds = 0;  // kStepTime: the printed figure as seconds a step
  double memory_bytes = 0;  // kMemory
  bool memory_reserved = false;  // as the driver or the allocator's pool sees it, not what tensors use
  double node_watts = 0;         // kPower
  double global_batch = 0;
  std::string skipped;           // not empty: cannot be scored, and why
  std::string plan_group;        // rows of one source with the same model, cluster, batch, length and precision
  std::string layout_key;        // the layout and model without the software's release
  std::string layer_key;         // what one layer of it is: width, tensor degree, micro-batch, length
  uint64_t fingerprint = 0;      // of everything but the measured value
};

/// Reads a whole file. Errors: kInvalidArgument when it cannot be read; kCorruptData: no header, a column missing, a row with
/// another number of fields, each with its line.
std::vector<PublishedRun> load_published_runs(const std::string& path);
std::vector<PublishedRun> parse_published_runs(std::string_view text, const std::string& file);

}  // namespace orrery
