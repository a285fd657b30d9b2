#include "train/process_world.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <span>

#include "base/error.h"
#include "comm/futex.h"
#include "comm/watchdog.h"

namespace orrery {
namespace {

namespace fs = std::filesystem;

constexpr int kNoError = -1;
// A launcher starts all ranks at about the same time.
constexpr int64_t kMeetMs = 300'000;

// A thread that does not come back out of a library cannot be joined: nothing of the process's own end would run to its end.
[[noreturn]] void end_process(std::string_view report) {
  fmt::print(stderr, "error: {}\n", report);
  ::_exit(exit_status(ErrorCode::kTimeout));
}

fs::path flight_folder(const std::string& folder) { return fs::path(folder) / "flight"; }

// Collective. Where a rank of `group` has a failure, the first of them prints it and all throw.
void throw_first(Communicator& group, std::string_view what, int64_t timeout_ms, const std::optional<Error>& failure) {
  CommLabel label(what);
  label.timeout_ms = timeout_ms;
  const int32_t mine = failure ? static_cast<int32_t>(failure->code()) : kNoError;
  std::vector<int32_t> codes(static_cast<size_t>(group.size()));
  group.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(codes)), label);
  const auto first = std::find_if(codes.begin(), codes.end(), [](int32_t code) { return code != kNoError; });
  if (first == codes.end()) return;
  const auto failing = static_cast<int>(first - codes.begin());
  if (failing == group.rank()) {
    if (failing == 0) fmt::print(stderr, "error: {}\n", failure->what());
    else fmt::print(stderr, "error: rank {}: {}\n", failing, failure->what());
  }
  throw AgreedError(static_cast<ErrorCode>(*first), fmt::format("rank {} could not {}", failing, what));
}

}  // namespace

void before_meeting(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    if (first_rank_of_host()) throw;
    let_first_rank_speak();
    throw AgreedError(error.code(), error.what());
  }
}

std::unique_ptr<ProcessWorld> ProcessWorld::join(const RankEnvironment& ranks, const WorldStart& start) {
  std::unique_ptr<ProcessWorld> world(new ProcessWorld);
  world->environment_ = ranks;
  world->deadlines_ = start.deadlines;
  std::unique_ptr<Transport> transport;
  {
    Watchdog watchdog(1000, [&ranks] {
      end_process(fmt::format("rank {}: {} has not brought the {} ranks together within {} s; see whether each has a process that runs", ranks.rank, ranks.source, ranks.world_size,
                              kMeetMs / 1000));
    });
    const Watchdog::Guard guard(watchdog, monotonic_ns() + kMeetMs * 1'000'000);
    before_meeting([&] { transport = make_process_transport(ranks); });
  }
  std::optional<Error> failure = start.failure;
  CommOptions options;
  options.timeout_ms = start.deadlines.step_ms;
  options.on_stuck = end_process;
  if (!failure) {
    world->flight_folder_ = flight_folder(start.folder).string();
    std::error_code refused;
    fs::create_directories(world->flight_folder_, refused);
    if (refused) failure = Error(ErrorCode::kIo, "cannot make {}: {}; choose another checkpoint.dir", world->flight_folder_, refused.message());
    else options.flight_path = world->flight_folder_ + "/rank";
  }
  world->world_ = std::make_unique<Communicator>(std::move(transport), options);
  world->world_->set_activity("start");
  try {
    throw_first(*world->world_, "take part in the run", 0, failure);
  } catch (const AgreedError&) {
    world->drop_flight_records(*world->world_, 0);
    throw;
  }
  // A number of processes that the layout does not divide is refused with the layout.
  const auto parts = static_cast<int>(ranks.world_size % start.num_parts == 0 ? start.num_parts : 1);
  const int place = ranks.rank % parts * (ranks.world_size / parts) + ranks.rank / parts;
  for (std::unique_ptr<Communicator>* group : {&world->steps_, &world->control_, &world->saves_}) *group = world->world_->split(0, place, "start");
  return world;
}

