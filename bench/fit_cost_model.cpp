// Fits the constants of the cost model on a table of published runs and prints src/planner/cost_constants_data.cpp: once on every
// source, once without each, then each row's residual, then the widths of intervals from residuals of rows not fitted.
//   fit_cost_model published_runs.csv > src/planner/cost_constants_data.cpp
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>

#include "planner/cost_fit.h"
#include "planner/layout_residuals.h"

using namespace orrery;

namespace {

using Rows = std::vector<const PublishedRun*>;

std::string constants_text(const CostConstants& constants) {
  std::string text;
  for (const double value : constants.value) text += fmt::format("{}{:.5g}", text.empty() ? "" : ", ", value);
  return text;
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const size_t low = static_cast<size_t>(at);
  return values[low] + (at - static_cast<double>(low)) * (values[std::min(low + 1, values.size() - 1)] - values[low]);
}

/// Of values with weights: the smallest that has a share `q` of the weight at or below it.
double weighted_quantile(std::vector<std::pair<double, double>> values, double q) {
  std::sort(values.begin(), values.end());
  double total = 0, below = 0;
  for (const auto& [value, weight] : values) total += weight;
  for (const auto& [value, weight] : values)
    if ((below += weight) >= q * total) return value;
  return values.back().first;
}

struct Residual {
  std::string source, layout;
  JobClass kind;
  double log_ratio;  // measured over predicted, with constants that never saw the source
};
using Residuals = std::vector<Residual>;

// Quantiles of few rows are too narrow for others, so those of 90 % intervals lie a little further out.
constexpr double kTail = 0.035;

/// Where the logarithm of measured over predicted lies for a source of which other layouts are known.
std::pair<double, double> known_interval(const Residuals& known, JobClass kind) {
  std::vector<double> values;
  for (const Residual& r : known)
    if (r.kind == kind) values.push_back(r.log_ratio);
  if (values.empty()) return {0, 0};
  return {quantile(values, kTail), quantile(values, 1 - kTail)};
}

/// For a source that `known` has nothing of: each source counts the same, those of other kinds of job less. Wider by what the next of n
/// draws differs more than the n from their mean, and no narrower than for a source that is known.
std::pair<double, double> unseen_interval(const Residuals& known, JobClass kind) {
  constexpr double kOtherKind = 0.3;
  std::map<std::pair<std::string, JobClass>, double> count;
  for (const Residual& r : known) count[{r.source, r.kind}] += 1;
  std::vector<std::pair<double, double>> values;
  for (const Residual& r : known) values.emplace_back(r.log_ratio, (r.kind == kind ? 1 : kOtherKind) / count[{r.source, r.kind}]);
  double sources = 0;
  for (const auto& [key, rows] : count) sources += key.second == kind ? 1 : kOtherKind;
  const double widening = std::sqrt(1 + 1 / sources);
  const auto [low, high] = known_interval(known, kind);
  return {std::min(low, widening * weighted_quantile(values, kTail)), std::max(high, widening * weighted_quantile(values, 1 - kTail))};
}

/// Prints the share of each kind's rows that an interval holds which was made without the row's source, and without its fold of layouts.
void print_coverage(const Residuals& all) {
  constexpr size_t kFolds = 5;
  for (size_t kind = 0; kind < static_cast<size_t>(JobClass::kCount); ++kind) {
    double rows = 0, without_source = 0, without_layouts = 0;
    for (const Residual& row : all) {
      if (row.kind != static_cast<JobClass>(kind)) continue;
      Residuals other_sources, other_layouts;
      const auto fold_of = [](const Residual& r) { return hash_name(r.layout) % kFolds; };
      for (const Residual& r : all) {
        if (r.source != row.source) other_sources.push_back(r);
        if (fold_of(r) != fold_of(row)) other_layouts.push_back(r);
      }
      const auto holds = [&](const std::pair<double, double>& interval) { return interval.first <= row.log_ratio && row.log_ratio <= interval.second; };
      rows += 1, without_source += holds(unseen_interval(other_sources, row.kind)), without_layouts += holds(known_interval(other_layouts, row.kind));
    }
    fmt::print(stderr, "90 % interval holds {:4.1f} % without the row's source, {:4.1f} % without its layouts: {}\n", 100 * without_source / rows, 100 * without_layouts / rows,
               job_class_name(static_cast<JobClass>(kind)));
  }
}

double mean_error(const Rows& rows, const CostConstants& constants) {
  double sum = 0;
  for (const PublishedRun* run : rows) sum += std::abs(predict_step(run->job, constants).seconds / run->step_seconds - 1);
  return 100 * sum / static_cast<double>(rows.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return fmt::print(stderr, "usage: fit_cost_model published_runs.csv [--quick]\n"), 2;
  const bool quick = argc > 2;
  const std::vector<PublishedRun> runs = load_published_runs(argv[1]);
  Rows all;
  std::map<std::string, Rows> sources;
  for (const PublishedRun& run : runs)
    if (run.skipped.empty() && run.metric == RunMetric::kStepTime) all.push_back(&run), sources[run.source].push_back(&run);

  const CostConstants full = fit_constants(all, prior_constants());
  std::map<std::string, CostConstants> without;
  Residuals frozen;
  std::map<JobClass, std::vector<double>> calibrated;
  double row_sum = 0, source_sum = 0;
  std::vector<double> errors;
  for (const auto& [source, rows] : sources) {
    Rows others;
    for (const PublishedRun* run : all)
      if (run->source != source) others.push_back(run);
    const CostConstants constants = fit_constants(others, prior_constants());
    without[source] = constants;
    double bias = 0;
    for (const PublishedRun* run : rows) {
      const double ratio = run->step_seconds / predict_step(run->job, constants).seconds;
      bias += 1 / ratio - 1;
      errors.push_back(std::abs(1 / ratio - 1));
      frozen.push_back({source, run->layout_key, classify(run->job), std::log(ratio)});
    }
    const double error = mean_error(rows, constants);
    row_sum += error * static_cast<double>(rows.size()), source_sum += error;
    fmt::print(stderr, "{:4} rows  frozen {:5.1f} % (bias {:+5.1f})  in fit {:5.1f} %  {}\n", rows.size(), error, 100 * bias / static_cast<double>(rows.size()), mean_error(rows, full), source);
  }
  fmt::print(stderr, "frozen: rows {:.1f} %, median {:.1f}, mean of sources {:.1f} %;  in fit {:.1f} %\n", row_sum / static_cast<double>(all.size()), 100 * quantile(errors, 0.5),
             source_sum / static_cast<double>(sources.size()), mean_error(all, full));
  for (size_t i = 0; i < kNumConstants; ++i)
    fmt::print(stderr, "{:20} {:10.4g} (prior {:.4g})\n", constant_priors()[i].name, full.value[i], constant_priors()[i].value);
  print_coverage(frozen);
  if (quick) return 0;

  // Corrections with the layout's fold left out, in their own standard deviations.
  std::string residuals;
  for (const auto& [source, rows] : sources) {
    constexpr size_t kFolds = 5;
    std::map<std::string, size_t> fold_of;
    for (const PublishedRun* run : rows) fold_of[run->layout_key] = 0;
    size_t index = 0;
    for (auto& [key, fold] : fold_of) fold = index++ % kFolds;
    std::vector<ResidualRow> points;
    for (const PublishedRun* run : rows) {
      const StepCost cost = predict_step(run->job, without[source]);
      points.push_back({layout_point(run->job, cost, run->release, run->layer_key), std::log(run->step_seconds / cost.seconds)});
      const ResidualRow& row = points.back();
      residuals += fmt::format("    {{0x{:x}, 0x{:x}, 0x{:x}, {{{{0x{:x}, 0x{:x}, 0x{:x}, {{{{{:.3g}}}}}, {{{{{:.3g}}}}}}}, {:.4f}}}}},\n", hash_name(source), run->fingerprint, hash_name(run->layout_key),
                               row.point.release, row.point.layer, row.point.device, fmt::join(row.point.at, ", "), fmt::join(row.point.share, ", "), row.log_ratio);
    }
    for (size_t fold = 0; fold < kFolds; ++fold) {
      std::vector<ResidualRow> training;
      for (size_t i = 0; i < rows.size(); ++i)
        if (fold_of[rows[i]->layout_key] != fold) training.push_back(points[i]);
      const LayoutResiduals known(std::move(training));
      for (size_t i = 0; i < rows.size(); ++i) {
        if (fold_of[rows[i]->layout_key] != fold) continue;
        const LayoutResiduals::Estimate estimate = known.estimate(points[i].point);
        calibrated[classify(rows[i]->job)].push_back((points[i].log_ratio - estimate.log_ratio) / estimate.sigma);
      }
    }
  }
  fmt::print("// Printed by bench/fit_cost_model.cpp; not to be edited.\n#include \"planner/cost_constants.h\"\n#include \"planner/layout_residuals.h\"\n\nnamespace orrery {{\nnamespace {{\n\n// In the order of Constant.\n");
  fmt::print("constexpr SourceConstants kConstants[] = {{\n    {{\"\", {{{{{}}}}}}},\n", constants_text(full));
  for (const auto& [source, constants] : without) fmt::print("    {{\"{}\", {{{{{}}}}}}},\n", source, constants_text(constants));
  fmt::print("}};\n\nconstexpr ShippedResidual kResiduals[] = {{\n{}", residuals);
  fmt::print("}};\n\nconstexpr ClassIntervals kIntervals[] = {{\n");
  for (size_t kind = 0; kind < static_cast<size_t>(JobClass::kCount); ++kind) {
    const auto [low, high] = known_interval(frozen, static_cast<JobClass>(kind));
    const auto [unseen_low, unseen_high] = unseen_interval(frozen, static_cast<JobClass>(kind));
    const auto& c = calibrated[static_cast<JobClass>(kind)];
    fmt::print("    {{{{{:.3f}, {:.3f}}}, {{{:.3f}, {:.3f}}}, {:.3f}, {:.3f}}},\n", std::exp(low), std::exp(high), std::exp(unseen_low), std::exp(unseen_high), quantile(c, kTail), quantile(c, 1 - kTail));
  }
  fmt::print("}};\n\n}}  // namespace\n\nstd::span<const SourceConstants> shipped_constants() {{ return kConstants; }}\n"
             "std::span<const ShippedResidual> shipped_residuals() {{ return kResiduals; }}\n"
             "const ClassIntervals& shipped_intervals(JobClass kind) {{ return kIntervals[static_cast<size_t>(kind)]; }}\n\n}}  // namespace orrery\n");
  return 0;
}
