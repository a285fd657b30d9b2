#include "train/step_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <vector>

#include "base/units.h"

namespace orrery {
namespace {

constexpr double kBytesPerGiB = 1073741824.0;

/// A part of the line. The part with the highest rank leaves first when the line is too long.
struct Part {
  std::string label, value;
  int rank = 0;
  const char* color = "";  // the ANSI colour of the value
};

std::string short_lr(double lr) {
  // 3.0e-4, not 3.0e-04.
  std::string text = fmt::format("{:.1e}", lr);
  const size_t exponent = text.find('e');
  if (exponent != std::string::npos && text.size() == exponent + 4 && text[exponent + 2] == '0') text.erase(exponent + 2, 1);
  return text;
}

std::string short_count(double value) {
  std::string text = format_count(std::round(value));
  text.erase(std::remove(text.begin(), text.end(), ' '), text.end());
  return text;
}

std::string memory_text(const StepReport& report) {
  if (report.planned_bytes == 0) return format_bytes(static_cast<double>(report.memory_bytes));
  // A small plan in MiB: 0.02 of 0.01 GiB says nothing.
  constexpr double kBytesPerMiB = kBytesPerGiB / 1024;
  if (static_cast<double>(report.planned_bytes) < kBytesPerGiB / 10)
    return fmt::format("{:.0f} of {:.0f} MiB", static_cast<double>(report.memory_bytes) / kBytesPerMiB, static_cast<double>(report.planned_bytes) / kBytesPerMiB);
  return fmt::format("{:.2f} of {:.2f} GiB", static_cast<double>(report.memory_bytes) / kBytesPerGiB,
                     static_cast<double>(report.planned_bytes) / kBytesPerGiB);
}

std::vector<Part> make_parts(const StepReport& report) {
  const std::string total = fmt::format("{}", report.num_steps);
  std::vector<Part> parts;
  parts.push_back({"step", fmt::format("{:>{}}/{}", report.step, total.size(), total), 0, "\x1b[1m"});
  parts.push_back({"loss", fmt::format("{:.3f}", report.loss), 1, std::isfinite(report.loss) ? "\x1b[32m" : "\x1b[31m"});
  if (report.validation_loss) parts.push_back({"val", fmt::format("{:.3f}", *report.validation_loss), 2, "\x1b[36m"});
  if (report.skipped_steps > 0) parts.push_back({"skipped", fmt::format("{}", report.skipped_steps), 3, "\x1b[31m"});
  parts.push_back(
      {"gnorm", fmt::format("{:.2f}", report.gradient_norm), 7, std::isfinite(report.gradient_norm) ? "" : "\x1b[31m"});
  parts.push_back({"lr", short_lr(report.lr), 8, ""});
  if (report.tokens_per_second > 0) parts.push_back({"", short_count(report.tokens_per_second) + " tok/s", 5, ""});
  if (report.flops_per_second > 0) parts.push_back({"", format_rate(report.flops_per_second, "FLOP/s"), 10, ""});
  if (peak_share(report) >= 0) parts.push_back({"", fmt::format("{:.0f}% of peak", 100 * peak_share(report)), 9, ""});
  if (report.memory_bytes > 0) parts.push_back({"mem", memory_text(report), 6, ""});
  if (report.eta_seconds >= 0 && report.step < report.num_steps) parts.push_back({"eta", format_duration(report.eta_seconds), 4, "\x1b[33m"});
  return parts;
}

size_t columns(const Part& part) { return part.value.size() + (part.label.empty() ? 0 : part.label.size() + 1); }

size_t line_columns(const std::vector<Part>& parts) {
  size_t sum = 0;
  for (const Part& part : parts) sum += columns(part) + (sum > 0 ? 2 : 0);
  return sum;
}

std::string json_number(double value) { return std::isfinite(value) ? fmt::format("{}", value) : "null"; }

}  // namespace

double peak_share(const StepReport& report) {
  const bool known = report.peak_flops_per_second >= report.flops_per_second && report.flops_per_second > 0;
  return known ? report.flops_per_second / report.peak_flops_per_second : -1;
}

std::string step_line(const StepReport& report, const LineStyle& style) {
  std::vector<Part> parts = make_parts(report);
  const size_t width = style.width > 0 ? static_cast<size_t>(style.width) : SIZE_MAX;
  while (parts.size() > 1 && line_columns(parts) > width) {
    parts.erase(std::max_element(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.rank < b.rank; }));
  }
  if (line_columns(parts) > width) return parts[0].value.substr(0, width);
  std::string line;
  for (const Part& part : parts) {
    if (!line.empty()) line += "  ";
    if (!part.label.empty()) line += part.label + " ";
    const bool colored = style.color && part.color[0] != '\0';
    line += colored ? part.color + part.value + "\x1b[0m" : part.value;
  }
  return line;
}

std::string step_json(const StepReport& report) {
  const auto known = [](bool condition, double value) { return condition ? json_number(value) : std::string("null"); };
  std::string text = fmt::format(
      R"({{"step":{},"num_steps":{},"loss":{},"gradient_norm":{},"lr":{},"tokens":{},"tokens_per_second":{},"flops_per_second":{},)"
      R"("peak_share":{},"memory_bytes":{},"planned_bytes":{},"elapsed_seconds":{},"eta_seconds":{},"skipped_steps":{})",
      report.step, report.num_steps, json_number(report.loss), json_number(report.gradient_norm), json_number(report.lr),
      report.tokens, json_number(report.tokens_per_second), json_number(report.flops_per_second),
      known(peak_share(report) >= 0, peak_share(report)), report.memory_bytes,
      known(report.planned_bytes > 0, static_cast<double>(report.planned_bytes)), json_number(report.elapsed_seconds),
      known(report.eta_seconds >= 0, report.eta_seconds), report.skipped_steps);
  if (report.validation_loss) text += fmt::format(R"(,"validation_loss":{})", json_number(*report.validation_loss));
  return text + "}";
}

}  // namespace orrery
