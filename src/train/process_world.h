// The processes that train one run together, as one of them sees it: the groups that each of its threads speaks in, what they tell each
// other before and between steps, and how they agree on errors so that one message and one exit status come out. Not here: how a process
// learns its rank (comm/discovery.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "comm/discovery.h"

namespace orrery {

/// How long a rank waits for another: in a step, while rank 0 writes a checkpoint, and while it prepares the data.
struct WorldDeadlines {
  int64_t step_ms = 300'000;
  int64_t save_ms = 3'600'000;
  int64_t prepare_ms = 86'400'000;
};

/// What a process knows of the run when it meets the others.
struct WorldStart {
  std::string folder;  // flight records lie in its flight/ while the processes run, and after a failure
  WorldDeadlines deadlines;
  int64_t num_parts = 1;         // neighbours, which a launcher puts on one machine, that share their layers
  std::optional<Error> failure;  // why this process cannot take part, as a run file that its host lacks
};

class ProcessWorld {
 public:
  /// Meets the others. A slice of the world (TrainingPlanOptions) is every `num_parts`-th process. Collective.
  /// A rank whose process or MPI library does not come back, here, in any call or at the end, is reported by a watchdog, which ends this process
  /// (exit status 5). Errors: make_process_transport's, of which before_meeting() makes an AgreedError on some; an AgreedError where one rank has a `failure`.
  static std::unique_ptr<ProcessWorld> join(const RankEnvironment& ranks, const WorldStart& start);
  ~ProcessWorld();

  /// In the order of the plans.
  int rank() const { return control_->rank(); }
  int size() const { return world_->size(); }
  const RankEnvironment& environment() const { return environment_; }
  const WorldDeadlines& deadlines() const { return deadlines_; }
  std::string_view transport_name() const { return world_->transport_name(); }

  /// The groups of all ranks: `steps` for the threads of an engine, `saves` for the one that saves, `control` for the caller's.
  Communicator& steps() { return *steps_; }
  Communicator& saves() { return *saves_; }
  Communicator& control() { return *control_; }

  /// Runs `body` and waits for the others to have run theirs. Where one throws an Error, the first failing rank prints it as "error: ..." on stderr, and all
  /// throw an AgreedError of its code. Collective.
  void together(std::string_view what, int64_t timeout_ms, const std::function<void()>& body);
  /// As together(), `body` on rank 0 alone; the text that it returns is what every rank gets.
  std::string from_first_rank(std::string_view what, int64_t timeout_ms, const std::function<std::string()>& body);
  /// Everybody's value, by rank.
  template <typename T>
  std::vector<T> gather(const T& mine, std::string_view what, int64_t timeout_ms = 0) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> all(static_cast<size_t>(size()));
    gather_bytes(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)), what, timeout_ms);
    return all;
  }
  /// As gather(), of texts.
  std::vector<std::string> gather_text(std::string_view mine, std::string_view what);

  /// Compute threads for this rank: `wanted` of all ranks of this host together, or, when that is 0, the cores that it may use, shared with
  /// those ranks of this host that may use the same. Collective.
  int share_threads(int wanted);

  /// Waits until all have said and written what they had to; call it last, unless after leave(). With an exit status that is not 0 the flight records are
  /// gone when it returns: a launcher kills the ranks that are still on their way out when the first has left with one. Collective; all give the same.
  void meet_at_end(int status);
  /// This rank leaves because of an error. Unless all know it (together()), the others are not waited for.
  void leave(std::string_view reason);

 private:
  ProcessWorld() = default;
  void gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all, std::string_view what, int64_t timeout_ms);
  void drop_flight_records(Communicator& group, int64_t timeout_ms);

  RankEnvironment environment_;
  WorldDeadlines deadlines_;
  bool agreed_ = false;  // an error that all know has been thrown
  std::string flight_folder_;
  std::unique_ptr<Communicator> world_, steps_, control_, saves_;
};

/// An error that another rank tells, or that has been printed by the rank that had it: what is left is to end with its exit status.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Runs what comes before the ranks can meet and agree. An Error in it is thrown on the first rank of this host, and an AgreedError on its others.
void before_meeting(const std::function<void()>& body);

/// What a world of processes left in `folder`/flight when all ended without a word (a launcher that kills the survivors of a death), as a
/// report of who was missing; the records are removed. Empty: nothing was left.
std::string take_post_mortem(const std::string& folder);

}  // namespace orrery