ProcessWorld::~ProcessWorld() {
  steps_.reset();
  control_.reset();
  saves_.reset();
  world_.reset();
  if (flight_folder_.empty()) return;
  std::error_code ignored;
  fs::remove(flight_folder_, ignored);  // the last one out; with records of a failure inside it stays
}

void ProcessWorld::gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all, std::string_view what, int64_t timeout_ms) {
  CommLabel label(what);
  label.timeout_ms = timeout_ms;
  control_->all_gather(mine, all, label);
}

std::vector<std::string> ProcessWorld::gather_text(std::string_view mine, std::string_view what) {
  const std::vector<int64_t> sizes = gather<int64_t>(static_cast<int64_t>(mine.size()), what);
  std::vector<ElementRange> ranges;
  int64_t end = 0;
  for (const int64_t bytes : sizes) ranges.push_back({end, end + bytes}), end += bytes;
  std::vector<std::byte> all(static_cast<size_t>(end));
  std::ranges::copy(std::as_bytes(std::span(mine)), all.begin() + ranges[static_cast<size_t>(rank())].begin);
  control_->all_gather_ranges(all, ranges, what);
  std::vector<std::string> texts;
  for (const ElementRange& range : ranges) texts.emplace_back(reinterpret_cast<const char*>(all.data()) + range.begin, static_cast<size_t>(range.size()));
  return texts;
}

void ProcessWorld::together(std::string_view what, int64_t timeout_ms, const std::function<void()>& body) {
  std::optional<Error> failure;
  control_->set_activity(what);
  try {
    body();
  } catch (const Error& error) {
    failure = error;
  }
  try {
    throw_first(*control_, what, timeout_ms, failure);
  } catch (const AgreedError&) {
    agreed_ = true;
    throw;
  }
}

std::string ProcessWorld::from_first_rank(std::string_view what, int64_t timeout_ms, const std::function<std::string()>& body) {
  std::string text;
  together(what, timeout_ms, [&] {
    if (rank() == 0) text = body();
  });
  return gather_text(text, what).front();
}

int ProcessWorld::share_threads(int wanted) {
  struct Cores {
    char host[64];
    cpu_set_t set;
  };
  Cores mine;
  std::memset(&mine, 0, sizeof mine);
  ::gethostname(mine.host, sizeof mine.host - 1);
  if (::sched_getaffinity(0, sizeof mine.set, &mine.set) != 0) CPU_SET(0, &mine.set);
  int here = 0, sharing = 0;
  for (const Cores& other : gather(mine, "share the cores")) {
    if (std::strcmp(other.host, mine.host) != 0) continue;
    ++here;
    if (CPU_EQUAL(&other.set, &mine.set)) ++sharing;
  }
  // A launcher that binds gives each rank cores of its own; one that does not gives all of them all cores.
  return wanted > 0 ? std::max(1, wanted / here) : std::max(1, CPU_COUNT(&mine.set) / sharing);
}

void ProcessWorld::meet_at_end(int status) {
  CommLabel end("end");
  end.timeout_ms = deadlines_.save_ms;
  control_->barrier(end);
  if (status != 0) drop_flight_records(*control_, deadlines_.save_ms);
}

void ProcessWorld::drop_flight_records(Communicator& group, int64_t timeout_ms) {
  CommLabel end("end");
  end.timeout_ms = timeout_ms;
  world_->drop_flight_file();
  group.barrier(end);
  std::error_code ignored;
  if (!flight_folder_.empty()) fs::remove(flight_folder_, ignored);
}

void ProcessWorld::leave(std::string_view reason) {
  if (!agreed_) world_->abort(ErrorCode::kPeerLost, reason);
}

std::string take_post_mortem(const std::string& folder) {
  const fs::path flight = flight_folder(folder);
  std::string report;
  try {
    if (fs::exists(flight / "rank-0")) report = post_mortem_report((flight / "rank").string());
  } catch (const Error& error) {
    report = fmt::format("its flight records cannot be read: {}", error.what());
  }
  std::error_code ignored;
  fs::remove_all(flight, ignored);
  return report;
}

}  // namespace orrery
