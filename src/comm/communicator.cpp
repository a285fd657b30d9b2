#include "comm/communicator.h"

#include <pthread.h>
#include <unistd.h>

#include <exception>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "comm/comm_call.h"
#include "comm/hang_report.h"
#include "comm/local_transport.h"
#include "comm/process_state.h"
#include "comm/watchdog.h"

namespace orrery {
namespace {

constexpr size_t kMaxLabels = 512;
constexpr int kGroupShift = 16;
constexpr int64_t kCollectiveBit = 1 << 15;
constexpr int64_t kStoryEntries = 16;

// Ranks that are processes have a file each.
std::string flight_path_of(const CommOptions& options, int rank) {
  return options.flight_path.empty() ? std::string() : fmt::format("{}-{}", options.flight_path, rank);
}

void copy_label(char (&to)[24], std::string_view from) {
  const size_t count = std::min(from.size(), sizeof to - 1);
  std::memcpy(to, from.data(), count);
  to[count] = '\0';
}

}  // namespace

Communicator::Communicator(std::unique_ptr<Transport> transport, const CommOptions& options)
    : Communicator(std::move(transport), options,
                   std::make_shared<FlightRecorder>(FlightRecorder::create(flight_path_of(options, transport->rank()), 1)), 0) {
}

Communicator::Communicator(std::unique_ptr<Transport> transport, const CommOptions& options, std::shared_ptr<FlightRecorder> recorder, int ring_index)
    : shared_(std::make_shared<Shared>()) {
  shared_->options = options;
  shared_->rank = transport->rank();
  for (int rank = 0; rank < transport->size(); ++rank) shared_->process_ids.push_back(transport->process_id(rank));
  shared_->recorder = std::move(recorder);
  shared_->ring = shared_->recorder->ring(ring_index);
  if (options.keep_flight_file) shared_->recorder->keep_file();
  rank_ = shared_->rank;
  for (int rank = 0; rank < transport->size(); ++rank) members_.push_back(rank);
  if (options.on_stuck)
    transport = watch_transport(std::move(transport), options.timeout_ms, [shared = shared_.get()] { shared->options.on_stuck(shared->stuck_report()); });
  shared_->transport = std::move(transport);
  allocate();
}

Communicator::Communicator(std::shared_ptr<Shared> shared, std::vector<int> members, int rank, int32_t group)
    : shared_(std::move(shared)), members_(std::move(members)), rank_(rank), group_(group) {
  allocate();
}

void Communicator::allocate() {
  const auto size = static_cast<size_t>(this->size());
  bytes_sent_.assign(size, 0);
  bytes_received_.assign(size, 0);
  label_counters_.resize(kMaxLabels);
  rank_tree_ = rank_tree_plan(this->size());
  ranges_.resize(size);
  byte_ranges_.resize(size);
  pending_.reserve(8 * size);
  sum_sources_.reserve(4 * size);
}

int64_t Communicator::Shared::enter_leave() {
  return ring.enter({.op = CommOp::kLeave, .label = "END", .file = "communicator.cpp", .line = __LINE__, .bytes = 0, .step = -1, .group = 0, .group_sequence = -1, .peer = -1, .tag = -1});
}

// Where ranks are processes, to leave is to wait for the others once more.
Communicator::Shared::~Shared() {
  const FlightState state = transport->failure().failed() ? FlightState::kFailed : FlightState::kDone;
  const int64_t flight_index = enter_leave();
  transport.reset();
  ring.exit(flight_index, state);
}

Communicator::~Communicator() {
  if (shared_->transport->failure().failed()) shared_->recorder->keep_file();
}

void Communicator::drop_flight_file() { shared_->recorder->drop_file(); }

std::string_view Communicator::transport_name() const { return shared_->transport->name(); }
int64_t Communicator::num_transport_allocations() const { return shared_->transport->num_allocations(); }
void Communicator::set_activity(std::string_view action) { shared_->ring.set_activity(action, step_); }

void Communicator::reset_counters() {
  std::fill(bytes_sent_.begin(), bytes_sent_.end(), 0);
  std::fill(bytes_received_.begin(), bytes_received_.end(), 0);
  std::fill_n(label_counters_.begin(), num_labels_, CommLabelCounter{});
  num_labels_ = 0;
}

CommLabelCounter& Communicator::counter(std::string_view label) {
  label = label.substr(0, sizeof(CommLabelCounter::label) - 1);
  for (size_t i = 0; i < num_labels_; ++i)
    if (label == label_counters_[i].label) return label_counters_[i];
  // Labels beyond the table share its last entry, so that the sum over labels stays right.
  if (num_labels_ == kMaxLabels) return label_counters_.back();
  CommLabelCounter& counter = label_counters_[num_labels_++];
  copy_label(counter.label, num_labels_ == kMaxLabels ? std::string_view("others") : label);
  return counter;
}

void Communicator::count(std::string_view label, int member, int64_t bytes, bool receives) {
  if (member == rank_) return;
  (receives ? bytes_received_ : bytes_sent_)[static_cast<size_t>(member)] += bytes;
  CommLabelCounter& by_label = counter(label);
  (receives ? by_label.bytes_received : by_label.bytes_sent) += bytes;
}

int64_t Communicator::make_tag(CommOp op, int tag) const {
  const int64_t group = static_cast<int64_t>(group_) << kGroupShift;
  if (op == CommOp::kSend || op == CommOp::kRecv) {
    ORRERY_CHECK(tag >= 0 && tag < kCollectiveBit, "tag {}", tag);
    return group | tag;
  }
  // Kind and place in the order: a collective never meets another one's messages.
  return group | kCollectiveBit | static_cast<int64_t>(op) << 11 | (sequence_ & 0x7FF);
}

std::string Communicator::describe(TransferStatus status, std::string_view label, int peer, int64_t bytes, int64_t peer_bytes, int64_t timeout_ms) const {
  const int peer_rank = members_[static_cast<size_t>(peer)];
  const int own_rank = members_[static_cast<size_t>(rank_)];
  std::string text = fmt::format("rank {} step {} op {} bytes {} peer {}: ", own_rank, step_, label, bytes, peer_rank);
  switch (status) {
    case TransferStatus::kMismatch:
      text += peer_bytes < 0 ? fmt::format("rank {} names another size for it", peer_rank)
                             : fmt::format("rank {} names {} bytes for it and rank {} names {} bytes", peer_rank, peer_bytes, own_rank, bytes);
      break;
    case TransferStatus::kPending: text += fmt::format("not done within {} ms", timeout_ms); break;
    default: text += "the transport lost the peer"; break;
  }
  std::vector<RankStory> stories;
  for (const int member : members_) stories.push_back(shared_->story_of(member));
  text += "; " + hang_report(stories, group_, monotonic_ns());
  return text;
}

RankStory Communicator::Shared::story_of(int world_rank) const {
  RankStory story;
  const auto read = [&story](const FlightRing& theirs) {
    story.records = theirs.last(kStoryEntries);
    story.activity = theirs.activity();
  };
  story.world_rank = world_rank;
  if (const int64_t process_id = process_ids[static_cast<size_t>(world_rank)]; process_id >= 0) {
    const ProcessState state = process_state(process_id);
    story.process = fmt::format("process {}, {}", process_id, process_state_name(state));
    story.lost = state == ProcessState::kGone || state == ProcessState::kStopped;
  }
  if (recorder->num_rings() == static_cast<int>(process_ids.size())) {
    read(recorder->ring(world_rank));
  } else if (world_rank == rank) {
    read(ring);
  } else {
    story.known = false;
    if (options.flight_path.empty()) return story;
    try {
      const FlightRecorder theirs = FlightRecorder::open(flight_path_of(options, world_rank));
      read(theirs.ring(0));
      story.known = true;
    } catch (const Error&) {
      // Another host's folder, or it never came to write one: the report says that nothing is known.
    }
  }
  return story;
}

std::string Communicator::Shared::stuck_report() {
  std::vector<RankStory> stories;
  for (int member = 0; member < static_cast<int>(process_ids.size()); ++member) stories.push_back(story_of(member));
  // The oldest call that the rank is inside of; where it is in none it looks after a message that it has posted, which is then what it is inside of.
  FlightRecord* stuck = nullptr;
  for (const FlightState state : {FlightState::kRunning, FlightState::kPosted})
    for (FlightRecord& record : stories[static_cast<size_t>(rank)].records)
      if (stuck == nullptr && record.state == state) stuck = &record;
  std::string head = fmt::format("rank {}: ", rank);
  if (stuck != nullptr) {
    stuck->state = FlightState::kRunning;
    head = fmt::format("rank {} step {} op {} bytes {} peer {}: ", rank, stuck->step, stuck->label, stuck->bytes, stuck->peer);
  }
  const std::string report = head + fmt::format("the communication library does not come back; {}", hang_report(stories, stuck != nullptr ? stuck->group : 0, monotonic_ns()));
  ring.exit(enter_leave(), FlightState::kFailed);
  return report;
}

std::string post_mortem_report(const std::string& flight_path) {
  std::vector<RankStory> stories;
  // Ages count from the last sign of life.
  int64_t last_ns = 0;
  for (int rank = 0;; ++rank) {
    const std::string path = fmt::format("{}-{}", flight_path, rank);
    if (::access(path.c_str(), F_OK) != 0) break;
    const FlightRecorder recorder = FlightRecorder::open(path);
    RankStory story;
    story.world_rank = rank;
    story.records = recorder.ring(0).last(kStoryEntries);
    story.activity = recorder.ring(0).activity();
    last_ns = std::max(last_ns, story.activity.since_ns);
    for (const FlightRecord& record : story.records) last_ns = std::max({last_ns, record.enter_ns, record.exit_ns});
    stories.push_back(std::move(story));
  }
  if (stories.empty()) throw Error(ErrorCode::kIo, "no flight records at {}-0, {}-1, ...", flight_path, flight_path);
  return hang_report(stories, /*group=*/0, last_ns);
}

// Where a deadline is longer than the usual one, whether anybody is stopped is looked at each time that one passes; `timeout_ms` is then what was waited.
TransferStatus Communicator::wait(Transport::Request* request, int64_t deadline_ns, int64_t& timeout_ms) {
  const int64_t usual_ms = shared_->options.timeout_ms;
  while (true) {
    const int64_t until_ns = std::min(deadline_ns, monotonic_ns() + usual_ms * 1'000'000);
    const TransferStatus status = shared_->transport->wait(request, until_ns);
    if (status != TransferStatus::kPending || until_ns == deadline_ns) return status;
    for (const int member : members_)
      if (process_state(shared_->process_ids[static_cast<size_t>(member)]) == ProcessState::kStopped) {
        timeout_ms = usual_ms;
        return status;
      }
  }
}

void Communicator::fail(TransferStatus status, std::string_view label, int peer, int64_t bytes, int64_t peer_bytes, int64_t timeout_ms) {
  CommFailure& failure = shared_->transport->failure();
  if (!failure.failed()) {
    failure.set(status == TransferStatus::kPending ? ErrorCode::kTimeout : ErrorCode::kPeerLost, describe(status, label, peer, bytes, peer_bytes, timeout_ms));
    shared_->ring.exit(shared_->enter_leave(), FlightState::kFailed);
  }
  failure.raise();
}

void Communicator::abort(ErrorCode code, std::string_view reason) {
  shared_->transport->failure().set(code, fmt::format("rank {} gave up in step {}: {}", members_[static_cast<size_t>(rank_)], step_, reason));
}

std::unique_ptr<Communicator> Communicator::split(int color, int key, const CommLabel& label) {
  struct Wish {
    int32_t color, key, next_group;
  };
  std::vector<Wish> wishes(static_cast<size_t>(size()));
  const Wish mine{color, key, shared_->next_group.load(std::memory_order_relaxed)};
  all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(wishes)), label);
  // Every member takes numbers above all that any member has used, so that two groups with a common rank never share one.
  int32_t first_group = 0;
  std::vector<int> colors;
  for (const Wish& wish : wishes) {
    first_group = std::max(first_group, wish.next_group);
    if (wish.color >= 0) colors.push_back(wish.color);
  }
  std::sort(colors.begin(), colors.end());
  colors.erase(std::unique(colors.begin(), colors.end()), colors.end());
  const int32_t next_group = first_group + static_cast<int32_t>(colors.size());
  if ((static_cast<int64_t>(next_group) << kGroupShift) >= shared_->transport->tag_limit())
    throw Error(ErrorCode::kUnsupported, "group number {}: the {} transport has tags below {}", next_group, transport_name(), shared_->transport->tag_limit());
  shared_->next_group.store(next_group, std::memory_order_relaxed);
  if (color < 0) return nullptr;
  std::vector<int> order;
  for (int member = 0; member < size(); ++member)
    if (wishes[static_cast<size_t>(member)].color == color) order.push_back(member);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return wishes[static_cast<size_t>(a)].key < wishes[static_cast<size_t>(b)].key; });
  std::vector<int> world_ranks;
  int rank = 0;
  for (const int member : order) {
    if (member == rank_) rank = static_cast<int>(world_ranks.size());
    world_ranks.push_back(members_[static_cast<size_t>(member)]);
  }
  const auto group = first_group + static_cast<int32_t>(std::lower_bound(colors.begin(), colors.end(), color) - colors.begin());
  return std::unique_ptr<Communicator>(new Communicator(shared_, std::move(world_ranks), rank, group));
}

