// What is written to a store is read back, by copy and as memory, in a file and in a node's memory; nothing is left in the folder; and where there can
// be no store, one message says what was wanted, found, where, and the way out.
#include "runtime/offload_store.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/error.h"

namespace orrery {
namespace {

namespace fs = std::filesystem;

class OffloadStoreTest : public ::testing::Test {
 protected:
  OffloadStoreTest() {
    std::string pattern = (fs::temp_directory_path() / "orrery_offload_XXXXXX").string();
    folder_ = mkdtemp(pattern.data());
  }
  ~OffloadStoreTest() override { fs::remove_all(folder_); }

  static void check_round_trip(const std::string& place) {
    constexpr int64_t kBytes = 3 * 4096 + 100;
    OffloadStore store(place, kBytes);
    EXPECT_TRUE(std::all_of(store.data(), store.data() + kBytes, [](std::byte byte) { return byte == std::byte{0}; }));
    std::vector<std::byte> written(5000), read(5000);
    for (size_t i = 0; i < written.size(); ++i) written[i] = static_cast<std::byte>(i * 7 + 1);
    store.write(4000, written);
    store.read(4000, read);
    EXPECT_EQ(read, written);
    EXPECT_EQ(std::memcmp(store.data() + 4000, written.data(), written.size()), 0);
    // What a load puts there is what the next copy finds.
    store.data()[4001] = std::byte{99};
    store.read(4000, read);
    EXPECT_EQ(read[1], std::byte{99});
  }

  static std::pair<ErrorCode, std::string> error_of(const std::string& place, int64_t bytes) {
    try {
      OffloadStore store(place, bytes);
    } catch (const Error& error) {
      return {error.code(), error.what()};
    }
    return {ErrorCode::kCancelled, "no error"};
  }

  std::string folder_;
};

TEST_F(OffloadStoreTest, FileKeepsWhatIsWrittenAndLeavesNothing) {
  check_round_trip(folder_);
  OffloadStore alive(folder_, 4096);
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(OffloadStoreTest, NodeKeepsWhatIsWritten) {
  const auto [code, message] = error_of("numa:0", 4096);
  if (code == ErrorCode::kOutOfMemory) GTEST_SKIP() << message;  // where processes may not choose their node
  if (!std::filesystem::exists("/sys/devices/system/node/node0")) GTEST_SKIP() << "this machine shows no memory nodes: numa:0 was not written to";
  check_round_trip("numa:0");
}

TEST_F(OffloadStoreTest, SaysWhatIsWrongWithThePlace) {
  auto [code, message] = error_of(folder_ + "/nowhere", 4096);
  EXPECT_EQ(code, ErrorCode::kIo);
  EXPECT_NE(message.find("cannot make a file there: No such file"), std::string::npos) << message;
  std::tie(code, message) = error_of("numa:1000", 4096);
  EXPECT_EQ(code, ErrorCode::kInvalidConfig);
  EXPECT_NE(message.find("no such node"), std::string::npos) << message;
  std::tie(code, message) = error_of("numa:x", 4096);
  EXPECT_EQ(code, ErrorCode::kInvalidConfig);
  EXPECT_NE(message.find("such as \"numa:1\""), std::string::npos) << message;
}

// A limit on file sizes stands for a disk without room: all of the file is asked for at once.
TEST_F(OffloadStoreTest, SaysThatThereIsNoRoom) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit limited = before;
  limited.rlim_cur = 1 << 20;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limited), 0);
  const auto [code, message] = error_of(folder_, 8 << 20);
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(code, ErrorCode::kIo);
  EXPECT_NE(message.find("8.0 MiB are wanted there"), std::string::npos) << message;
  EXPECT_NE(message.find("make room, or give another folder"), std::string::npos) << message;
  EXPECT_TRUE(fs::is_empty(folder_));
}

}  // namespace
}  // namespace orrery
