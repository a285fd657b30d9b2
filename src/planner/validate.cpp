#include "planner/validate.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "base/error.h"
#include "planner/cost_constants.h"
#include "planner/layout_residuals.h"

namespace orrery {
namespace {

using Rows = std::vector<const PublishedRun*>;

constexpr size_t kFolds = 5;
constexpr size_t kSmallestGroup = 3;  // rows of a plan group that say something about order

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const size_t low = static_cast<size_t>(at);
  return values[low] + (at - static_cast<double>(low)) * (values[std::min(low + 1, values.size() - 1)] - values[low]);
}
double mean(const std::vector<double>& values) { return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size()); }

std::vector<double> ranks(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> rank(values.size());
  for (size_t i = 0; i < order.size();) {
    size_t end = i;
    while (end < order.size() && values[order[end]] == values[order[i]]) ++end;
    for (size_t k = i; k < end; ++k) rank[order[k]] = static_cast<double>(i + end - 1) / 2;  // ties share their mean rank
    i = end;
  }
  return rank;
}

double correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const double ma = mean(a), mb = mean(b);
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) ab += (a[i] - ma) * (b[i] - mb), aa += (a[i] - ma) * (a[i] - ma), bb += (b[i] - mb) * (b[i] - mb);
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 1;
}

// By run: what its source's other layouts say of ln(measured / predicted).
using Corrections = std::map<const PublishedRun*, LayoutResiduals::Estimate>;

void calibrate_source(const Rows& rows, Corrections& out) {
  const std::string& source = rows.front()->source;
  const CostConstants& constants = frozen_constants(source);
  const uint64_t source_hash = hash_name(source);
  std::set<std::string> keys;
  std::set<uint64_t> present;
  for (const PublishedRun* run : rows) keys.insert(run->layout_key), present.insert(run->fingerprint);
  std::map<std::string, size_t> fold_of;
  for (const std::string& key : keys) fold_of[key] = fold_of.size() % kFolds;
  std::vector<ResidualRow> points;
  for (const PublishedRun* run : rows) {
    const StepCost cost = predict_step(run->job, constants);
    points.push_back({layout_point(run->job, cost, run->release, run->layer_key), std::log(run->step_seconds / cost.seconds)});
  }
  for (size_t fold = 0; fold < std::min(kFolds, keys.size()); ++fold) {
    std::vector<ResidualRow> training;
    std::set<uint64_t> held;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (fold_of[rows[i]->layout_key] != fold) training.push_back(points[i]);
      else held.insert(hash_name(rows[i]->layout_key));
    }
    for (const ShippedResidual& shipped : shipped_residuals())
      if (shipped.source == source_hash && !present.contains(shipped.fingerprint) && !held.contains(shipped.layout)) training.push_back(shipped.row);
    const LayoutResiduals residuals(std::move(training));
    for (size_t i = 0; i < rows.size(); ++i)
      if (fold_of[rows[i]->layout_key] == fold) out[rows[i]] = residuals.estimate(points[i].point);
  }
}

void add_groups(const std::vector<const RowScore*>& scores, ErrorSummary& summary) {
  std::map<std::string, std::vector<const RowScore*>> groups;
  for (const RowScore* score : scores) groups[score->run->plan_group].push_back(score);
  std::vector<double> regrets, spearmans;
  for (const auto& [name, group] : groups) {
    if (group.size() < kSmallestGroup) continue;
    std::vector<double> predicted, measured;
    for (const RowScore* score : group) predicted.push_back(score->predicted), measured.push_back(score->run->step_seconds);
    const size_t picked = static_cast<size_t>(std::min_element(predicted.begin(), predicted.end()) - predicted.begin());
    regrets.push_back(100 * (measured[picked] / *std::min_element(measured.begin(), measured.end()) - 1));
    spearmans.push_back(correlation(ranks(predicted), ranks(measured)));
  }
  summary.plan_groups = static_cast<int64_t>(regrets.size());
  summary.regret_mean = mean(regrets), summary.regret_p95 = quantile(regrets, 0.95), summary.spearman = mean(spearmans);
}

ErrorSummary summarize(std::string name, const std::vector<const RowScore*>& scores) {
  ErrorSummary summary;
  summary.name = std::move(name);
  std::vector<double> errors;
  double bias = 0, inside = 0;
  for (const RowScore* score : scores) {
    const double error = score->predicted / score->run->step_seconds - 1;
    errors.push_back(100 * std::abs(error)), bias += 100 * error;
    inside += score->run->step_seconds >= score->low && score->run->step_seconds <= score->high;
  }
  const double count = std::max<double>(1, static_cast<double>(errors.size()));
  summary.rows_scored = static_cast<int64_t>(errors.size());
  summary.mape = mean(errors), summary.median = quantile(errors, 0.5), summary.p95 = quantile(errors, 0.95);
  summary.bias = bias / count, summary.interval_coverage = inside / count;
  add_groups(scores, summary);
  return summary;
}