void Communicator::send(std::span<const std::byte> data, int peer, int tag, const CommLabel& label) {
  Call call(*this, CommOp::kSend, static_cast<int64_t>(data.size()), label, peer, tag);
  call.send(data, peer);
  call.finish();
}

void Communicator::recv(std::span<std::byte> data, int peer, int tag, const CommLabel& label) {
  Call call(*this, CommOp::kRecv, static_cast<int64_t>(data.size()), label, peer, tag);
  call.recv(data, peer);
  call.finish();
}

Work Communicator::post(std::span<const std::byte> out, std::span<std::byte> in, int peer, int tag, const CommLabel& label) {
  Transport& transport = *shared_->transport;
  if (transport.failure().failed()) transport.failure().raise();
  const bool receives = out.data() == nullptr;
  const std::string_view file = label.where.file_name();
  Work work;
  work.communicator_ = this;
  work.peer_ = peer;
  work.receives_ = receives;
  work.bytes_ = static_cast<int64_t>(receives ? in.size() : out.size());
  work.timeout_ms_ = label.timeout_ms > 0 ? label.timeout_ms : shared_->options.timeout_ms;
  copy_label(work.label_, label.action);
  const CommOp op = receives ? CommOp::kRecv : CommOp::kSend;
  work.flight_index_ = shared_->ring.enter({.op = op,
                                            .label = label.action,
                                            .file = file.substr(file.rfind('/') + 1),
                                            .line = static_cast<int32_t>(label.where.line()),
                                            .bytes = work.bytes_,
                                            .step = step_,
                                            .group = group_,
                                            .group_sequence = -1,
                                            .peer = members_[static_cast<size_t>(peer)],
                                            .tag = tag,
                                            .posted = true});
  const int world_peer = members_[static_cast<size_t>(peer)];
  work.request_ = receives ? transport.post_recv(in, world_peer, make_tag(op, tag)) : transport.post_send(out, world_peer, make_tag(op, tag));
  return work;
}

