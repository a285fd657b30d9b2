// Reports made-up steps the way a training run does; terminal_test.py looks at what a terminal shows of them.
#include <cmath>
#include <cstring>

#include "train/progress.h"

int main(int argc, char** argv) {
  using namespace orrery;
  Progress progress({.folder = "", .json = argc > 1 && std::strcmp(argv[1], "--json") == 0});
  StepReport report;
  report.num_steps = 12;
  report.tokens_per_second = 5300;
  report.flops_per_second = 6e11;
  report.peak_flops_per_second = 1e12;
  report.memory_bytes = int64_t{400} << 20;
  report.planned_bytes = int64_t{410} << 20;
  for (report.step = 1; report.step <= report.num_steps; ++report.step) {
    report.loss = 2 + 6 * std::exp(-static_cast<double>(report.step) / 4);
    report.gradient_norm = 1.5;
    report.lr = 1e-3;
    report.eta_seconds = static_cast<double>(report.num_steps - report.step);
    report.validation_loss = report.step == 6 ? std::optional(4.0) : std::nullopt;
    progress.step(report);
    if (report.step == 4) progress.note("checkpoint 4 saved");
  }
  progress.finish();
  return 0;
}
