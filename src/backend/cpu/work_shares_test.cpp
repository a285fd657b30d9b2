// Every piece is taken exactly once, whoever takes it: by one thread for all shares in turn, and by threads at once of which some start late.
#include "backend/cpu/work_shares.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace orrery {
namespace {

TEST(WorkShares, OwnShareInOrderThenTheOthersFromTheirBacks) {
  WorkShares shares(10, 2);
  int64_t front = 0, back = 10;
  while (const WorkShares::Piece piece = shares.take(0)) {
    if (front < 5) {
      EXPECT_EQ(piece.begin, front);
      front = piece.end;
    } else {
      EXPECT_EQ(piece.end, back);
      back = piece.begin;
    }
  }
  EXPECT_EQ(front, 5);
  EXPECT_EQ(back, 5);
  EXPECT_FALSE(shares.take(1));
}

TEST(WorkShares, TheFirstPieceIsAsLongAsAsked) {
  WorkShares shares(40, 2);
  EXPECT_EQ(shares.take(1, 13).end, 33);
  EXPECT_EQ(shares.take(1, 13).end, 40) << "no longer than what is left";
  EXPECT_EQ(shares.take(1, 13).begin, 15) << "a quarter of the other's, whatever was asked";
}

TEST(WorkShares, EachPieceOnce) {
  for (int num_threads : {1, 2, 3, 7})
    for (int64_t count : {0, 1, 2, 18, 1001}) {
      WorkShares shares(count, num_threads);
      std::vector<std::atomic<int>> taken(static_cast<size_t>(count));
      std::vector<std::thread> threads;
      for (int t = 0; t < num_threads; ++t)
        threads.emplace_back([&, t] {
          if (t % 2 == 1) std::this_thread::yield();
          while (const WorkShares::Piece piece = shares.take(t, t + 1))
            for (int64_t i = piece.begin; i < piece.end; ++i) taken[static_cast<size_t>(i)].fetch_add(1);
        });
      for (std::thread& thread : threads) thread.join();
      for (const auto& times : taken) EXPECT_EQ(times.load(), 1);
    }
}

}  // namespace
}  // namespace orrery
