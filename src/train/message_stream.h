// The messages of a pipeline's rank in a step: each send and receive is posted as soon as what it waits for is done, in whatever order that
// happens, because messages are matched by what they are and not by when they come.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "train/action_progress.h"

namespace orrery {

class MessageStream {
 public:
  /// `group`: the ranks of the pipeline, for this stream alone while a step runs. `buffers`: by action, what a message carries; empty for
  /// the other streams' actions. `group_size` data-parallel ranks stand between two ranks of a pipeline. All outlive the stream.
  /// Errors: kUnsupported when there are more micro-batches than messages can be told apart.
  MessageStream(const Schedule& schedule, int32_t num_stages, int64_t ranks_apart, Communicator& group, std::vector<std::span<std::byte>> buffers, ActionProgress& progress);

  /// All messages of a step, or those of the next step alone; returns when each is done or a stream has failed. Errors: the communicator's
  /// (kPeerLost, kTimeout).
  void run(bool next_step_alone = false);
  /// Between steps: another place for what an action carries, as long as it was.
  void set_buffer(size_t action, std::span<std::byte> buffer) { buffers_[action] = buffer; }

 private:
  enum class State : uint8_t { kWaiting, kActive, kDone };
  struct Message {
    size_t action = 0;
    int peer = 0, tag = 0;  // of the group
    bool sends = false;
    std::string label;
    State state = State::kWaiting;
    Work work;
  };
  bool advance(Message& message);

  const Schedule& schedule_;
  Communicator& group_;
  std::vector<std::span<std::byte>> buffers_;
  ActionProgress& progress_;
  std::vector<Message> messages_;
};

}  // namespace orrery
