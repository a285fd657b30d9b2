// How much of the communication of two ranks hides behind their compute: the step time of layouts beside that of the same schedule without
// communication (every transfer is done when it is posted) and without compute (no op runs). Run over a link that is slow enough to matter,
// two processes in two network namespaces: bench/overlap_netns.sh.
//   overlap_bench zero3|pipeline|few-micro-batches [--rounds 3] [--steps 3]       under mpirun -n 2
// Columns   step, compute alone, communication alone: milliseconds, the lower quartile of all rounds' steps, rounds going through all rows in turn
//           processor  milliseconds of rank 0's processor time in a step of communication alone: what compute cannot have
//           hidden   (compute + communication - step) / the shorter of the two
//           gain     how much shorter the step is than that of the first row, the plain one
#include <fmt/format.h>
#include <time.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "comm/communicator.h"
#include "comm/discovery.h"
#include "rank_steps.h"

namespace orrery::bench {
namespace {

// One rank's transport, which for a while pretends: what is posted then is done at once and no byte moves.
class MutedTransport final : public Transport {
 public:
  explicit MutedTransport(std::unique_ptr<Transport> transport) : transport_(std::move(transport)) {}
  void mute(bool muted) { muted_ = muted; }

  std::string_view name() const override { return transport_->name(); }
  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }
  bool borrows_in_place() const override { return transport_->borrows_in_place(); }
  int64_t tag_limit() const override { return transport_->tag_limit(); }
  Request* post_send(std::span<const std::byte> data, int peer, int64_t tag) override { return muted_ ? done(data.data()) : transport_->post_send(data, peer, tag); }
  Request* post_recv(std::span<std::byte> data, int peer, int64_t tag) override { return muted_ ? done(data.data()) : transport_->post_recv(data, peer, tag); }
  Request* post_borrow(int64_t bytes, std::byte* scratch, int peer, int64_t tag) override {
    return muted_ ? done(scratch) : transport_->post_borrow(bytes, scratch, peer, tag);
  }
  TransferStatus test(Request* request) override { return is_muted(request) ? TransferStatus::kDone : transport_->test(request); }
  TransferStatus wait(Request* request, int64_t deadline_ns) override { return is_muted(request) ? TransferStatus::kDone : transport_->wait(request, deadline_ns); }
  const std::byte* borrowed(const Request* request) const override { return is_muted(request) ? static_cast<const Muted*>(request)->data : transport_->borrowed(request); }
  int64_t peer_bytes(const Request* request) const override { return is_muted(request) ? -1 : transport_->peer_bytes(request); }
  void release(Request* request) override {
    if (!is_muted(request)) transport_->release(request);
  }
  CommFailure& failure() override { return transport_->failure(); }
  int64_t process_id(int rank) const override { return transport_->process_id(rank); }
  int64_t num_allocations() const override { return transport_->num_allocations(); }

 private:
  struct Muted : Request {
    const std::byte* data = nullptr;
  };
  // More than are posted at one time; the oldest is used again.
  Request* done(const std::byte* data) {
    Muted& request = requests_[next_.fetch_add(1) % requests_.size()];
    request.data = data;
    return &request;
  }
  bool is_muted(const Request* request) const {
    return request >= requests_.data() && request < requests_.data() + requests_.size();
  }

