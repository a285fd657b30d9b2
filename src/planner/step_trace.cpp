#include "planner/step_trace.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace orrery {
namespace {

constexpr int kTraceVersion = 1;

nlohmann::ordered_json phases_json(const PhaseSeconds& p) {
  return {{"forward", p.forward}, {"backward", p.backward}, {"update", p.update}, {"communication", p.communication}};
}
PhaseSeconds phases_of(const nlohmann::json& json) { return {json.at("forward"), json.at("backward"), json.at("update"), json.at("communication")}; }

std::string line(std::string_view name, double predicted, double measured) {
  return fmt::format("{:<16}{:>12}{:>12.2f}{:>9}\n", name, predicted > 0 ? fmt::format("{:.2f}", 1e3 * predicted) : "n/a", 1e3 * measured,
                     predicted > 0 && measured > 0 ? fmt::format("{:+.1f} %", 100 * (predicted / measured - 1)) : "");
}

}  // namespace

std::string trace_to_json(const StepTrace& t) {
  nlohmann::ordered_json actions = nlohmann::ordered_json::array(), ops = nlohmann::ordered_json::object();
  for (const ActionTrace& a : t.actions) actions.push_back({{"action", a.action}, {"predicted", a.predicted}, {"measured", a.measured}});
  for (const auto& [key, m] : t.ops) ops[key] = {m.seconds, m.flops, m.bytes};
  const nlohmann::ordered_json root = {{"version", kTraceVersion},
                                       {"machine", t.machine},
                                       {"layout", t.layout},
                                       {"steps", t.steps},
                                       {"predicted_seconds", t.predicted_seconds},
                                       {"low", t.low},
                                       {"high", t.high},
                                       {"measured_seconds", t.measured_seconds},
                                       {"predicted", phases_json(t.predicted)},
                                       {"measured", phases_json(t.measured)},
                                       {"actions", actions},
                                       {"ops", ops}};
  return root.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

StepTrace trace_from_json(const std::string& text, const std::string& file) {
  try {
    const nlohmann::ordered_json root = nlohmann::ordered_json::parse(text);
    if (root.at("version") != kTraceVersion) throw Error(ErrorCode::kCorruptData, "{}: a trace of version {}, wanted {}; train some steps with this program", file, root.at("version").dump(), kTraceVersion);
    StepTrace t;
    root.at("machine").get_to(t.machine), root.at("layout").get_to(t.layout), root.at("steps").get_to(t.steps);
    root.at("predicted_seconds").get_to(t.predicted_seconds), root.at("low").get_to(t.low), root.at("high").get_to(t.high), root.at("measured_seconds").get_to(t.measured_seconds);
    t.predicted = phases_of(root.at("predicted")), t.measured = phases_of(root.at("measured"));
    for (const auto& a : root.at("actions")) t.actions.push_back({a.at("action"), a.at("predicted"), a.at("measured")});
    for (const auto& [key, m] : root.at("ops").items()) t.ops.push_back({key, {m.at(0), m.at(1), m.at(2)}});
    return t;
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorCode::kCorruptData, "{}: not a trace of a run's steps ({})", file, error.what());
  }
}

std::string trace_phases_to_text(const StepTrace& t) {
  std::string text = fmt::format("{:<16}{:>12}{:>12}{:>9}\n", "ms a step", "predicted", "measured", "error");
  text += line("forward", t.predicted.forward, t.measured.forward) + line("backward", t.predicted.backward, t.measured.backward) + line("update", t.predicted.update, t.measured.update);
  // Time in collectives includes the wait for the other ranks, which is no cost of its own.
  if (t.measured.communication > 0) text += line("collectives", t.predicted.communication, t.measured.communication);
  text += line("step", t.predicted_seconds, t.measured_seconds);
  if (t.predicted_seconds > 0)
    text += fmt::format("{:<16}{} the 90 % interval, {:.2f} to {:.2f} ms\n", "", t.measured_seconds < t.low ? "below" : t.measured_seconds > t.high ? "above" : "inside", 1e3 * t.low, 1e3 * t.high);
  return text;
}

std::string trace_to_text(const StepTrace& t) {
  std::string text = fmt::format("{}\n{}, {} steps timed\n\n{}", t.machine, t.layout, t.steps, trace_phases_to_text(t));
  std::vector<ActionTrace> worst = t.actions;
  std::stable_sort(worst.begin(), worst.end(), [](const ActionTrace& a, const ActionTrace& b) { return std::abs(a.predicted - a.measured) > std::abs(b.predicted - b.measured); });
  text += fmt::format("\n{:<16}{:>12}{:>12}{:>9}\n", "action", "predicted", "measured", "error");
  constexpr size_t kShown = 24;
  for (size_t i = 0; i < std::min(kShown, worst.size()); ++i) text += line(worst[i].action, worst[i].predicted, worst[i].measured);
  if (worst.size() > kShown) text += fmt::format("and {} more in trace.json\n", worst.size() - kShown);
  const auto factor = [](double predicted, double measured) { return predicted > 0 && measured > 0 ? fmt::format("{:.3f}", measured / predicted) : std::string("n/a"); };
  text += fmt::format("\ncalibration     forward x{}, backward x{}, update x{}, step x{}; {} ops timed\n", factor(t.predicted.forward, t.measured.forward),
                      factor(t.predicted.backward, t.measured.backward), factor(t.predicted.update, t.measured.update), factor(t.predicted_seconds, t.measured_seconds), t.ops.size());
  return text;
}

int64_t calibrate(OpTimes& times, const StepTrace& trace) {
  for (const auto& [key, measurement] : trace.ops) times.add(key, measurement);
  return static_cast<int64_t>(trace.ops.size());
}

}  // namespace orrery
