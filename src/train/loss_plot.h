// The loss curve of a run as an SVG file and as a few lines of a terminal. Pure functions of the points.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orrery {

struct LossPoint {
  int64_t step = 0;
  double loss = 0;  // points that are not finite are left out
};

struct LossCurve {
  std::vector<LossPoint> train, validation;  // ascending steps
};

struct LossSvgOptions {
  std::string_view title = "loss";
  bool log_axis = false;
};

/// 760 x 420; the raw training loss thin, its running mean bold, validation as dots on a line. Colours and text are readable on
/// light and on dark pages; a browser's dark scheme gets a dark ground. Long runs are thinned to the width of the picture.
std::string loss_svg(const LossCurve& curve, const LossSvgOptions& options);

struct TerminalPlotOptions {
  int width = 64;  // columns; below 24 nothing is drawn
  int height = 8;  // lines of the plot itself
  bool unicode = true;
};

/// Axis labels, the training loss as dots of braille (or '*'), validation points as a diamond (or 'o'); lines end with '\n' and
/// are never wider than `width`. Empty without two finite points.
std::string loss_terminal_plot(const LossCurve& curve, const TerminalPlotOptions& options);

}  // namespace orrery
