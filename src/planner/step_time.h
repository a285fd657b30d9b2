// The step time of plans that this program runs, from the measured times of their ops and collectives: the schedules of all ranks as
// events, ranks and their collective threads sharing the machine's cores. Pure. Machines that are absent: cost_model.h.
#pragma once

#include <string>
#include <vector>

#include "planner/op_times.h"
#include "planner/plan.h"

namespace orrery {

/// One rank's busy seconds of a step by phase; what is left of the step it waits.
struct PhaseSeconds {
  double forward = 0, backward = 0, update = 0, communication = 0;
  double busy() const { return forward + backward + update + communication; }
};

struct StepPrediction {
  double seconds = 0;
  double low = 0, high = 0;          // 90 % interval
  std::vector<PhaseSeconds> ranks;
  std::vector<std::vector<double>> actions;  // by rank and action of its schedule: seconds alone on its cores
  int64_t ops_measured = 0, ops_scaled = 0;  // by kind of evidence: timed at this shape, scaled from another
  std::vector<std::string> missing;          // keys without any evidence: their time is counted as 0
};

struct StepMachine {
  std::string device;        // as TimingContext::device
  std::string transport = "local";  // "mpi": ranks are processes
  std::string offload_place;        // of what plans offload: a folder, or "numa:N"
  int num_cores = 1;         // shared by all ranks
  int threads_per_rank = 1;
};

/// One call of a collective, a message ("message", to the next rank while one comes from the other side), or a copy ("read", "write", of what is
/// offloaded; group_size 1): over `bytes` in the whole buffer, by a group of `group_size` ranks.
struct CommCall {
  std::string operation;
  int group_size = 0;
  double bytes = 0;
};
/// What an action between ranks, or of the copy stream, calls on this rank, one after the other. A receive costs nothing beside its send.
std::vector<CommCall> comm_calls(const Plan& plan, const Action& action);

/// The call's curve in OpTimes.
std::string call_key(const CommCall& call, const StepMachine& machine);

/// How ops of `plan` are timed when `num_ranks` ranks run on the machine.
TimingContext timing_context(const Plan& plan, const StepMachine& machine, int num_ranks);

/// Keys of forward and backward ops without an exact entry in `times`: what a probe has to measure. The update's ops are not among
/// them: they scale with their elements.
std::vector<std::string> unmeasured_ops(const Plan& plan, const OpTimes& times, const TimingContext& context);

/// Operations and group sizes that the plans call and of which `times` has no curve, each once, bytes 0.
std::vector<CommCall> unmeasured_calls(const std::vector<Plan>& plans, const OpTimes& times, const StepMachine& machine);

/// One plan a rank, as make_training_plans gives them. Of ranks that share layers one slice stands for all. Cost: ranks x actions, some
/// milliseconds.
StepPrediction predict_step_time(const std::vector<Plan>& plans, const OpTimes& times, const StepMachine& machine);

/// "time      0.412 s a step (0.39 to 0.44, 90 %): forward 0.13, backward 0.24, update 0.03, communication 0.01".
std::string prediction_to_text(const StepPrediction& prediction);

}  // namespace orrery
