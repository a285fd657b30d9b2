// The ranks of a run: one engine, one data reader and one communicator each, as threads of this process or, in a
// ProcessWorld, one in each process. It takes a step on all of them at one time, and shows their memory to whoever saves and loads. A
// process with one rank has no threads of its own.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "checkpoint/tensor_map.h"
#include "data/dataset.h"
#include "data/prefetcher.h"
#include "train/engine.h"
#include "train/process_world.h"

namespace orrery {

class RankGroup {
 public:
  /// One rank a plan, in order. `options.num_threads` are those of all ranks of this process together. `world`: this process holds the
  /// rank of its number and nothing else; null: it holds all. It outlives the group.
  RankGroup(std::vector<Plan> plans, const EngineOptions& options, ProcessWorld* world = nullptr);
  ~RankGroup();
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  int size() const { return static_cast<int>(plans_.size()); }
  /// The ranks of this process: [first_local, first_local + num_local).
  int first_local() const { return first_local_; }
  int num_local() const { return static_cast<int>(ranks_.size()); }
  bool is_local(int rank) const { return rank >= first_local_ && rank < first_local_ + num_local(); }
  const Plan& plan(int rank = 0) const { return plans_[static_cast<size_t>(rank)]; }
  /// Of a rank of this process.
  TrainingEngine& engine(int rank) { return *local(rank).engine; }
  /// Of a group of several ranks: its counters.
  std::vector<const Communicator*> communicators(int rank) const { return local(rank).engine->communicators(); }
  int64_t planned_bytes() const;  // of the arenas of this process

  void initialize_weights(uint64_t seed);
  /// Begins to read batches from `first_step` on.
  void start_data(const Dataset& dataset, int64_t first_step);
  /// The next step on every rank; all processes call it. Errors: the first rank's that had one; the group is of no use after it.
  StepResult step(int64_t step, const OptimizerHyper& hyper, const std::function<void()>& before_update);
  /// Loss of samples [first, first + count) of `dataset`, count at most the global batch, cut among the ranks as a batch is. All
  /// processes call it.
  StepResult evaluate(const Dataset& dataset, int64_t first, int64_t count);

  /// A replica is what has all weights once: the ranks of one pipeline, one for each data-parallel rank; where weights are in shards, those of
  /// a shard group of pipelines. Those with ranks of this process, by data-parallel rank, the first of a group:
  std::vector<int> local_replicas() const;
  /// And the parts of its layers (ParallelContext::part) that they are.
  std::vector<int> local_parts() const;
  /// All weights, each once, where a replica has them; of what several parts of a layer hold, the copy of `part`, or the one that stands for it.
  /// Without data when that is another process.
  std::vector<PhysicalTensor> weights(int replica, int part = 0) const;
  /// The ranks' shards of a state field, of the replica's shard group, which together hold every element once; the replica's own copy where
  /// state is not sharded. Those of other processes are without data.
  std::vector<PhysicalTensor> state(StateField field, int replica, int part = 0) const;
  bool shards_state() const { return plan().options.data.zero_stage >= 1 && plan().options.data.size > 1; }
  bool shards_weights() const { return plan().options.data.shards_weights(); }
  /// The data-parallel ranks that have the shards of a replica: one where nothing is sharded.
  int first_of_shards(int replica) const { return replica - replica % static_cast<int>(plan().options.data.num_shards()); }
  /// With a gradient delay: after weights were loaded whose newest version was not; and the exchange of the two versions (TrainingEngine).
  void start_from_weights();
  void exchange_weight_versions();
  bool delays_gradients() const { return plan().options.optimizer.gradient_delay > 0; }
  /// After weights were loaded: a matrix that two stages of a replica have goes from the one to the other. All processes call it.
  void share_weights();

 private:
  struct Rank {
    std::unique_ptr<Communicator> communicator;  // of ranks as threads
    Communicator* group = nullptr;               // what the engine speaks in; null for one rank
    std::unique_ptr<TrainingEngine> engine;
    std::optional<Prefetcher> data;
    std::exception_ptr error;
    std::thread thread;
  };
  Rank& local(int rank) const { return *ranks_[static_cast<size_t>(rank - first_local_)]; }
  void on_every_rank(const std::function<void(int)>& body);  // of this process; the body is given ranks
  void rank_thread(int rank);
  void run_on(int rank);

  ProcessWorld* world_;
  std::vector<Plan> plans_;
  int first_local_ = 0;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<StepResult> results_;
  std::vector<double> evaluated_;  // by sequence of the global batch
  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void(int)>* body_ = nullptr;
  uint64_t generation_ = 0;
  int num_running_ = 0;
  bool stopping_ = false;
};

}  // namespace orrery
