// What failures leave of a run: the checkpoint interval and the share of time that is progress, from the rates of faults.
#pragma once

namespace orrery {

struct FailureModel {
  double mtbf_seconds = 0;     // of the whole job
  double save_seconds = 0;     // for which a checkpoint holds up the job
  double restart_seconds = 0;  // from a fault to the next step
};

/// Daly 2006, equation 20: the interval between checkpoints that wastes least; the mean time between faults where a save takes more
/// than twice that.
double best_checkpoint_interval(const FailureModel& failures);

/// Share of wall time that is progress with checkpoints every `interval` seconds, for exponential faults that also hit restarts.
double goodput(const FailureModel& failures, double interval_seconds);

}  // namespace orrery
