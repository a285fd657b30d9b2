#include "comm/flight_recorder.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "comm/futex.h"

namespace orrery {

std::string_view comm_op_name(CommOp op) {
  switch (op) {
    case CommOp::kNone: return "none";
    case CommOp::kSend: return "send";
    case CommOp::kRecv: return "recv";
    case CommOp::kAllGather: return "all_gather";
    case CommOp::kReduceScatter: return "reduce_scatter";
    case CommOp::kAllReduce: return "all_reduce";
    case CommOp::kAllToAll: return "all_to_all";
    case CommOp::kBroadcast: return "broadcast";
    case CommOp::kBarrier: return "barrier";
    case CommOp::kSplit: return "split";
    case CommOp::kLeave: return "leave";
  }
  return "?";
}

namespace {

using Word = std::atomic<uint64_t>;
constexpr uint64_t kMagic = 0x31304C46'59524F52;  // "RORYFL01"
constexpr int kTextWords = 3, kFileWords = 4;

// Text in words, so that reader and writer meet in atomics only.
template <size_t N>
void store_text(std::array<Word, N>& words, std::string_view text) {
  for (size_t i = 0; i < N; ++i) {
    uint64_t word = 0;
    const size_t begin = 8 * i;
    // The last byte stays zero, so that the text ends inside the field.
    const size_t count = begin >= text.size() ? 0 : std::min<size_t>(text.size() - begin, i + 1 == N ? 7 : 8);
    std::memcpy(&word, text.data() + (count ? begin : 0), count);
    words[i].store(word, std::memory_order_relaxed);
  }
}
template <size_t N>
std::string load_text(const std::array<Word, N>& words) {
  char text[8 * N];
  for (size_t i = 0; i < N; ++i) {
    const uint64_t word = words[i].load(std::memory_order_relaxed);
    std::memcpy(text + 8 * i, &word, 8);
  }
  return std::string(text, strnlen(text, sizeof text));
}
uint64_t pack(int32_t high, int32_t low) { return static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low); }
int32_t high_of(uint64_t word) { return static_cast<int32_t>(word >> 32); }
int32_t low_of(uint64_t word) { return static_cast<int32_t>(word & 0xFFFFFFFFu); }

struct EntryMemory {
  Word version;  // index + 1 of the entry that is here; 0 while it is written
  Word op_state;
  Word enter_ns, exit_ns, bytes, step, group_and_sequence, peer_and_tag, line;
  std::array<Word, kTextWords> label;
  std::array<Word, kFileWords> file;
};
static_assert(sizeof(EntryMemory) == 128);

}  // namespace

struct FlightRing::Memory {
  Word next_index;
  Word process_id;
  Word activity_step, activity_since_ns;
  std::array<Word, kTextWords> activity;
  Word unused[9];
  std::array<EntryMemory, kNumEntries> entries;
};

int64_t FlightRing::enter(const Entry& entry) {
  const auto index = static_cast<int64_t>(memory_->next_index.fetch_add(1, std::memory_order_relaxed));
  EntryMemory& memory = memory_->entries[static_cast<size_t>(index % kNumEntries)];
  memory.version.store(0, std::memory_order_relaxed);
  memory.op_state.store(static_cast<uint64_t>(entry.op) << 8 | static_cast<uint64_t>(entry.posted ? FlightState::kPosted : FlightState::kRunning), std::memory_order_relaxed);
  memory.enter_ns.store(static_cast<uint64_t>(monotonic_ns()), std::memory_order_relaxed);
  memory.exit_ns.store(0, std::memory_order_relaxed);
  memory.bytes.store(static_cast<uint64_t>(entry.bytes), std::memory_order_relaxed);
  memory.step.store(static_cast<uint64_t>(entry.step), std::memory_order_relaxed);
  memory.group_and_sequence.store(pack(entry.group, entry.group_sequence), std::memory_order_relaxed);
  memory.peer_and_tag.store(pack(entry.peer, entry.tag), std::memory_order_relaxed);
  memory.line.store(static_cast<uint64_t>(entry.line), std::memory_order_relaxed);
  store_text(memory.label, entry.label);
  store_text(memory.file, entry.file.substr(entry.file.size() - std::min<size_t>(entry.file.size(), FlightRecord::kFileChars)));
  memory.version.store(static_cast<uint64_t>(index) + 1, std::memory_order_release);
  return index;
}

