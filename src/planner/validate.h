// How good the cost model is on a table of published runs: every row priced in three modes, the errors in total, as the mean of
// sources and per source, and the rows that could not be scored with the reason. A row is never priced by constants or factors that
// were fitted on it.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "planner/published_runs.h"

namespace orrery {

/// kFrozen: constants that never saw the row's source. kCalibrated: those, corrected by what the source's other layouts teach
/// (layout_residuals.h): those of the table, five folds by layout, and those that the program ships; a row's own layout is in neither.
enum class ValidateMode : uint8_t { kFrozen, kCalibrated };
inline constexpr std::array kValidateModes = {ValidateMode::kFrozen, ValidateMode::kCalibrated};
std::string_view validate_mode_name(ValidateMode mode);

struct RowScore {
  const PublishedRun* run = nullptr;
  double predicted = 0, low = 0, high = 0;  // seconds
};

struct ErrorSummary {
  std::string name;
  int64_t rows = 0, rows_scored = 0;  // step-time rows
  double mape = 0, median = 0, p95 = 0, bias = 0;  // percent
  double interval_coverage = 0;                    // share of rows whose figure lies in its 90 % interval
  int64_t plan_groups = 0;
  double spearman = 0, regret_mean = 0, regret_p95 = 0;  // over plan groups of at least three rows; percent
  int64_t memory_rows = 0;
  double memory_mape = 0;
};

struct ModeReport {
  ValidateMode mode{};
  std::vector<RowScore> scores;
  ErrorSummary total, mean_of_sources;
  std::vector<ErrorSummary> sources, classes, memory_kinds;  // sources: worst first
};

struct ValidateReport {
  std::vector<PublishedRun> runs;
  std::vector<ModeReport> modes;
  int64_t oom_rows = 0, oom_called_fitting = 0;
  int64_t power_rows = 0;
  double power_mape = 0;
};

/// Bytes that a run's figure would show: tensors, or with the context and the allocator's reserve.
double predicted_run_memory(const PublishedRun& run);

ValidateReport validate(std::vector<PublishedRun> runs);
std::string validate_to_json(const ValidateReport& report, const std::string& file);
std::string validate_to_text(const ValidateReport& report);

}  // namespace orrery
