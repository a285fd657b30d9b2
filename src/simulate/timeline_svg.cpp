// A simulated step as a picture that needs nothing else: a row a pipeline rank, a box an action. Long steps are shown by their begin, so
// that a page stays a page.
#include <algorithm>

#include "base/error.h"
#include "base/units.h"
#include "simulate/simulate.h"

namespace orrery {
namespace {

constexpr double kLeft = 34, kWidth = 916, kRow = 16;
constexpr size_t kMostBoxes = 3000, kMostRows = 48;

std::string_view color_of(ActionKind kind) {
  if (kind == ActionKind::kForward) return "#4e79a7";
  if (kind == ActionKind::kBackwardWeight) return "#f28e2b";
  return "#59a14f";
}
std::string_view name_of(ActionKind kind) {
  if (kind == ActionKind::kForward) return "forward";
  if (kind == ActionKind::kBackwardInput) return "backward of inputs";
  return kind == ActionKind::kBackwardWeight ? "backward of weights" : "backward";
}

}  // namespace

std::string timeline_svg(const Timeline& timeline) {
  const size_t rows = std::min(timeline.ranks.size(), kMostRows);
  size_t boxes = 0;
  for (size_t rank = 0; rank < rows; ++rank) boxes += timeline.ranks[rank].size();
  if (boxes == 0) return "<p>No work.</p>";
  // The window that holds about as many boxes as a page can show.
  double until = timeline.step_seconds;
  if (boxes > kMostBoxes) until *= static_cast<double>(kMostBoxes) / static_cast<double>(boxes);
  const double scale = kWidth / until, height = kRow * static_cast<double>(rows);
  const int legend = static_cast<int>(height) + 40;
  std::string svg = fmt::format("<svg viewBox='0 0 960 {}' role=img aria-label='timeline of the pipeline'>", legend + 14);
  for (size_t rank = 0; rank < rows; ++rank) {
    const double y = kRow * static_cast<double>(rank);
    svg += fmt::format("<text x=0 y={:.0f}>{}</text>", y + 12, rank);
    for (const TimelineEvent& event : timeline.ranks[rank]) {
      if (event.begin >= until) continue;
      const double x = kLeft + event.begin * scale, width = std::min(event.end, until) * scale + kLeft - x;
      svg += fmt::format("<rect x={:.2f} y={:.0f} width={:.2f} height={:.0f} fill='{}'><title>{} of micro-batch {}, stage {}: {}</title></rect>", x, y + 1, std::max(0.2, width - 0.4), kRow - 2,
                         color_of(event.step.kind), name_of(event.step.kind), event.step.micro_batch, event.step.stage, format_duration(event.end - event.begin));
    }
  }
  if (timeline.step_seconds <= until) {
    const double x = kLeft + timeline.compute_seconds * scale;
    svg += fmt::format("<rect x={:.2f} y=0 width={:.2f} height={:.0f} fill='#b07aa1' opacity=0.6><title>reduction and optimizer: {}</title></rect>", x, std::max(0.5, kLeft + kWidth - x), height,
                       format_duration(timeline.step_seconds - timeline.compute_seconds));
  }
  svg += fmt::format("<text x={:.0f} y={:.0f}>0</text><text x={:.0f} y={:.0f} text-anchor=end>{}</text>", kLeft, height + 16, kLeft + kWidth, height + 16, format_duration(until));
  double x = kLeft;
  const auto entry = [&](std::string_view color, std::string_view text, double width) {
    svg += fmt::format("<rect x={:.0f} y={} width=12 height=12 fill='{}'/><text x={:.0f} y={}>{}</text>", x, legend - 10, color, x + 17, legend, text);
    x += width;
  };
  entry("#4e79a7", "forward", 100), entry("#59a14f", "backward", 100), entry("#f28e2b", "backward of weights", 180), entry("#b07aa1", "reduction, optimizer", 180);
  svg += "</svg>";
  if (until < timeline.step_seconds) svg += fmt::format("<p>The first {} of {}.</p>", format_duration(until), format_duration(timeline.step_seconds));
  if (rows < timeline.ranks.size()) svg += fmt::format("<p>The first {} of {} pipeline ranks.</p>", rows, timeline.ranks.size());
  return svg;
}

}  // namespace orrery
