// Times the ops of a plan that no table holds yet, by running a few steps of the same model cut to two layers, on as many ranks at one
// time as the plan's, with their threads and their micro-batch; and the collectives between them. What it learns holds for every
// depth, batch, ZeRO stage and number of micro-batches, so it is kept in the user's cache per machine and program version.
#pragma once

#include <string>
#include <vector>

#include "data/dataset.h"
#include "planner/step_time.h"
#include "train/engine.h"

namespace orrery {

/// `options.num_threads` are those of all ranks of this process together. `world`: the plans' ranks, each of them a process of this machine; null:
/// they are threads of this one. Collective over `world`, which is asked for the cores that its ranks may use.
StepMachine step_machine(const EngineOptions& options, DType compute_dtype, int num_ranks, Communicator* world = nullptr);

/// The table that is kept of this machine and program version.
struct KeptOpTimes {
  OpTimes times;         // empty where there is none
  std::string not_used;  // why the one that is kept is not used; empty where it is, or where there is none
};
KeptOpTimes load_op_times();
/// Atomically; false when it cannot be written: a cache is a convenience.
bool store_op_times(const OpTimes& times);
std::string op_times_path();

/// Seconds a call of every op of the engine's steps since its last reset, by key (op_key); ops of equal keys share an entry.
std::vector<std::pair<std::string, OpMeasurement>> op_measurements(TrainingEngine& engine, const TimingContext& context);

/// What `plans` need is measured and added where `times` lacks it; `dataset`, when given, provides the tokens and documents, else they
/// are random and one document a sequence. Returns the number of ops and collectives measured; 0 costs nothing. Two layers of a model so
/// large that a step of them takes a minute are not measured: its prediction says what is missing. Nor are those whose parts are more
/// than the machine's cores.
/// `machine` as step_machine gives it. `world` as there: every process calls it with the same table, and gets the one of rank 0.
/// Errors: kOutOfMemory when even two layers do not fit.
int64_t measure_missing(const std::vector<Plan>& plans, const EngineOptions& options, const StepMachine& machine, const Dataset* dataset, OpTimes& times, Communicator* world = nullptr);

/// Gives every rank of `world` the table of rank 0. Collective.
void share_op_times(OpTimes& times, Communicator& world);

}  // namespace orrery