void FlightRing::wait_begins(int64_t index) {
  EntryMemory& memory = memory_->entries[static_cast<size_t>(index % kNumEntries)];
  if (memory.version.load(std::memory_order_relaxed) != static_cast<uint64_t>(index) + 1) return;
  const uint64_t op = memory.op_state.load(std::memory_order_relaxed) >> 8;
  memory.op_state.store(op << 8 | static_cast<uint64_t>(FlightState::kRunning), std::memory_order_release);
}

void FlightRing::exit(int64_t index, FlightState state) {
  EntryMemory& memory = memory_->entries[static_cast<size_t>(index % kNumEntries)];
  // A posted operation may outlive its entry's place in the ring.
  if (memory.version.load(std::memory_order_relaxed) != static_cast<uint64_t>(index) + 1) return;
  memory.exit_ns.store(static_cast<uint64_t>(monotonic_ns()), std::memory_order_relaxed);
  const uint64_t op = memory.op_state.load(std::memory_order_relaxed) >> 8;
  memory.op_state.store(op << 8 | static_cast<uint64_t>(state), std::memory_order_release);
}

void FlightRing::set_activity(std::string_view text, int64_t step) {
  store_text(memory_->activity, text);
  memory_->activity_step.store(static_cast<uint64_t>(step), std::memory_order_relaxed);
  memory_->activity_since_ns.store(static_cast<uint64_t>(monotonic_ns()), std::memory_order_release);
}

FlightRing::Activity FlightRing::activity() const {
  Activity activity;
  activity.since_ns = static_cast<int64_t>(memory_->activity_since_ns.load(std::memory_order_acquire));
  activity.step = static_cast<int64_t>(memory_->activity_step.load(std::memory_order_relaxed));
  activity.text = load_text(memory_->activity);
  return activity;
}

int64_t FlightRing::process_id() const { return static_cast<int64_t>(memory_->process_id.load(std::memory_order_relaxed)); }
void FlightRing::set_process_id(int64_t process_id) { memory_->process_id.store(static_cast<uint64_t>(process_id), std::memory_order_relaxed); }

std::vector<FlightRecord> FlightRing::last(int64_t max_entries) const {
  const auto end = static_cast<int64_t>(memory_->next_index.load(std::memory_order_acquire));
  std::vector<FlightRecord> records;
  for (int64_t index = std::max<int64_t>(0, end - std::min(max_entries, kNumEntries)); index < end; ++index) {
    const EntryMemory& memory = memory_->entries[static_cast<size_t>(index % kNumEntries)];
    if (memory.version.load(std::memory_order_acquire) != static_cast<uint64_t>(index) + 1) continue;
    FlightRecord record;
    const uint64_t op_state = memory.op_state.load(std::memory_order_acquire);
    record.op = static_cast<CommOp>(op_state >> 8);
    record.state = static_cast<FlightState>(op_state & 0xFF);
    record.enter_ns = static_cast<int64_t>(memory.enter_ns.load(std::memory_order_relaxed));
    record.exit_ns = static_cast<int64_t>(memory.exit_ns.load(std::memory_order_relaxed));
    record.bytes = static_cast<int64_t>(memory.bytes.load(std::memory_order_relaxed));
    record.step = static_cast<int64_t>(memory.step.load(std::memory_order_relaxed));
    const uint64_t group = memory.group_and_sequence.load(std::memory_order_relaxed);
    record.group = high_of(group);
    record.group_sequence = low_of(group);
    const uint64_t peer = memory.peer_and_tag.load(std::memory_order_relaxed);
    record.peer = high_of(peer);
    record.tag = low_of(peer);
    record.line = static_cast<int32_t>(memory.line.load(std::memory_order_relaxed));
    record.label = load_text(memory.label);
    record.file = load_text(memory.file);
    if (memory.version.load(std::memory_order_acquire) == static_cast<uint64_t>(index) + 1) records.push_back(std::move(record));
  }
  return records;
}

