// Shows a run while it goes: one updating line on a terminal, one plain line per interval into a pipe, JSON lines on stdout
// with
// --json; and writes metrics.jsonl and the TensorBoard file beside it. Called between steps, at log intervals; never inside
// one.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

#include "train/loss_plot.h"
#include "train/step_report.h"

namespace orrery {

/// What the terminal behind a stream can do.
struct TerminalTraits {
  bool is_terminal = false;
  bool color = false;    // a terminal, and NO_COLOR is unset or empty, and TERM is not "dumb"
  bool unicode = false;  // the locale's character set is UTF-8
  int width = 0;         // columns, asked each time; 0 in a pipe
};
TerminalTraits terminal_traits(std::FILE* stream);

struct ProgressOptions {
  std::string folder;       // of the run: metrics.jsonl and tb/; empty: none are written
  bool json = false;        // JSON lines on stdout instead of text on stderr
  int64_t resume_step = 0;  // metrics of later steps, left by a killed run, are cut off first
};

class Progress {
 public:
  /// A metrics or TensorBoard file that cannot be made or written is given up with a warning.
  /// Errors: kIo when the folder cannot be made.
  explicit Progress(const ProgressOptions& options);
  ~Progress();

  /// A step that is due to be reported; a closed pipe is ignored.
  void step(const StepReport& report);

  /// A line of its own ("checkpoint 120 saved in 0.2s") that the live line does not overwrite. Goes to stderr.
  void note(std::string_view text);

  /// Ends the live line, draws the curve into the terminal, and writes <folder>/loss.svg.
  void finish();

  /// Everything reported, earlier parts of a resumed run included.
  const LossCurve& curve() const { return curve_; }

 private:
  class MetricsFile;
  void erase_live_line();
  template <typename File, typename Action>
  void or_warn(std::unique_ptr<File>& file, Action&& action);

  ProgressOptions options_;
  LossCurve curve_;
  std::unique_ptr<MetricsFile> metrics_;
  std::unique_ptr<class TensorBoardWriter> tensorboard_;
  bool live_line_shown_ = false;
};

/// Writes loss.svg from the curve. Errors: kIo.
void write_loss_svg(const LossCurve& curve, const std::string& path, std::string_view title);

/// The curve in a metrics.jsonl, up to and with `last_step`; a torn last line is ignored. Empty when there is no such file.
LossCurve read_metrics(const std::string& path, int64_t last_step);

}  // namespace orrery
