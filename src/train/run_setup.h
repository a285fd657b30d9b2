// From run.toml to everything that a run needs before its first step: folder, tokenizer, data, model, plan. `orrery plan` stops
// here; the trainer goes on.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/model_source.h"
#include "data/dataset.h"
#include "planner/plan.h"
#include "tokenizer/tokenizer.h"
#include "train/engine.h"
#include "train/run_config.h"

namespace orrery {

/// A line for the user while a run is set up ("tokenizer trained: ..."), without a line end.
using SetupNote = std::function<void(std::string_view)>;

/// What the command line, or the launcher, gives a run.
struct RunResources {
  int num_threads = 0;  // of all ranks of this process together; <= 0: every core
  int num_ranks = 1;        // 0: as many as the run file's sizes make
  int num_local_ranks = 0;  // that share this machine; 0: all
};

struct RunSetup {
  RunConfig config;
  std::string folder;  // the run's: checkpoints, data, tokenizer, metrics
  std::optional<ModelSource> base;  // model.from, when given: its weights, configuration and tokenizer are where the run starts
  std::optional<Tokenizer> tokenizer;
  ModelConfig model;
  std::unique_ptr<Dataset> train;
  std::unique_ptr<Dataset> validation;  // null: nothing is held out
  int64_t num_steps = 0;
  EngineOptions engine;
  TrainingPlanOptions plan_options;

  /// The key of the run's bits (NUMERICS, "The key"), one line. A resume that would change it is refused.
  std::string numerics_key() const;
  /// Files that make a checkpoint a Hugging Face folder: config.json, tokenizer files.
  std::vector<std::pair<std::string, std::string>> documents() const;
};

/// What the run file says of the plan; the layout is one rank, and what the data decide is left at its default.
/// Errors: kUnsupported for a dtype that a CPU does not compute in.
TrainingPlanOptions plan_options_of(const RunConfig& config, const ModelConfig& model);

/// Reads and prepares everything; makes the run's folder, trains the tokenizer and builds shards where the files ask for it.
/// Errors: those of the parts, kInvalidConfig for values that do not fit together.
RunSetup prepare_run(const RunConfig& config, const RunResources& resources, const SetupNote& note);

/// By rank. `num_local`: how many of them are threads of this process and share its compute threads; 0: all.
std::vector<Plan> plan_run(const RunSetup& setup, int num_local = 0);

}  // namespace orrery
