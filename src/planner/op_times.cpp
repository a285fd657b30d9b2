#include "planner/op_times.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "ir/op_table.h"

namespace orrery {
namespace {

constexpr int kTableVersion = 2;
// Operations a byte, up to which an op takes what its bytes take, whatever it is.
constexpr double kMemoryBoundFlops = 2;

struct AttributeText {
  // Attributes that say nothing about time.
  template <typename A>
  std::string operator()(const A&) const { return ""; }
  std::string operator()(const SplitAttributes& a) const { return fmt::format(" w{}", fmt::join(a.widths, ",")); }
  std::string operator()(const NormAttributes& a) const { return fmt::format(" g{}", a.group_width); }
  std::string operator()(const RopeAttributes& a) const { return fmt::format(" n{} k{} h{} r{}", a.num_heads, a.num_kv_heads, a.head_dim, a.rotary_dim); }
  std::string operator()(const AttentionAttributes& a) const { return fmt::format(" n{} k{} h{} w{}", a.num_heads, a.num_kv_heads, a.head_dim, a.window); }
  std::string operator()(const PackedLinearAttributes& a) const { return fmt::format(" n{} d{}", a.num_columns, a.depth); }
  std::string operator()(const OptimizerAttributes& a) const { return a.decay ? " decay" : ""; }
};

std::string value_text(const Value& value) {
  std::string text = std::string(dtype_name(value.dtype)) + "[";
  for (size_t i = 0; i < value.shape.size(); ++i) {
    // The most documents of a micro-batch is a bound; how many there are decides, and that is the data's.
    const bool segments = value.shape[i].dynamic == DynamicDim::kSegments || value.shape[i].dynamic == DynamicDim::kSegmentsPlusOne;
    text += (i == 0 ? "" : ",") + (segments ? std::string("S") : std::to_string(value.shape[i].bound));
  }
  return text + "]";
}

}  // namespace

std::string op_key(const Stage& stage, const Op& op, const TimingContext& context) {
  std::string key = fmt::format("{}@{} t{} x{} L{}|", op_name(op.kind), context.device, context.num_threads, context.busy_ranks, context.sequence_tokens);
  for (const ValueId id : op.inputs) key += value_text(stage.value(id));
  key += ">";
  for (const ValueId id : op.outputs) key += value_text(stage.value(id));
  key += std::visit(AttributeText{}, op.attributes);
  if (has_gradient_output(op.kind)) key += " " + context.fold;
  return key;
}

std::string comm_key(const std::string& operation, int num_ranks, const std::string& transport) { return fmt::format("{}@n{} {}", operation, num_ranks, transport); }

std::optional<double> OpTimes::seconds(const std::string& key, double flops, double bytes, bool& exact) const {
  const auto at = ops_.find(key);
  exact = at != ops_.end();
  if (exact) return at->second.seconds;
  double nearest = 0;
  std::optional<double> seconds;
  const auto consider = [&](const OpMeasurement& other, double size, double wanted) {
    if (size <= 0 || wanted <= 0) return;
    const double distance = std::abs(std::log(size / wanted));
    if (seconds && distance >= nearest) return;
    nearest = distance;
    seconds = other.seconds * wanted / size;
  };
  const std::string family = key.substr(0, key.find('|') + 1);
  for (auto entry = ops_.lower_bound(family); entry != ops_.end() && entry->first.starts_with(family); ++entry)
    consider(entry->second, flops > 0 ? entry->second.flops : entry->second.bytes, flops > 0 ? flops : bytes);
  if (seconds || flops > kMemoryBoundFlops * bytes) return seconds;
  const std::string context = family.substr(std::min(family.size(), family.find('@')));
  for (const auto& [name, other] : ops_)
    if (other.flops <= kMemoryBoundFlops * other.bytes && name.find(context) != std::string::npos) consider(other, other.bytes, bytes);
  return seconds;
}

std::optional<double> OpTimes::comm_seconds(const std::string& key, double bytes) const {
  const auto at = comm_.find(key);
  if (at == comm_.end() || at->second.empty()) return std::nullopt;
  const CommCurve& curve = at->second;
  if (curve.size() == 1) return curve[0].second * std::max(1.0, bytes / curve[0].first);
  size_t high = 1;
  while (high + 1 < curve.size() && curve[high].first < bytes) ++high;
  const auto& [x0, y0] = curve[high - 1];
  const auto& [x1, y1] = curve[high];
  return std::max(y0 + (y1 - y0) * (bytes - x0) / (x1 - x0), bytes < x0 ? y0 * 0.5 : 0.0);
}

std::string OpTimes::to_json(const std::string& machine) const {
  nlohmann::ordered_json ops = nlohmann::ordered_json::object(), comm = nlohmann::ordered_json::object();
  for (const auto& [key, m] : ops_) ops[key] = {m.seconds, m.flops, m.bytes};
  for (const auto& [key, curve] : comm_) comm[key] = curve;
  const nlohmann::ordered_json root = {{"version", kTableVersion}, {"machine", machine}, {"ops", ops}, {"collectives", comm}, {"probes", probes_}};
  return root.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::optional<std::string> OpTimes::machine_of(const std::string& text) {
  const nlohmann::json root = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object() || root.value("version", nlohmann::json()) != kTableVersion || !root.contains("machine") || !root["machine"].is_string()) return std::nullopt;
  return root["machine"].get<std::string>();
}

std::optional<OpTimes> OpTimes::from_json(const std::string& text, const std::string& machine) {
  const nlohmann::json root = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  try {
    if (!root.is_object() || root.at("version") != kTableVersion || root.at("machine") != machine) return std::nullopt;
    OpTimes table;
    for (const auto& [key, entry] : root.at("ops").items()) {
      const OpMeasurement m{entry.at(0), entry.at(1), entry.at(2)};
      if (m.seconds > 0 && std::isfinite(m.seconds)) table.ops_[key] = m;
    }
    for (const auto& [key, curve] : root.at("collectives").items()) table.comm_[key] = curve.get<CommCurve>();
    root.at("probes").get_to(table.probes_);
    return table;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;  // a file that somebody edited: measure again
  }
}

}  // namespace orrery
