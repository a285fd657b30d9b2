// What one step of a run looked like, and its text: the live line of a terminal, the plain line of a pipe, JSON. Pure
// functions; who prints them when is train/progress.h.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

namespace orrery {

struct StepReport {
  int64_t step = 0;  // 1 after the first optimizer step
  int64_t num_steps = 0;
  double loss = std::numeric_limits<double>::quiet_NaN();           // mean over the valid tokens of the step
  double gradient_norm = std::numeric_limits<double>::quiet_NaN();  // of the mean gradient, before clipping
  double lr = 0;
  int64_t tokens = 0;                     // trained on since the first step of the run
  double tokens_per_second = 0;           // over the interval that the report covers
  double flops_per_second = 0;            // model FLOP/s: recomputed work is not counted
  double peak_flops_per_second = 0;       // measured by `orrery probe`; 0: not known
  int64_t memory_bytes = 0;               // resident
  int64_t planned_bytes = 0;              // what the plan said; 0: not known
  double elapsed_seconds = 0;             // since this process began to train
  double eta_seconds = -1;                // below 0: not known yet
  int64_t skipped_steps = 0;              // steps with a non-finite gradient, since the first step
  std::optional<double> validation_loss;  // set when this step was followed by a validation
};

/// The share of the machine's measured peak, 0 to 1; below 0 when that is not known, or was measured while the machine was busy and is below what the run does.
double peak_share(const StepReport& report);

struct LineStyle {
  int width = 0;       // columns; 0: as long as it wants
  bool color = false;  // ANSI colours
};

/// "step  40/240  loss 6.312  gnorm 1.93  lr 3.0e-4  5.3k tok/s  0.61 TFLOP/s  57% of peak  mem 0.40 of 0.41 GiB  eta 2m35s".
/// With a width the least important parts leave until what remains fits: a line never wraps, colours do not count.
std::string step_line(const StepReport& report, const LineStyle& style);

/// One JSON object without a line end. Numbers that are not finite, and values that are not known, are null.
std::string step_json(const StepReport& report);

}  // namespace orrery
