#include "train/loss_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace orrery {
namespace {

std::vector<LossPoint> finite_points(const std::vector<LossPoint>& points) {
  std::vector<LossPoint> result;
  for (const LossPoint& point : points) {
    if (std::isfinite(point.loss)) result.push_back(point);
  }
  return result;
}

/// The mean of each of at most `count` equal runs of steps.
std::vector<LossPoint> thinned(const std::vector<LossPoint>& points, size_t count) {
  if (points.size() <= count) return points;
  std::vector<LossPoint> result;
  for (size_t bucket = 0; bucket < count; ++bucket) {
    const size_t begin = points.size() * bucket / count, end = points.size() * (bucket + 1) / count;
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += points[i].loss;
    result.push_back({points[(begin + end) / 2].step, sum / static_cast<double>(end - begin)});
  }
  return result;
}

/// The mean over about a fiftieth of the run around each point; short runs stay as they are.
std::vector<LossPoint> smoothed(const std::vector<LossPoint>& points) {
  const size_t count = points.size(), half = count < 100 ? 0 : count / 100;
  std::vector<double> sums(count + 1);
  for (size_t i = 0; i < count; ++i) sums[i + 1] = sums[i] + points[i].loss;
  std::vector<LossPoint> result;
  for (size_t i = 0; i < count; ++i) {
    // The window shrinks at both ends alike, so that a falling curve is not pulled up or down.
    const size_t reach = std::min({half, i, count - 1 - i});
    const double mean = (sums[i + reach + 1] - sums[i - reach]) / static_cast<double>(2 * reach + 1);
    result.push_back({points[i].step, mean});
  }
  return result;
}

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool valid() const { return low <= high; }
};

/// Round numbers (1, 2, 2.5 or 5 times a power of ten apart), about `count` of them, inside the range.
std::vector<double> linear_ticks(const Range& range, int count) {
  const double rough = std::max(range.high - range.low, 1e-12) / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.5, 2.0, 1.0}) {
    if (factor * power >= rough) step = factor * power;
  }
  std::vector<double> ticks;
  for (double i = std::ceil(range.low / step - 1e-9); i * step <= range.high + 1e-9 * step; i += 1) ticks.push_back(i * step);
  return ticks;
}

std::vector<double> log_ticks(const Range& range) {
  // From whole decades to finer steps, until at least three ticks fall into the range.
  const std::vector<std::vector<double>> kSteps = {{1}, {1, 2, 5}, {1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9}};
  std::vector<double> ticks;
  for (const auto& steps : kSteps) {
    ticks.clear();
    for (double decade = std::floor(std::log10(range.low)); decade <= std::ceil(std::log10(range.high)); decade += 1) {
      for (const double step : steps) {
        const double value = step * std::pow(10.0, decade);
        if (value >= range.low * 0.9999 && value <= range.high * 1.0001) ticks.push_back(value);
      }
    }
    if (ticks.size() >= 3) return ticks;
  }
  return linear_ticks(range, 5);
}

std::string tick_text(double value) {
  std::string text = fmt::format("{:.3g}", std::abs(value) < 1e-12 ? 0.0 : value);
  return text;
}

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '&')
      result += "&amp;";
    else if (c == '<')
      result += "&lt;";
    else if (c == '>')
      result += "&gt;";
    else if (static_cast<unsigned char>(c) >= 0x20)
      result += c;
  }
  return result;
}

constexpr double kWidth = 760, kHeight = 420;
constexpr double kLeft = 58, kRight = 736, kTop = 62, kBottom = 372;

