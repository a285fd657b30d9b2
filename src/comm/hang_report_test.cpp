// Proves that the report names the lost before the differing before the late, takes the majority's side, and says when it cannot know.
#include "comm/hang_report.h"

#include <gtest/gtest.h>

namespace orrery {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

FlightRecord collective(CommOp op, int32_t sequence, int64_t bytes, bool running) {
  FlightRecord record;
  record.op = op;
  record.state = running ? FlightState::kRunning : FlightState::kDone;
  record.enter_ns = 10 * kSecond;
  record.exit_ns = running ? 0 : 11 * kSecond;
  record.bytes = bytes;
  record.group_sequence = sequence;
  record.label = running ? "RS3" : "AG2";
  record.file = "engine.cpp";
  record.line = 42;
  return record;
}
RankStory inside(int rank, int64_t bytes = 100) {
  return {.world_rank = rank, .records = {collective(CommOp::kAllGather, 4, 100, false), collective(CommOp::kReduceScatter, 5, bytes, true)}};
}
std::string first_line(const std::vector<RankStory>& stories) {
  const std::string report = hang_report(stories, 0, 14 * kSecond);
  return report.substr(0, report.find('\n'));
}

TEST(HangReport, NamesTheRankInNoCall) {
  RankStory late{.world_rank = 2, .records = {collective(CommOp::kAllGather, 4, 100, false)}, .activity = {"B1", 7, 11 * kSecond}};
  EXPECT_EQ(first_line({inside(0), inside(1), late}), "rank 2 is late");
  const std::string report = hang_report({inside(0), late}, 0, 14 * kSecond);
  EXPECT_NE(report.find("rank 2: in no call; computes B1 of step 7 for 3.0 s"), std::string::npos) << report;
  EXPECT_NE(report.find("rank 0: in RS3 reduce_scatter (number 5 of group 0) of 100 bytes, step -1, engine.cpp:42, inside for 4.0 s"), std::string::npos) << report;
}

TEST(HangReport, NamesTheMinorityThatDiffers) {
  EXPECT_EQ(first_line({inside(0), inside(1, 50), inside(2)}).substr(0, 31), "rank 1 differs from rank 0: RS3");
  EXPECT_EQ(first_line({inside(0, 50), inside(1), inside(2)}).substr(0, 31), "rank 0 differs from rank 1: RS3");
}

TEST(HangReport, ALostProcessComesFirst) {
  RankStory lost = inside(1, 50);
  lost.process = "process 4711, dead";
  lost.lost = true;
  EXPECT_EQ(first_line({inside(0), lost}), "rank 1 is lost");
}

TEST(HangReport, ToleratesRanksOfDifferentProgress) {
  EXPECT_EQ(first_line({inside(0), {.world_rank = 1, .records = {collective(CommOp::kAllGather, 4, 100, true)}}}), "rank 1 is late");
}

TEST(HangReport, WhoGaveUpBeforeIsNotToBlame) {
  FlightRecord leaves;
  leaves.op = CommOp::kLeave;
  leaves.state = FlightState::kFailed;
  RankStory gone = inside(0), late = inside(2);
  gone.records.push_back(leaves);
  gone.lost = true;
  late.records.pop_back();
  EXPECT_EQ(first_line({gone, inside(1), late}), "rank 2 is late");
  EXPECT_EQ(first_line({gone, inside(1)}), "rank 0 gave up before, with a report of why");
}

TEST(HangReport, SaysWhatItDoesNotKnow) {
  EXPECT_EQ(first_line({inside(0), {.world_rank = 1, .known = false}}), "rank 1 cannot be asked and every other is inside a call");
  EXPECT_EQ(first_line({inside(0), inside(1)}), "every rank is inside a call: they wait for each other");
}

}  // namespace
}  // namespace orrery
