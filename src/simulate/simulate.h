// Discrete events over a pipeline's order of work: when each rank computes what, what it waits for, and what a slow device or a slow
// link does to everyone. Ranks that do the same share one line of time, so 16,384 ranks are as small as their distinct ones. Pure: no
// tensor, no device, no clock.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ir/schedule.h"

namespace orrery {

struct SimulatedStep {
  ActionKind kind{};  // kForward, kBackward, kBackwardInput, kBackwardWeight
  int32_t stage = 0;
  int32_t micro_batch = 0;
};

/// Of one micro-batch on one stage. A backward that is not split takes both halves.
struct StageSeconds {
  double forward = 0, backward_input = 0, backward_weight = 0;
};

/// What one pipeline does.
struct SimulatedPipeline {
  std::vector<int32_t> rank_of_stage;
  std::vector<StageSeconds> seconds_of_stage;
  std::vector<std::vector<SimulatedStep>> steps;  // by rank
  double handoff_seconds = 0;                     // between stages of different ranks
  double tail_seconds = 0;                        // gradients and optimizer, after the last step of every rank
  std::vector<double> slowdown;                   // by rank; empty: 1
};

struct TimelineEvent {
  SimulatedStep step;
  double begin = 0, end = 0;
};

struct Timeline {
  std::vector<std::vector<TimelineEvent>> ranks;
  double compute_seconds = 0;  // until the last step's end
  double step_seconds = 0;     // with the tail
  double idle_share = 0;       // mean over ranks of the time until compute_seconds in which they wait
};

/// Errors: kInvalidConfig when the order cannot run: a step waits for one that comes later on its own rank, or never comes.
Timeline simulate(const SimulatedPipeline& pipeline);

/// A training step of `replicas` pipelines, one of which may be slowed: all end when the slowest has.
struct SimulatedCluster {
  SimulatedPipeline pipeline;
  int64_t replicas = 1;            // data, tensor and context parallel copies of each pipeline rank
  int64_t straggler_rank = -1;     // of the whole cluster: replica = rank / p, pipeline rank = rank % p
  double straggler_slowdown = 1;
};

struct ClusterTimeline {
  std::vector<Timeline> classes;       // distinct pipelines
  std::vector<int32_t> class_of_replica;
  double step_seconds = 0;
};

ClusterTimeline simulate_cluster(const SimulatedCluster& cluster);

/// Perfetto's JSON: one process a replica, one thread a pipeline rank, every action of every rank. Written in pieces to `path`.
/// Errors: kIo. Returns the number of events.
int64_t write_trace(const ClusterTimeline& timeline, const std::string& path);

/// The timeline as an SVG element and, where not all is shown, a line that says so: for a self-contained page.
std::string timeline_svg(const Timeline& timeline);

}  // namespace orrery
