#include "tools/plan_schedule_command.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "ir/verify_schedules.h"
#include "parallel/lower_pipeline.h"
#include "parallel/schedule_grid.h"

namespace orrery {
namespace {

struct Options {
  std::string kind = "1f1b", file;
  PipelineOptions pipeline{.num_ranks = 4, .num_micro_batches = 8, .chunks_per_rank = 0};
  StageCosts costs;
  double message = 0;
};

PipelineOrder order_of(const Options& options) {
  if (!options.file.empty()) {
    std::ifstream stream(options.file);
    if (!stream) throw_io_error(errno, fmt::format("--file {}: cannot be read", options.file));
    return parse_pipeline_order(std::string(std::istreambuf_iterator<char>(stream), {}));
  }
  PipelineOptions pipeline = options.pipeline;
  pipeline.terms = {.schedule = "plan schedule", .ranks = "--ranks", .group = "--group"};
  pipeline.kind = parse_pipeline_kind(options.kind, pipeline.terms);
  const bool two_chunks = pipeline.kind == PipelineKind::kInterleaved || pipeline.kind == PipelineKind::kZbV || pipeline.kind == PipelineKind::kDualPipeV;
  if (pipeline.chunks_per_rank == 0) pipeline.chunks_per_rank = two_chunks ? 2 : 1;
  pipeline.carries = pipeline.kind == PipelineKind::k2Bw && pipeline.num_ranks > 1;
  return pipeline_order(pipeline);
}

int64_t num_sends(const Schedule& schedule) {
  return std::count_if(schedule.actions.begin(), schedule.actions.end(),
                       [](const Action& action) { return action.kind == ActionKind::kSendActivation || action.kind == ActionKind::kSendGradient; });
}

// One sequence a micro-batch, in one lane: order, slots and messages do not depend on either.
void print_schedule(const Options& options) {
  const PipelineOrder order = order_of(options);
  const std::vector<Schedule> ranks = lower_pipeline(order, {.share = {.global_batch_size = order.num_micro_batches}});
  const ScheduleContext context{.num_stages = order.num_stages()};
  if (const auto problems = verify_schedules(ranks, context); !problems.empty())
    throw Error(ErrorCode::kInvalidConfig, "the schedule does not verify:\n  {}", fmt::join(problems, "\n  "));
  const ScheduleCosts costs{std::vector<StageCosts>(static_cast<size_t>(order.num_stages()), options.costs), options.message};
  const ScheduleTimes times = time_schedules(ranks, context, costs);
  double unit = options.costs.forward;
  for (double cost : {options.costs.backward_input, options.costs.backward_weight})
    if (cost > 0) unit = std::min(unit, cost);
  fmt::print("{}\n", to_grid(ranks, times, unit));
  fmt::print("{:>4} {:>10} {:>8} {:>18} {:>6}\n", "rank", "busy", "idle", "activation slots", "sends");
  for (size_t rank = 0; rank < ranks.size(); ++rank)
    fmt::print("{:>4} {:>10.4g} {:>7.1f}% {:>18} {:>6}\n", rank, times.busy[rank], 100 * (1 - times.busy[rank] / times.total),
               std::accumulate(ranks[rank].num_slots.begin(), ranks[rank].num_slots.end(), 0), num_sends(ranks[rank]));
  fmt::print("step {:.4g}, bubble {:.4g}: {:.1f} % of the busiest rank's work\n", times.total, times.bubble(), 100 * times.bubble_fraction());
}

}  // namespace

void add_plan_schedule(CLI::App& plan, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = plan.add_subcommand("schedule", "step x rank grid, bubble and slots of a pipeline schedule, verified");
  command->add_option("kind", options->kind, "gpipe, 1f1b, interleaved, zb-h1, zb-v, dualpipe-v or 2bw (a step in the middle of a run: F0' is the next step's)")->capture_default_str();
  command->add_option("--file", options->file, "a schedule file instead: lines like `rank 0: F0 F1 B0 B1`");
  command->add_option("--ranks", options->pipeline.num_ranks, "pipeline ranks")->check(CLI::Range(1, 1024))->capture_default_str();
  command->add_option("--micro-batches", options->pipeline.num_micro_batches, "micro-batches of a step")->check(CLI::Range(1, 4096))->capture_default_str();
  command->add_option("--stages-per-rank", options->pipeline.chunks_per_rank, "stages a rank holds; 0 for what the kind needs")->check(CLI::Range(0, 64))->capture_default_str();
  command->add_option("--group", options->pipeline.micro_batch_group_size, "interleaved: micro-batches that go through a stage before the rank's next has its turn; 0 for as many as ranks")->check(CLI::Range(0, 4096))->capture_default_str();
  command->add_option("--forward", options->costs.forward, "time of a stage's forward")->check(CLI::PositiveNumber)->capture_default_str();
  command->add_option("--backward-input", options->costs.backward_input, "time of its input gradient")->check(CLI::NonNegativeNumber)->capture_default_str();
  command->add_option("--backward-weight", options->costs.backward_weight, "time of its weight gradient")->check(CLI::NonNegativeNumber)->capture_default_str();
  command->add_option("--message", options->message, "time of a message between stages")->check(CLI::NonNegativeNumber)->capture_default_str();
  command->footer("Examples:\n  orrery plan schedule zb-v --ranks 4 --micro-batches 8\n  orrery plan schedule --file my_schedule.txt --message 0.2\n");
  command->callback([options, &exit_code] {
    print_schedule(*options);
    exit_code = 0;
  });
}

}  // namespace orrery