constexpr std::string_view kStyle = R"(<style>
text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #333; }
.title { font-size: 16px; font-weight: 600; }
.ground { fill: #fff; }
.grid { stroke: #888; stroke-opacity: 0.28; }
.axis { stroke: #777; }
.train { fill: none; stroke: #1f77b4; stroke-linejoin: round; }
.raw { stroke-opacity: 0.35; stroke-width: 1; }
.mean { stroke-width: 2.2; }
.validation { fill: none; stroke: #d95f02; stroke-width: 2.2; }
.dot { fill: #d95f02; }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd; }
  .ground { fill: #16181c; }
  .train { stroke: #5ab0f0; }
  .validation { stroke: #ff9f50; }
  .dot { fill: #ff9f50; }
}
</style>
)";

/// Maps steps and losses to the picture.
class Frame {
 public:
  Frame(const LossCurve& curve, bool log_axis) : log_axis_(log_axis) {
    for (const auto* points : {&curve.train, &curve.validation}) {
      for (const LossPoint& point : *points) {
        if (!std::isfinite(point.loss)) continue;
        steps.include(static_cast<double>(point.step));
        losses.include(point.loss);
      }
    }
    if (!losses.valid()) return;
    // A logarithm needs values above 0.
    if (losses.low <= 0) log_axis_ = false;
    if (steps.high == steps.low) steps.high += 1;
    const double margin = std::max(0.04 * (losses.high - losses.low), 1e-3 * std::max(1e-3, std::abs(losses.high)));
    if (log_axis_) {
      const double factor = std::pow(losses.high / losses.low, 0.04) * 1.001;
      losses = {losses.low / factor, losses.high * factor};
    } else {
      losses = {losses.low - margin, losses.high + margin};
    }
  }

  double x(double step) const { return kLeft + (step - steps.low) / (steps.high - steps.low) * (kRight - kLeft); }
  double y(double loss) const {
    const double share = log_axis_ ? std::log(loss / losses.low) / std::log(losses.high / losses.low)
                                   : (loss - losses.low) / (losses.high - losses.low);
    return kBottom - share * (kBottom - kTop);
  }
  bool log_axis() const { return log_axis_; }

  Range steps, losses;

 private:
  bool log_axis_;
};

std::string polyline(const Frame& frame, const std::vector<LossPoint>& points, std::string_view css_class) {
  if (points.size() < 2) return {};
  std::string text = fmt::format("<polyline class=\"{}\" points=\"", css_class);
  for (const LossPoint& point : points)
    text += fmt::format("{:.1f},{:.1f} ", frame.x(static_cast<double>(point.step)), frame.y(point.loss));
  text.back() = '"';
  return text + "/>\n";
}

std::string axes(const Frame& frame) {
  std::string text;
  for (const double loss : frame.log_axis() ? log_ticks(frame.losses) : linear_ticks(frame.losses, 6)) {
    const double y = frame.y(loss);
    text += fmt::format("<line class=\"grid\" x1=\"{}\" y1=\"{:.1f}\" x2=\"{}\" y2=\"{:.1f}\"/>\n", kLeft, y, kRight, y);
    text += fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", kLeft - 8, y + 4.5, tick_text(loss));
  }
  for (const double step : linear_ticks(frame.steps, 7)) {
    // Half a step does not exist.
    if (step != std::floor(step)) continue;
    const double x = frame.x(step);
    text +=
        fmt::format("<line class=\"axis\" x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2}\"/>\n", x, kBottom, kBottom + 5);
    const std::string label = step < 10000 ? fmt::format("{:g}", step) : fmt::format("{:g}k", step / 1000);
    text += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", x, kBottom + 20, label);
  }
  text += fmt::format("<line class=\"axis\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>\n", kLeft, kBottom, kRight, kBottom);
  text += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\n", (kLeft + kRight) / 2, kBottom + 40);
  return text;
}

std::string legend(const std::vector<LossPoint>& mean, const std::vector<LossPoint>& validation) {
  std::string text;
  double x = kRight;
  const auto entry = [&](std::string_view name, std::string_view css_class, double loss) {
    const std::string label = fmt::format("{} {:.3f}", name, loss);
    const double width = 7.4 * static_cast<double>(label.size()) + 34;
    x -= width;
    text += fmt::format("<line class=\"{0}\" x1=\"{1:.1f}\" y1=\"40\" x2=\"{2:.1f}\" y2=\"40\"/>\n", css_class, x, x + 22);
    text += fmt::format("<text x=\"{:.1f}\" y=\"44.5\">{}</text>\n", x + 28, label);
  };
  if (!validation.empty()) entry("validation", "validation", validation.back().loss);
  if (!mean.empty()) entry("training", "train mean", mean.back().loss);
  return text;
}

}  // namespace

std::string loss_svg(const LossCurve& curve, const LossSvgOptions& options) {
  const Frame frame(curve, options.log_axis);
  std::string text = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\">\n", kWidth,
      kHeight);
  text += fmt::format("<title>{}</title>\n", escaped(options.title));
  text += kStyle;
  text += fmt::format("<rect class=\"ground\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n", kWidth, kHeight);
  text += fmt::format("<text class=\"title\" x=\"18\" y=\"28\">{}</text>\n", escaped(options.title));
  if (!frame.losses.valid())
    return text + "<text x=\"380\" y=\"210\" text-anchor=\"middle\">no finite loss yet</text>\n</svg>\n";
  text += fmt::format("<text x=\"18\" y=\"48\">loss{}</text>\n", frame.log_axis() ? ", logarithmic" : "");
  const std::vector<LossPoint> train = finite_points(curve.train), validation = finite_points(curve.validation);
  const std::vector<LossPoint> mean = smoothed(train);
  text += axes(frame);
  text += polyline(frame, thinned(train, 680), "train raw");
  text += polyline(frame, thinned(mean, 340), "train mean");
  text += polyline(frame, validation, "validation");
  for (const LossPoint& point : validation) {
    text += fmt::format("<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.4\"/>\n",
                        frame.x(static_cast<double>(point.step)), frame.y(point.loss));
  }
  return text + legend(mean, validation) + "</svg>\n";
}

namespace {

/// A grid of dots, 2 x 4 to a braille cell, or one to an ASCII cell.
class Canvas {
 public:
  Canvas(int columns, int rows, bool unicode)
      : columns_(columns), rows_(rows), unicode_(unicode), cells_(static_cast<size_t>(columns * rows)) {}
  int dots_across() const { return unicode_ ? columns_ * 2 : columns_; }
  int dots_down() const { return unicode_ ? rows_ * 4 : rows_; }

  void dot(int x, int y) {
    // Unicode numbers the dots of a braille cell down the left column, then the right; the bottom pair was added last.
    static constexpr uint8_t kBits[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    Cell& cell = unicode_ ? at(x / 2, y / 4) : at(x, y);
    cell.bits |= unicode_ ? kBits[y % 4][x % 2] : uint8_t{1};
  }
  void mark(int x, int y) { (unicode_ ? at(x / 2, y / 4) : at(x, y)).marked = true; }

  std::string row(int y) const {
    std::string text;
    for (int x = 0; x < columns_; ++x) {
      const Cell& cell = cells_[static_cast<size_t>(y * columns_ + x)];
      if (cell.marked)
        text += unicode_ ? "\u25c6" : "o";
      else if (cell.bits == 0)
        text += ' ';
      else if (!unicode_)
        text += '*';
      else
        for (const int byte : {0xE2, 0xA0 | cell.bits >> 6, 0x80 | (cell.bits & 0x3F)}) text += static_cast<char>(byte);
    }
    return text.substr(0, text.find_last_not_of(' ') + 1);
  }

 private:
  struct Cell {
    uint8_t bits = 0;
    bool marked = false;
  };
  Cell& at(int x, int y) { return cells_[static_cast<size_t>(y * columns_ + x)]; }
  int columns_, rows_;
  bool unicode_;
  std::vector<Cell> cells_;
};

/// One dot per step along the longer side.
void draw_line(Canvas& canvas, int x0, int y0, int x1, int y1) {
  const int length = std::max({std::abs(x1 - x0), std::abs(y1 - y0), 1});
  for (int i = 0; i <= length; ++i) {
    const double share = static_cast<double>(i) / length;
    canvas.dot(static_cast<int>(std::lround(x0 + share * (x1 - x0))), static_cast<int>(std::lround(y0 + share * (y1 - y0))));
  }
}

}  // namespace

std::string loss_terminal_plot(const LossCurve& curve, const TerminalPlotOptions& options) {
  constexpr int kLabelWidth = 8;  // "12.345 |" and the axis
  const std::vector<LossPoint> train = finite_points(curve.train);
  if (train.size() < 2 || options.width < 24) return {};
  const int columns = options.width - kLabelWidth;
  const int rows = std::max(3, options.height);
  Canvas canvas(columns, rows, options.unicode);
  Range losses;
  const std::vector<LossPoint> shown = thinned(train, static_cast<size_t>(canvas.dots_across()));
  const std::vector<LossPoint> validation = finite_points(curve.validation);
  for (const LossPoint& point : shown) losses.include(point.loss);
  for (const LossPoint& point : validation) losses.include(point.loss);
  if (losses.high == losses.low) losses.high += 1e-3;
  const double first = static_cast<double>(train.front().step), last = static_cast<double>(train.back().step);
  const auto x_of = [&](int64_t step) {
    const double share = std::clamp((static_cast<double>(step) - first) / std::max(1.0, last - first), 0.0, 1.0);
    return static_cast<int>(std::lround(share * (canvas.dots_across() - 1)));
  };
  const auto y_of = [&](double loss) {
    return static_cast<int>(std::lround((losses.high - loss) / (losses.high - losses.low) * (canvas.dots_down() - 1)));
  };
  for (size_t i = 0; i < shown.size(); ++i) {
    const LossPoint& from = shown[i == 0 ? 0 : i - 1];
    draw_line(canvas, x_of(from.step), y_of(from.loss), x_of(shown[i].step), y_of(shown[i].loss));
  }
  for (const LossPoint& point : validation) canvas.mark(x_of(point.step), y_of(point.loss));
  std::string text;
  for (int row = 0; row < rows; ++row) {
    const bool labelled = row == 0 || row == rows - 1 || row == rows / 2;
    const double value = losses.high - (losses.high - losses.low) * row / (rows - 1);
    text += fmt::format("{:>6} {}{}\n", labelled ? fmt::format("{:.4g}", value) : "", options.unicode ? "\u2502" : "|",
                        canvas.row(row));
  }
  const std::string left = fmt::format("step {}", train.front().step), right = fmt::format("{}", train.back().step);
  const int gap = std::max(1, columns - static_cast<int>(left.size() + right.size()));
  text += std::string(kLabelWidth, ' ') + left + std::string(static_cast<size_t>(gap), ' ') + right + "\n";
  return text;
}

}  // namespace orrery