  std::unique_ptr<Transport> transport_;
  std::atomic<bool> muted_{false};
  std::atomic<size_t> next_{0};
  std::array<Muted, 8192> requests_;
};

struct Row {
  std::string name;
  std::vector<Plan> plans;
  std::vector<double> step, compute, communication, processor;
};

double process_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Row zero3_row(const TestModel& model, int prefetch, bool reshard) {
  TrainingPlanOptions options = plan_options(model);
  options.micro_batch_size = model.batch / 2;
  options.data = {.size = 2, .zero_stage = 3, .reshard_after_forward = reshard, .prefetch = prefetch};
  Row row;
  row.name = fmt::format("prefetch {}{}", prefetch, reshard ? "" : ", not resharded");
  row.plans = make_training_plans(options, workspace_traits(default_engine_options(1), model.tokens));
  return row;
}

Row pipeline_row(const TestModel& model, PipelineKind kind, int64_t virtual_stages, int64_t group_size = 0) {
  TrainingPlanOptions options = plan_options(model);
  // A tied matrix on two ranks would send its gradient and its weight once a step, more than all micro-batches together.
  options.model.tie_embeddings = false;
  resolve(options.model);
  options.micro_batch_size = 1;
  if (model.batch < options.lanes) options.lanes = model.batch;
  options.pipeline.size = 2, options.pipeline.kind = kind, options.pipeline.virtual_stages = virtual_stages, options.pipeline.micro_batch_group_size = group_size;
  options.optimizer.gradient_delay = kind == PipelineKind::k2Bw ? 1 : 0;
  Row row;
  row.name = fmt::format("{}{}{}", pipeline_name(kind), virtual_stages > 2 ? fmt::format(", {} stages a rank", virtual_stages) : "", group_size > 0 ? fmt::format(", groups of {}", group_size) : "");
  row.plans = make_training_plans(options, workspace_traits(default_engine_options(1), model.tokens));
  return row;
}

std::vector<Row> rows_of(const std::string& family) {
  std::vector<Row> rows;
  if (family == "zero3") {
    constexpr TestModel kModel{"llama-11m", ModelFamily::kLlama, 6, 384, 6, 2, 1024, 4096, 256, 8};
    for (const int prefetch : {0, 1, 2}) rows.push_back(zero3_row(kModel, prefetch, true));
    rows.push_back(zero3_row(kModel, 1, false));
  } else if (family == "few-micro-batches") {
    // More layers than ranks, and as few micro-batches as ranks: a rank waits for half as long as it works.
    constexpr TestModel kModel{"llama-16-layers", ModelFamily::kLlama, 16, 384, 6, 2, 1024, 2048, 256, 2};
    rows.push_back(pipeline_row(kModel, PipelineKind::k1F1B, 1));
    rows.push_back(pipeline_row(kModel, PipelineKind::kInterleaved, 2));
    rows.push_back(pipeline_row(kModel, PipelineKind::kInterleaved, 4));
    rows.push_back(pipeline_row(kModel, PipelineKind::kZbV, 2));
    rows.push_back(pipeline_row(kModel, PipelineKind::k2Bw, 1));
  } else {
    constexpr TestModel kModel{"llama-12m", ModelFamily::kLlama, 8, 384, 6, 2, 1024, 2048, 512, 4};
    rows.push_back(pipeline_row(kModel, PipelineKind::k1F1B, 1));
    rows.push_back(pipeline_row(kModel, PipelineKind::kInterleaved, 2));
    rows.push_back(pipeline_row(kModel, PipelineKind::kInterleaved, 2, 4));
    rows.push_back(pipeline_row(kModel, PipelineKind::kZbH1, 1));
    rows.push_back(pipeline_row(kModel, PipelineKind::kZbV, 2));
    rows.push_back(pipeline_row(kModel, PipelineKind::k2Bw, 1));
  }
  return rows;
}

void run(const std::string& family, int num_rounds, int num_steps) {
  auto transport = std::make_unique<MutedTransport>(make_process_transport(discover_ranks(0)));
  MutedTransport& link = *transport;
  Communicator world(std::move(transport), {});
  if (world.size() != 2) throw Error(ErrorCode::kInvalidArgument, "{} ranks: wanted 2, under mpirun -n 2", world.size());
  std::vector<Row> rows = rows_of(family);
  const auto together = [&] {
    link.mute(false);
    world.barrier("BAR");
  };
  const auto measure = [&](Row& row, bool computes, bool communicates, std::vector<double>& seconds) {
    EngineOptions options = default_engine_options(1);
    options.pin_threads = false;
    options.computes = computes;
    TrainingEngine engine(row.plans[static_cast<size_t>(world.rank())], options, &world);
    const double before = process_seconds();
    const std::vector<double> all = timed_steps(engine, num_steps, [&] {
      together();
      link.mute(!communicates);
    });
    seconds.insert(seconds.end(), all.begin(), all.end());
    if (!computes) row.processor.push_back((process_seconds() - before) / (num_steps + 1));
    together();
  };
  for (int round = 0; round < num_rounds; ++round)
    for (Row& row : rows) {
      measure(row, true, true, row.step);
      measure(row, true, false, row.compute);
      measure(row, false, true, row.communication);
    }
  if (world.rank() != 0) return;
  fmt::print("| {:<26} | step | compute | communication | processor | hidden | gain |\n|---|---|---|---|---|---|---|\n", family);
  for (const Row& row : rows) {
    const double step = lower_quartile(row.step), compute = lower_quartile(row.compute), communication = lower_quartile(row.communication);
    const double plain = lower_quartile(rows.front().step);
    fmt::print("| {:<26} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.0f} % | {} |\n", row.name, 1e3 * step, 1e3 * compute, 1e3 * communication, 1e3 * lower_quartile(row.processor),
               100 * (compute + communication - step) / std::min(compute, communication), &row == &rows.front() ? "" : fmt::format("{:+.1f} %", 100 * (1 - step / plain)));
  }
}

}  // namespace
}  // namespace orrery::bench

int main(int argc, char** argv) {
  int num_rounds = 3, num_steps = 3;
  std::string family;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--rounds" && i + 1 < argc) num_rounds = std::atoi(argv[++i]);
    else if (argument == "--steps" && i + 1 < argc) num_steps = std::atoi(argv[++i]);
    else family = argument;
  }
  if (family != "zero3" && family != "pipeline" && family != "few-micro-batches")
    return fmt::print(stderr, "usage: mpirun -n 2 overlap_bench zero3|pipeline|few-micro-batches [--rounds N] [--steps N]\n"), 2;
  try {
    orrery::bench::run(family, num_rounds, num_steps);
  } catch (const orrery::Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return exit_status(error.code());
  }
  return 0;
}