// What the driver shows: the device's context and the collectives' buffers, and a share that the caching allocator holds beyond what is in
// use. The software of 2020 to 2022 had more of both.
double reserved_bytes(const PublishedRun& run, double tensors) {
  constexpr double kGiB = 1073741824.0;
  const bool early = run.job.stack == SoftwareStack::kMegatron2020 || run.job.stack == SoftwareStack::kMegatronDeepSpeed;
  return early ? tensors * 1.10 + 4 * kGiB : tensors * 1.06 + 2.5 * kGiB;
}

bool tells_time(const PublishedRun& run) { return run.metric == RunMetric::kStepTime; }

void add_memory(const std::vector<PublishedRun>& runs, ErrorSummary& summary, const std::function<bool(const PublishedRun&)>& wanted) {
  std::vector<double> errors;
  for (const PublishedRun& run : runs)
    if (run.metric == RunMetric::kMemory && run.skipped.empty() && wanted(run)) errors.push_back(100 * std::abs(predicted_run_memory(run) / run.memory_bytes - 1));
  summary.memory_rows = static_cast<int64_t>(errors.size());
  summary.memory_mape = mean(errors);
}

ModeReport score_mode(ValidateMode mode, const std::vector<PublishedRun>& runs, const Corrections& corrections) {
  ModeReport report;
  report.mode = mode;
  for (const PublishedRun& run : runs) {
    if (!tells_time(run) || !run.skipped.empty()) continue;
    RowScore score{&run};
    score.predicted = predict_step(run.job, frozen_constants(run.source)).seconds;
    if (mode == ValidateMode::kFrozen) {
      const IntervalFactors& interval = frozen_interval(classify(run.job), run.source);
      score.low = score.predicted * interval.low, score.high = score.predicted * interval.high;
    } else {
      const ClassIntervals& width = shipped_intervals(classify(run.job));
      const LayoutResiduals::Estimate& correction = corrections.at(&run);
      score.predicted *= std::exp(correction.log_ratio);
      score.low = score.predicted * std::exp(width.calibrated_low * correction.sigma), score.high = score.predicted * std::exp(width.calibrated_high * correction.sigma);
    }
    report.scores.push_back(score);
  }
  std::map<std::string, std::vector<const RowScore*>> by_source, by_class;
  std::vector<const RowScore*> all;
  for (const RowScore& score : report.scores) {
    by_source[score.run->source].push_back(&score), by_class[std::string(job_class_name(classify(score.run->job)))].push_back(&score);
    all.push_back(&score);
  }
  report.total = summarize("total", all);
  for (const auto& [name, scores] : by_source) {
    ErrorSummary summary = summarize(name, scores);
    add_memory(runs, summary, [&name = name](const PublishedRun& run) { return run.source == name; });
    report.sources.push_back(std::move(summary));
  }
  for (const auto& [name, scores] : by_class) report.classes.push_back(summarize(name, scores));
  add_memory(runs, report.total, [](const PublishedRun&) { return true; });
  std::map<std::string, int64_t> time_rows;
  for (const PublishedRun& run : runs)
    if (tells_time(run) || run.metric == RunMetric::kOther) ++time_rows[run.source], ++report.total.rows;
  for (ErrorSummary& summary : report.sources) summary.rows = time_rows[summary.name];
  std::sort(report.sources.begin(), report.sources.end(), [](const auto& a, const auto& b) { return a.mape != b.mape ? a.mape > b.mape : a.name < b.name; });
  ErrorSummary& average = report.mean_of_sources;
  average.name = "mean of sources";
  const double count = std::max<double>(1, static_cast<double>(report.sources.size()));
  double grouped = 0, with_memory = 0;
  for (const ErrorSummary& s : report.sources) {
    average.mape += s.mape / count, average.median += s.median / count, average.p95 += s.p95 / count, average.bias += s.bias / count;
    average.interval_coverage += s.interval_coverage / count;
    average.rows += s.rows, average.rows_scored += s.rows_scored;
    if (s.plan_groups > 0) grouped += 1, average.plan_groups += s.plan_groups, average.regret_mean += s.regret_mean, average.regret_p95 += s.regret_p95, average.spearman += s.spearman;
    if (s.memory_rows > 0) with_memory += 1, average.memory_rows += s.memory_rows, average.memory_mape += s.memory_mape;
  }
  if (grouped > 0) average.regret_mean /= grouped, average.regret_p95 /= grouped, average.spearman /= grouped;
  if (with_memory > 0) average.memory_mape /= with_memory;
  return report;
}

nlohmann::ordered_json summary_json(const ErrorSummary& s) {
  return {{"name", s.name}, {"rows", s.rows}, {"rows_scored", s.rows_scored}, {"mape", s.mape}, {"median", s.median}, {"p95", s.p95}, {"bias", s.bias},
          {"interval_coverage", s.interval_coverage}, {"plan_groups", s.plan_groups}, {"spearman", s.spearman}, {"regret_mean", s.regret_mean},
          {"regret_p95", s.regret_p95}, {"memory_rows", s.memory_rows}, {"memory_mape", s.memory_mape}};
}

}  // namespace

