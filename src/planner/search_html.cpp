// The result of a search as one page that needs nothing else: no network, no script. Bars of memory by class, the front of time
// against money, and why each family of layouts lost.
#include <algorithm>

#include "base/error.h"
#include "base/units.h"
#include "planner/search.h"

namespace orrery {
namespace {

constexpr std::string_view kHead =
    "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'><title>orrery</title><style>"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px}.wide{overflow-x:auto}.wide svg{min-width:560px}"
    "h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse;width:100%}td,th{padding:.3em .6em;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#444}"
    "@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}td,th{border-color:#444}svg text{fill:#bbb}}</style>";

struct Part {
  const char* name;
  const char* color;
  double MemoryCost::*member;
};
constexpr Part kParts[] = {{"weights", "#4e79a7", &MemoryCost::weights}, {"gradients", "#f28e2b", &MemoryCost::gradients}, {"optimizer", "#e15759", &MemoryCost::optimizer},
                           {"activations", "#76b7b2", &MemoryCost::activations}, {"temporary", "#b07aa1", &MemoryCost::temporary}};

// A bar for each kind of device that a layout uses, with a mark where its memory ends.
std::string memory_bars(const SearchResult& result) {
  constexpr double kLeft = 110, kWidth = 760, kRow = 26;
  double most = 0;
  for (const AcceleratorSpec& device : result.devices) most = std::max(most, device.memory_bytes);
  const double scale = kWidth / most;
  std::string bars;
  double y = 6;
  for (size_t i = 0; i < std::min<size_t>(10, result.best.size()); ++i)
    for (const DevicePart& device_part : result.best[i].parts) {
      const AcceleratorSpec& device = *device_part.cluster.device;
      double x = kLeft;
      bars += fmt::format("<text x=0 y={}>{} {}</text>", y + 14, i + 1, escape_html(device.name));
      for (const Part& part : kParts) {
        const double bytes = device_part.memory.*part.member, width = bytes * scale;
        bars += fmt::format("<rect x={:.1f} y={:.1f} width={:.1f} height=18 fill='{}'><title>{} {}</title></rect>", x, y, width, part.color, part.name, format_bytes(bytes));
        x += width;
      }
      const double end = kLeft + device.memory_bytes * scale;
      bars += fmt::format("<text x={0:.1f} y={1}>{2}</text><line x1={3:.1f} x2={3:.1f} y1={4:.1f} y2={5:.1f} stroke='#999' stroke-dasharray='4 3'/>", std::min(x + 6, kLeft + kWidth + 10), y + 14,
                          format_bytes(device_part.memory.total()), end, y - 4, y + kRow - 4);
      y += kRow;
    }
  double x = kLeft;
  for (const Part& part : kParts) {
    bars += fmt::format("<rect x={} y={} width=12 height=12 fill='{}'/><text x={} y={}>{}</text>", x, y + 10, part.color, x + 17, y + 21, part.name);
    x += 130;
  }
  return fmt::format("<svg viewBox='0 0 960 {}' role=img aria-label='memory of the fullest rank by class'>{}<text x={} y={}>dashed: the device's</text></svg>", y + 34, bars, x, y + 21);
}

std::string pareto_front(const SearchResult& result) {
  if (result.pareto.size() < 2 || result.pareto.front().money <= 0) return "<p>One point: give the cluster prices and a run with more than one step to see what fewer devices cost.</p>";
  double most_time = 0, most_money = 0, least_money = result.pareto.front().money;
  for (const Candidate& c : result.pareto) most_time = std::max(most_time, c.run_seconds), most_money = std::max(most_money, c.money), least_money = std::min(least_money, c.money);
  const double range = std::max(most_money - least_money, 0.01 * most_money);
  std::string svg = "<svg viewBox='0 0 960 300' role=img aria-label='time against money'><line x1=90 y1=250 x2=940 y2=250 stroke='#999'/><line x1=90 y1=20 x2=90 y2=250 stroke='#999'/>";
  for (const Candidate& c : result.pareto) {
    const double x = 90 + 780 * c.run_seconds / most_time, y = 230 - 190 * (c.money - least_money) / range;
    svg += fmt::format("<circle cx={:.1f} cy={:.1f} r=5 fill='#4e79a7'><title>{}</title></circle><text x={:.1f} y={:.1f}>{} devices</text>", x, y, escape_html(layout_text(c.job.layout) + "; " + placement_text(c)), x + 9, y + 4, c.job.cluster.num_devices);
  }
  svg += fmt::format("<text x=84 y=44 text-anchor=end>{:.0f}</text><text x=84 y=234 text-anchor=end>{:.0f}</text><text x=0 y=14>money of the run</text>", most_money, least_money);
  return svg + fmt::format("<text x=90 y=270>0</text><text x=870 y=270 text-anchor=middle>{}</text><text x=480 y=290 text-anchor=middle>time of the run</text></svg>", format_duration(most_time));
}

}  // namespace

std::string_view page_head() { return kHead; }

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : c == '\'' ? "&#39;" : std::string(1, c);
  return out;
}

std::string search_to_html(const SearchRequest& request, const SearchResult& result, std::string_view timeline) {
  std::string page = fmt::format("{}<h1>Plan</h1><pre>{}</pre>", kHead, escape_html(search_to_text(request, result, false)));
  page += "<h2>Memory on the fullest rank, ten best layouts</h2><div class=wide>" + memory_bars(result) + "</div>";
  page += fmt::format("<h2>A step of the best, one pipeline</h2><div class=wide>{}</div>", timeline);
  page += "<h2>Top ten</h2><div class=wide><table><tr><th>#<th>step<th>90 %<th>memory<th>layout<th>devices</tr>";
  for (size_t i = 0; i < std::min<size_t>(10, result.best.size()); ++i) {
    const Candidate& c = result.best[i];
    page += fmt::format("<tr><td class=n>{}<td class=n>{}<td class=n>{} to {}<td class=n>{}<td>{}<td>{}</tr>", i + 1, format_duration(c.step.seconds), format_duration(c.low_seconds), format_duration(c.high_seconds),
                        format_bytes(c.memory.total()), escape_html(layout_text(c.job.layout)), escape_html(placement_text(c)));
  }
  page += "</table></div><h2>Time against money</h2><div class=wide>" + pareto_front(result) + "</div><h2>Why not</h2><div class=wide><table><tr><th>family<th>reason</tr>";
  for (const FamilyVerdict& v : result.families) page += fmt::format("<tr><td>{}<td>{}</tr>", escape_html(v.family), escape_html(v.reason));
  return page + "</table></div></html>\n";
}

}  // namespace orrery
