#include "comm/mpi_transport.h"

#include <dlfcn.h>
#include <sched.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <vector>

#include "comm/futex.h"
#include "comm/mpi_api.h"
#include "comm/process_state.h"

namespace orrery {

std::string_view mpi_library_name(MpiLibrary library) { return library == MpiLibrary::kOpenMpi ? "openmpi" : "mpich"; }

namespace {

constexpr int64_t kRequestsPerBlock = 64;
constexpr int64_t kLookAtPeerNs = 20'000'000;
constexpr int kMostYields = 300;
constexpr int64_t kTimeSliceNs = 500'000;  // what a thread that computes gets at least

const OrreryMpiApi& open_plugin(MpiLibrary library) {
  const std::string file = fmt::format("liborrery_mpi_{}.so", mpi_library_name(library));
  std::vector<std::string> folders;
  if (const char* folder = std::getenv("ORRERY_MPI_PLUGIN_DIR")) folders.push_back(folder);
  std::error_code ignored;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  folders.push_back(program.string());
  folders.push_back((program.parent_path() / "lib/orrery").string());
  std::string errors;
  for (const std::string& folder : folders) {
    const std::string path = folder + "/" + file;
    if (!std::filesystem::exists(path)) continue;
    // Global: Open MPI's own components look for its symbols in the program.
    void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (handle == nullptr) {
      errors += fmt::format("; {}", ::dlerror());
      continue;
    }
    const auto entry = reinterpret_cast<const OrreryMpiApi* (*)()>(::dlsym(handle, "orrery_mpi_api"));
    if (entry != nullptr && entry()->version == kOrreryMpiApiVersion) return *entry();
    errors += fmt::format("; {} is of another version", path);
  }
  throw Error(ErrorCode::kUnsupported, "the launcher is {}'s and {} is not usable (looked in {}{}); install {} and build again, or use --ranks for threads",
              mpi_library_name(library), file, fmt::join(folders, ", "), errors, library == MpiLibrary::kOpenMpi ? "libopenmpi-dev" : "libmpich-dev");
}

struct MpiRequest : Transport::Request {
  OrreryMpiRequest mpi{};
  TransferStatus status = TransferStatus::kPending;
  const std::byte* data = nullptr;
  int64_t bytes = 0, peer_bytes = -1;
  int peer = 0;
  bool receives = false;
  MpiRequest* next = nullptr;
};

// What ranks tell each other at the start.
struct RankCard {
  int64_t process_id = 0;
  char host[56] = {};
};

class MpiTransport final : public Transport {
 public:
  explicit MpiTransport(MpiLibrary library) : api_(open_plugin(library)) {
    if (const int error = api_.initialize(&rank_, &size_, &tag_limit_); error != 0)
      throw Error(ErrorCode::kUnsupported, "MPI does not start: error {}", error);
    api_.library_name(name_, sizeof name_);
    RankCard mine;
    mine.process_id = ::getpid();
    ::gethostname(mine.host, sizeof mine.host - 1);
    cards_.resize(static_cast<size_t>(size_));
    if (api_.all_gather(&mine, sizeof mine, cards_.data()) != 0) throw Error(ErrorCode::kPeerLost, "MPI cannot gather the ranks' process ids");
    for (RankCard& card : cards_)
      if (std::strcmp(card.host, mine.host) != 0) card.process_id = -1;
  }
  ~MpiTransport() override {
    if (!failure_.failed()) api_.finalize();
  }