Work Communicator::post_send(std::span<const std::byte> data, int peer, int tag, const CommLabel& label) {
  // An empty span may have no address; post() tells a send by its own.
  static const std::byte kNothing{};
  return post(data.data() == nullptr ? std::span(&kNothing, 0) : data, {}, peer, tag, label);
}
Work Communicator::post_recv(std::span<std::byte> data, int peer, int tag, const CommLabel& label) { return post({}, data, peer, tag, label); }

Work& Work::operator=(Work&& other) noexcept {
  if (this == &other) return *this;
  cancel();
  communicator_ = other.communicator_;
  request_ = std::exchange(other.request_, nullptr);
  flight_index_ = other.flight_index_;
  bytes_ = other.bytes_;
  timeout_ms_ = other.timeout_ms_;
  peer_ = other.peer_;
  receives_ = other.receives_;
  std::memcpy(label_, other.label_, sizeof label_);
  return *this;
}

void Work::cancel() {
  if (request_ == nullptr) return;
  communicator_->shared_->ring.exit(flight_index_, FlightState::kFailed);
  communicator_->shared_->transport->release(std::exchange(request_, nullptr));
}

bool Work::finish(TransferStatus status) {
  if (status != TransferStatus::kDone)
    communicator_->fail(status, label_, peer_, bytes_, communicator_->shared_->transport->peer_bytes(request_), timeout_ms_);
  communicator_->shared_->transport->release(std::exchange(request_, nullptr));
  communicator_->shared_->ring.exit(flight_index_, FlightState::kDone);
  communicator_->count(label_, peer_, bytes_, receives_);
  return true;
}