std::string_view validate_mode_name(ValidateMode mode) {
  switch (mode) {
    case ValidateMode::kFrozen: return "frozen";
    case ValidateMode::kCalibrated: return "calibrated";
  }
  return "?";
}

double predicted_run_memory(const PublishedRun& run) {
  const double tensors = predict_memory(run.job).total();
  return run.memory_reserved ? reserved_bytes(run, tensors) : tensors;
}

ValidateReport validate(std::vector<PublishedRun> runs) {
  ValidateReport report;
  report.runs = std::move(runs);
  std::map<std::string, Rows> sources;
  for (const PublishedRun& run : report.runs)
    if (tells_time(run) && run.skipped.empty()) sources[run.source].push_back(&run);
  Corrections corrections;
  for (const auto& [name, rows] : sources) calibrate_source(rows, corrections);
  for (const ValidateMode mode : kValidateModes) report.modes.push_back(score_mode(mode, report.runs, corrections));
  std::vector<double> power;
  for (const PublishedRun& run : report.runs) {
    if (!run.skipped.empty()) continue;
    if (run.metric == RunMetric::kOutOfMemory) {
      ++report.oom_rows;
      report.oom_called_fitting += reserved_bytes(run, predict_memory(run.job).total()) <= run.job.cluster.device->memory_bytes;
    }
    if (run.metric == RunMetric::kPower) {
      // Fans, processors, adapters and supply losses of a node of eight.
      constexpr double kNodeWatts = 1900;
      const double watts = 8 * predict_device_watts(run.job, predict_step(run.job, frozen_constants(run.source))) + kNodeWatts;
      power.push_back(100 * std::abs(watts / run.node_watts - 1));
    }
  }
  report.power_rows = static_cast<int64_t>(power.size()), report.power_mape = mean(power);
  return report;
}

std::string validate_to_json(const ValidateReport& report, const std::string& file) {
  using json = nlohmann::ordered_json;
  json document = {{"file", file}, {"rows", report.runs.size()}};
  json modes = json::object();
  for (const ModeReport& mode : report.modes) {
    json sources = json::array(), classes = json::array();
    for (const ErrorSummary& s : mode.sources) sources.push_back(summary_json(s));
    for (const ErrorSummary& s : mode.classes) classes.push_back(summary_json(s));
    modes[std::string(validate_mode_name(mode.mode))] = {
        {"total", summary_json(mode.total)}, {"mean_of_sources", summary_json(mode.mean_of_sources)}, {"sources", std::move(sources)}, {"classes", std::move(classes)}};
  }
  document["modes"] = std::move(modes);
  document["out_of_memory"] = {{"rows", report.oom_rows}, {"called_fitting", report.oom_called_fitting}};
  document["power"] = {{"rows", report.power_rows}, {"mape", report.power_mape}, {"kind", "modelled"}};
  json skipped = json::array();
  for (const PublishedRun& run : report.runs)
    if (!run.skipped.empty()) skipped.push_back({{"line", run.line}, {"source", run.source}, {"model", run.model_name}, {"reason", run.skipped}});
  document["not_scored"] = std::move(skipped);
  return document.dump(2);
}

std::string validate_to_text(const ValidateReport& report) {
  std::string text;
  auto line = [&](const ErrorSummary& s) {
    text += fmt::format("  {:5} {:6.1f} {:6.1f} {:6.1f} {:+6.1f} {:5.0f} %  {:6} {:6.2f} {:6.1f} {:7.3f}  {:5} {:6.1f}  {}\n", s.rows_scored, s.mape, s.median, s.p95, s.bias,
                        100 * s.interval_coverage, s.plan_groups, s.regret_mean, s.regret_p95, s.spearman, s.memory_rows, s.memory_mape, s.name);
  };
  for (const ModeReport& mode : report.modes) {
    text += fmt::format("{}\n  rows    mape median    p95   bias  in 90%  groups regret    p95 spearman  memory  mape  of\n", validate_mode_name(mode.mode));
    line(mode.total), line(mode.mean_of_sources);
    for (const ErrorSummary& s : mode.sources) line(s);
    for (const ErrorSummary& s : mode.classes) line(s);
  }
  text += fmt::format("out of memory: {} rows, {} called fitting;  power: {} rows, {:.1f} % (modelled)\n", report.oom_rows, report.oom_called_fitting, report.power_rows, report.power_mape);
  for (const PublishedRun& run : report.runs)
    if (!run.skipped.empty()) text += fmt::format("not scored  line {:5}  {:<28} {}\n", run.line, run.model_name.substr(0, 28), run.skipped);
  return text;
}

}  // namespace orrery
