// parallel.layout = "auto" on this machine: how many ranks as threads, which ZeRO stage and micro-batch make the fastest step that fits,
// by the times of the ops (layer_probe.h) and the exact memory maps of the few plans in question. No choice changes a bit of the run.
#pragma once

#include <string>
#include <vector>

#include "planner/step_time.h"
#include "train/run_setup.h"

namespace orrery {

/// One plan that was weighed; `reason` says why it lost, empty for the one that is taken.
struct WeighedLayout {
  std::string layout;  // "2 ranks x 1 thread, zero 1, micro-batch 4, recompute none"
  int64_t bytes = 0;   // of all arenas together
  double seconds = 0;  // predicted; 0: not known
  std::string reason;
};

struct LayoutChoice {
  std::vector<WeighedLayout> weighed;  // fastest first, then what did not fit
  StepPrediction prediction;           // of the plan that is taken
  StepMachine machine;                 // for which it is
};

/// Decides what the run file and the command line leave open and writes it into `setup`, so that plan_run(setup) gives the plans that were
/// weighed. `ranks_given`: the number of ranks is not to be changed. With layout = "manual" nothing is chosen or measured, and the
/// prediction has only what the table knows. What is measured is kept for the next run; `note` says so.
/// `world`: ranks are processes of one machine, all of which call it, with `ranks_given`; null: threads of this one.
/// Errors: kInvalidConfig when nothing fits.
LayoutChoice choose_layout(RunSetup& setup, bool ranks_given, const SetupNote& note, Communicator* world = nullptr);

std::string layout_choice_to_text(const LayoutChoice& choice);

}  // namespace orrery