bool Work::test() {
  if (request_ == nullptr) return true;
  const TransferStatus status = communicator_->shared_->transport->test(request_);
  return status != TransferStatus::kPending && finish(status);
}

void Work::wait() {
  if (request_ == nullptr) return;
  communicator_->shared_->ring.wait_begins(flight_index_);
  finish(communicator_->wait(request_, monotonic_ns() + timeout_ms_ * 1'000'000, timeout_ms_));
}

void Work::expire() {
  if (request_ == nullptr) return;
  communicator_->shared_->ring.wait_begins(flight_index_);
  finish(communicator_->shared_->transport->test(request_));
}

int64_t Communicator::timeout_ms() const { return shared_->options.timeout_ms; }

std::vector<std::unique_ptr<Communicator>> make_local_communicators(int num_ranks, const CommOptions& options) {
  const auto recorder = std::make_shared<FlightRecorder>(FlightRecorder::create(options.flight_path, num_ranks));
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (std::unique_ptr<Transport>& endpoint : make_local_world(num_ranks)) {
    const int rank = endpoint->rank();
    communicators.push_back(std::make_unique<Communicator>(std::move(endpoint), options, recorder, rank));
  }
  return communicators;
}

void run_ranks(std::vector<std::unique_ptr<Transport>> endpoints, const CommOptions& options, const std::function<void(Communicator&)>& body) {
  const int num_ranks = static_cast<int>(endpoints.size());
  auto recorder = std::make_shared<FlightRecorder>(FlightRecorder::create(options.flight_path, num_ranks));
  std::mutex mutex;
  std::exception_ptr first_error;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank)
    threads.emplace_back([&, rank] {
      char name[16];
      fmt::format_to_n(name, sizeof name - 1, "rank{}", rank).out[0] = '\0';
      pthread_setname_np(pthread_self(), name);
      set_floating_point_mode();
      try {
        Communicator communicator(std::move(endpoints[static_cast<size_t>(rank)]), options, recorder, rank);
        try {
          body(communicator);
        } catch (const std::exception& error) {
          {
            std::lock_guard lock(mutex);
            if (!first_error) first_error = std::current_exception();
          }
          const auto* own = dynamic_cast<const Error*>(&error);
          communicator.abort(own != nullptr ? own->code() : ErrorCode::kPeerLost, error.what());
        }
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!first_error) first_error = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  if (first_error) std::rethrow_exception(first_error);
}

void run_local_ranks(int num_ranks, const CommOptions& options, const std::function<void(Communicator&)>& body) {
  run_ranks(make_local_world(num_ranks), options, body);
}

}  // namespace orrery
