// The message stream by itself, two ranks as threads: messages go in the order in which they become possible, a peer that never comes is
// named at the deadline, and a failure of another stream ends it. Whole pipelines: rank_group_test.cpp.
#include "train/message_stream.h"

#include <gtest/gtest.h>

#include <array>
#include <thread>

#include "base/error.h"
#include "data/testing.h"

namespace orrery {
namespace {

Action message(ActionKind kind, int32_t micro_batch, int32_t peer, std::vector<Wait> waits = {}) {
  Action action;
  action.kind = kind;
  action.micro_batch = micro_batch;
  action.peer = peer;
  action.waits = std::move(waits);
  return action;
}

Schedule schedule_of(int32_t stage, int32_t num_micro_batches, std::vector<Action> actions) {
  Schedule schedule;
  schedule.stage_of_chunk = {stage};
  schedule.micro_batches.resize(static_cast<size_t>(num_micro_batches));
  schedule.actions = std::move(actions);
  return schedule;
}

TEST(MessageStream, SendsWhatIsReadyFirst) {
  // Rank 0 makes micro-batch 1 before micro-batch 0; rank 1 waits for both, in the other order.
  const Schedule sends = schedule_of(0, 2,
                                     {message(ActionKind::kForward, 0, -1), message(ActionKind::kForward, 1, -1), message(ActionKind::kSendActivation, 0, 1, {{0}}),
                                      message(ActionKind::kSendActivation, 1, 1, {{1}})});
  const Schedule receives = schedule_of(1, 2, {message(ActionKind::kRecvActivation, 0, 0), message(ActionKind::kRecvActivation, 1, 0)});
  auto communicators = make_local_communicators(2);
  std::array<int64_t, 2> out = {17, 29}, in = {0, 0};
  const auto bytes = [](int64_t& value) { return std::as_writable_bytes(std::span(&value, 1)); };
  ActionProgress from(sends), to(receives);
  MessageStream sender(sends, 2, 1, *communicators[0], {{}, {}, bytes(out[0]), bytes(out[1])}, from);
  MessageStream receiver(receives, 2, 1, *communicators[1], {bytes(in[0]), bytes(in[1])}, to);
  std::thread sending([&] { sender.run(); });
  std::thread receiving([&] { receiver.run(); });
  from.mark_done(1);
  Action second;
  second.waits = {{1}};
  EXPECT_TRUE(to.wait_for(second));
  EXPECT_EQ(in[1], 29);
  EXPECT_EQ(in[0], 0);
  from.mark_done(0);
  sending.join();
  receiving.join();
  EXPECT_EQ(in, out);
}

TEST(MessageStream, NamesThePeerThatNeverComes) {
  const Schedule receives = schedule_of(1, 1, {message(ActionKind::kRecvActivation, 0, 0)});
  auto communicators = make_local_communicators(2, {.timeout_ms = 100});
  int64_t in = 0;
  ActionProgress progress(receives);
  MessageStream stream(receives, 2, 1, *communicators[1], {std::as_writable_bytes(std::span(&in, 1))}, progress);
  const auto [text, status] = testing::error_of([&] { stream.run(); });
  EXPECT_EQ(status, 5);
  EXPECT_NE(text.find("RF0<0"), std::string::npos) << text;
  EXPECT_NE(text.find("peer 0"), std::string::npos) << text;
}

TEST(MessageStream, EndsWhenAnotherStreamFails) {
  const Schedule receives = schedule_of(1, 1, {message(ActionKind::kRecvActivation, 0, 0)});
  auto communicators = make_local_communicators(2);
  int64_t in = 0;
  ActionProgress progress(receives);
  MessageStream stream(receives, 2, 1, *communicators[1], {std::as_writable_bytes(std::span(&in, 1))}, progress);
  std::thread running([&] { stream.run(); });
  progress.fail(std::make_exception_ptr(Error(ErrorCode::kDevice, "a kernel")));
  running.join();
  EXPECT_THROW(progress.rethrow(), Error);
}

}  // namespace
}  // namespace orrery