  std::string_view name() const override { return name_; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool borrows_in_place() const override { return false; }
  int64_t tag_limit() const override { return tag_limit_; }
  CommFailure& failure() override { return failure_; }
  int64_t num_allocations() const override { return num_allocations_; }
  int64_t process_id(int rank) const override { return cards_[static_cast<size_t>(rank)].process_id; }

  Request* post_send(std::span<const std::byte> data, int peer, int64_t tag) override {
    return post(const_cast<std::byte*>(data.data()), static_cast<int64_t>(data.size()), peer, tag, /*receives=*/false);
  }
  Request* post_recv(std::span<std::byte> data, int peer, int64_t tag) override {
    return post(data.data(), static_cast<int64_t>(data.size()), peer, tag, /*receives=*/true);
  }
  Request* post_borrow(int64_t bytes, std::byte* scratch, int peer, int64_t tag) override { return post(scratch, bytes, peer, tag, /*receives=*/true); }

  TransferStatus test(Request* opaque) override {
    auto* request = static_cast<MpiRequest*>(opaque);
    if (request->status != TransferStatus::kPending) return request->status;
    if (failure_.failed()) return TransferStatus::kFailed;
    int done = 0;
    int64_t received = 0;
    int result;
    {
      std::lock_guard lock(mutex_);
      result = api_.test(&request->mpi, &done, &received);
    }
    if (result == kOrreryMpiTruncated) return request->status = TransferStatus::kMismatch;
    if (result != kOrreryMpiOk) return request->status = TransferStatus::kFailed;
    if (done == 0) return TransferStatus::kPending;
    if (request->receives && received != request->bytes) {
      request->peer_bytes = received;
      return request->status = TransferStatus::kMismatch;
    }
    return request->status = TransferStatus::kDone;
  }

  TransferStatus wait(Request* opaque, int64_t deadline_ns) override {
    auto* request = static_cast<MpiRequest*>(opaque);
    int64_t look_at_peer_ns = 0, last_ns = monotonic_ns();
    for (int polls = 0;; ++polls) {
      const TransferStatus status = test(opaque);
      if (status != TransferStatus::kPending) return status;
      if (polls < 100) continue;
      const int64_t now = monotonic_ns();
      if (now >= deadline_ns) return TransferStatus::kPending;
      if (look_at_peer_ns == 0) look_at_peer_ns = now + kLookAtPeerNs;
      if (now >= look_at_peer_ns) {
        look_at_peer_ns = now + kLookAtPeerNs;
        for (const RankCard& card : cards_)
          if (process_state(card.process_id) == ProcessState::kGone && test(opaque) == TransferStatus::kPending) return request->status = TransferStatus::kFailed;
      }
      // Ranks may share cores: first the neighbour, then the clock. A yield that gave the core away comes back a time slice later, which is long
      // for a message; from a sleep the kernel wakes this thread in time.
      if (polls < kMostYields && now - last_ns < kTimeSliceNs) {
        ::sched_yield();
      } else {
        polls = kMostYields;
        const timespec pause{0, 30'000};
        ::nanosleep(&pause, nullptr);
      }
      last_ns = now;
    }
  }

  const std::byte* borrowed(const Request* request) const override { return static_cast<const MpiRequest*>(request)->data; }
  int64_t peer_bytes(const Request* request) const override { return static_cast<const MpiRequest*>(request)->peer_bytes; }

  void release(Request* opaque) override {
    auto* request = static_cast<MpiRequest*>(opaque);
    std::lock_guard lock(mutex_);
    if (request->status == TransferStatus::kPending && !failure_.failed()) api_.abandon(&request->mpi, request->receives ? 1 : 0);
    request->next = free_;
    free_ = request;
  }

 private:
  Request* post(std::byte* data, int64_t bytes, int peer, int64_t tag, bool receives) {
    // MPI counts in int; the communicator's sums are cut into segments, plain transfers are not.
    if (bytes > INT32_MAX) throw Error(ErrorCode::kUnsupported, "a message of {} bytes to or from rank {}: MPI takes {} at a time", bytes, peer, INT32_MAX);
    std::lock_guard lock(mutex_);
    if (free_ == nullptr) {
      blocks_.push_back(std::make_unique<std::array<MpiRequest, kRequestsPerBlock>>());
      ++num_allocations_;
      for (MpiRequest& request : *blocks_.back()) {
        request.next = free_;
        free_ = &request;
      }
    }
    MpiRequest* request = free_;
    free_ = request->next;
    request->status = TransferStatus::kPending;
    request->data = data;
    request->bytes = bytes;
    request->peer_bytes = -1;
    request->peer = peer;
    request->receives = receives;
    const int result = receives ? api_.receive(data, bytes, peer, static_cast<int>(tag), &request->mpi) : api_.send(data, bytes, peer, static_cast<int>(tag), &request->mpi);
    if (result != kOrreryMpiOk) request->status = TransferStatus::kFailed;
    return request;
  }

  const OrreryMpiApi& api_;
  int rank_ = 0, size_ = 1;
  int64_t tag_limit_ = 0;
  char name_[64] = {};
  std::vector<RankCard> cards_;  // by rank; process id -1 on another host
  CommFailure failure_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<std::array<MpiRequest, kRequestsPerBlock>>> blocks_;
  MpiRequest* free_ = nullptr;
  std::atomic<int64_t> num_allocations_{0};
};

}  // namespace

std::vector<std::string> usable_mpi() {
  std::vector<std::string> names;
  for (const MpiLibrary library : {MpiLibrary::kOpenMpi, MpiLibrary::kMpich}) try {
      open_plugin(library);
      names.emplace_back(mpi_library_name(library));
    } catch (const Error&) {  // not installed, or not built
    }
  return names;
}

std::unique_ptr<Transport> make_mpi_transport(MpiLibrary library) { return std::make_unique<MpiTransport>(library); }

}  // namespace orrery