namespace {

struct FileHeader {
  uint64_t magic, num_rings;
  uint64_t unused[6];
};
size_t file_bytes(int num_rings) { return sizeof(FileHeader) + static_cast<size_t>(num_rings) * sizeof(FlightRing::Memory); }

}  // namespace

FlightRecorder FlightRecorder::create(const std::string& path, int num_ranks) {
  FlightRecorder recorder;
  recorder.path_ = path;
  recorder.mapping_bytes_ = file_bytes(num_ranks);
  recorder.num_rings_ = num_ranks;
  int file = -1;
  if (!path.empty()) {
    ::unlink(path.c_str());  // an old run's; whoever still maps it keeps its own
    file = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0) throw_io_error(errno, fmt::format("cannot make the flight recorder {}", path));
    if (::ftruncate(file, static_cast<off_t>(recorder.mapping_bytes_)) != 0) {
      const int error = errno;
      ::close(file);
      throw_io_error(error, fmt::format("cannot size the flight recorder {}", path));
    }
  }
  void* mapping = ::mmap(nullptr, recorder.mapping_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | (file < 0 ? MAP_ANONYMOUS : 0), file, 0);
  const int error = errno;
  if (file >= 0) ::close(file);
  if (mapping == MAP_FAILED) throw_io_error(error, fmt::format("cannot map the flight recorder {}", path));
  recorder.mapping_ = mapping;
  *static_cast<FileHeader*>(mapping) = {kMagic, static_cast<uint64_t>(num_ranks), {}};
  for (int i = 0; i < num_ranks; ++i) recorder.ring(i).set_process_id(::getpid());
  return recorder;
}

FlightRecorder FlightRecorder::open(const std::string& path) {
  FlightRecorder recorder;
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw_io_error(errno, fmt::format("cannot open the flight recorder {}", path));
  struct stat status {};
  ::fstat(file, &status);
  const auto bytes = static_cast<size_t>(status.st_size);
  void* mapping = bytes < sizeof(FileHeader) ? MAP_FAILED : ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
  ::close(file);
  if (mapping == MAP_FAILED) throw Error(ErrorCode::kCorruptData, "{} is no flight recorder: {} bytes", path, bytes);
  recorder.mapping_ = mapping;
  recorder.mapping_bytes_ = bytes;
  const auto* header = static_cast<const FileHeader*>(mapping);
  if (header->magic != kMagic || header->num_rings > 1u << 20 || file_bytes(static_cast<int>(header->num_rings)) != bytes)
    throw Error(ErrorCode::kCorruptData, "{} is no flight recorder of this version", path);
  recorder.num_rings_ = static_cast<int>(header->num_rings);
  return recorder;
}

FlightRecorder::FlightRecorder(FlightRecorder&& other) noexcept
    : path_(std::exchange(other.path_, {})),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_bytes_(other.mapping_bytes_),
      num_rings_(other.num_rings_),
      keep_file_(other.keep_file_.load(std::memory_order_relaxed)) {}

FlightRecorder::~FlightRecorder() {
  if (mapping_ == nullptr) return;
  ::munmap(mapping_, mapping_bytes_);
  if (!keep_file_.load(std::memory_order_relaxed)) drop_file();
}

void FlightRecorder::drop_file() {
  if (!path_.empty()) ::unlink(path_.c_str());
  path_.clear();
}

FlightRing FlightRecorder::ring(int index) const {
  ORRERY_CHECK(index >= 0 && index < num_rings_, "ring {} of {}", index, num_rings_);
  std::byte* rings = static_cast<std::byte*>(mapping_) + sizeof(FileHeader);
  return FlightRing(reinterpret_cast<FlightRing::Memory*>(rings) + index);
}

}  // namespace orrery
