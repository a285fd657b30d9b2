#include "parallel/pipeline.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace orrery {
namespace {

constexpr std::array<std::string_view, 7> kNames = {"gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe-v", "2bw"};

bool is_v_shaped(PipelineKind kind) { return kind == PipelineKind::kZbV || kind == PipelineKind::kDualPipeV; }

// One rank's list, with a counter for each (kind, chunk): micro-batches come in ascending order by construction.
class RankSteps {
 public:
  RankSteps(std::vector<ComputeStep>& steps, std::vector<int32_t> stages, int32_t num_micro_batches)
      : steps_(steps), stages_(std::move(stages)), num_micro_batches_(num_micro_batches) {
    for (auto& counts : counts_) counts.assign(stages_.size(), 0);
  }

  int32_t count(ActionKind kind, int32_t chunk) const { return counts_[index(kind)][static_cast<size_t>(chunk)]; }
  bool done(ActionKind kind, int32_t chunk) const { return count(kind, chunk) >= num_micro_batches_; }

  // The next micro-batch of the chunk; nothing once all are through, so that patterns may be written for a full pipeline.
  void next(ActionKind kind, int32_t chunk = 0) {
    int32_t& count = counts_[index(kind)][static_cast<size_t>(chunk)];
    if (count < num_micro_batches_) steps_.push_back({kind, stages_[static_cast<size_t>(chunk)], count});
    ++count;
  }
  void forward(int32_t chunk = 0) { next(ActionKind::kForward, chunk); }
  void backward(int32_t chunk = 0) { next(ActionKind::kBackward, chunk); }
  void input(int32_t chunk = 0) { next(ActionKind::kBackwardInput, chunk); }
  void weight(int32_t chunk = 0) { next(ActionKind::kBackwardWeight, chunk); }

 private:
  static size_t index(ActionKind kind) { return static_cast<size_t>(kind) - static_cast<size_t>(ActionKind::kForward); }
  std::vector<ComputeStep>& steps_;
  std::vector<int32_t> stages_;
  int32_t num_micro_batches_;
  std::array<std::vector<int32_t>, 4> counts_;
};

void gpipe(const PipelineOptions& options, int32_t, RankSteps& steps) {
  for (int32_t i = 0; i < options.num_micro_batches; ++i) steps.forward();
  for (int32_t i = 0; i < options.num_micro_batches; ++i) steps.backward();
}

void one_f_one_b(const PipelineOptions& options, int32_t rank, RankSteps& steps) {
  const int32_t warm_up = std::min(options.num_micro_batches, options.num_ranks - 1 - rank);
  for (int32_t i = 0; i < warm_up; ++i) steps.forward();
  for (int32_t i = 0; i < options.num_micro_batches; ++i) {
    if (!steps.done(ActionKind::kForward, 0)) steps.forward();
    steps.backward();
  }
}

int32_t group_size(const PipelineOptions& options) {
  return std::min(options.num_micro_batches, options.micro_batch_group_size == 0 ? options.num_ranks : options.micro_batch_group_size);
}

// Groups of g micro-batches, the last of what is left, go through chunk 0, then through chunk 1, ...; backward from the last chunk to the first.
void interleaved(const PipelineOptions& options, int32_t rank, RankSteps& steps) {
  const int32_t p = options.num_ranks, v = options.chunks_per_rank, m = options.num_micro_batches, g = group_size(options), total = m * v;
  const auto chunk_of = [&](int32_t step) {
    const int32_t first = step / (g * v) * g;  // micro-batch of the group
    return (step - first * v) / std::min(g, m - first);
  };
  const int32_t warm_up = std::min(total, (p - 1 - rank) * 2 + (v - 1) * g);
  for (int32_t i = 0; i < warm_up; ++i) steps.forward(chunk_of(i));
  for (int32_t i = 0; i < total; ++i) {
    if (warm_up + i < total) steps.forward(chunk_of(warm_up + i));
    steps.backward(v - 1 - chunk_of(i));
  }
}

// The pattern of ZB-V for F = I = W. Chunk 0 flows down the ranks and chunk 1 comes back, so rank 0 holds both ends. A rank forwards
// until its first gradient is there, then repeats F I W of both chunks in turn; at the end the rank + 1 latest W fill the waiting.
void zb_v(const PipelineOptions& options, int32_t rank, RankSteps& steps) {
  const int32_t p = options.num_ranks;
  // A short batch is the pattern of a full one without the micro-batches that are not there.
  const int32_t full = std::max(2 * p - 1, options.num_micro_batches);
  const auto forwards = [&](int32_t chunk) { return steps.count(ActionKind::kForward, chunk); };
  const auto inputs = [&](int32_t chunk) { return steps.count(ActionKind::kBackwardInput, chunk); };
  const auto weights = [&](int32_t chunk) { return steps.count(ActionKind::kBackwardWeight, chunk); };
  const auto input_and_weight = [&](int32_t chunk) {
    steps.input(chunk);
    steps.weight(chunk);
  };
  for (int32_t i = 0; i < 2 * (p - rank) - 1; ++i) steps.forward(0);
  for (int32_t i = 0; i < rank; ++i) {
    steps.forward(1);
    steps.forward(0);
  }
  for (int32_t i = 0; i < p - rank; ++i) {
    steps.forward(1);
    input_and_weight(1);
  }
  while (forwards(1) < forwards(0) || forwards(0) < full) {
    if (forwards(0) < full) steps.forward(0);
    input_and_weight(0);
    steps.forward(1);
    input_and_weight(1);
  }
  for (int32_t i = 0; i < rank; ++i) {
    steps.input(0);
    steps.input(1);
  }
  for (int32_t i = 0; i < p - rank; ++i) {
    steps.input(0);
    steps.weight(0);
  }
  while (weights(1) < inputs(1)) steps.weight(1);
  while (weights(0) < inputs(0)) steps.weight(0);
}

// DualPipeV: in the long middle every rank has a forward of one chunk beside a backward of the other, whose messages hide behind it.
// A backward is split only where its W fills a gap; elsewhere it runs whole.
void dualpipe_v(const PipelineOptions& options, int32_t rank, RankSteps& steps) {
  const int32_t p = options.num_ranks, m = options.num_micro_batches, below = p - rank - 1;
  std::vector<int32_t> waiting;  // chunks whose W is put off, oldest first
  size_t next_waiting = 0;
  const auto put_off = [&](int32_t chunk) {
    steps.input(chunk);
    waiting.push_back(chunk);
  };
  const auto backward = [&](int32_t chunk) {
    steps.input(chunk);
    steps.weight(chunk);
  };
  const auto weight = [&] {
    if (next_waiting < waiting.size()) steps.weight(waiting[next_waiting++]);
  };
  for (int32_t i = 0; i < 2 * below; ++i) steps.forward(0);
  for (int32_t i = 0; i < rank + 1; ++i) {
    steps.forward(0);
    steps.forward(1);
  }
  for (int32_t i = 0; i < below; ++i) {
    put_off(1);
    weight();
    steps.forward(1);
  }
  for (int32_t i = 0; i < m - 2 * p + rank + 1; ++i) {
    steps.forward(0);
    backward(1);
    steps.forward(1);
    backward(0);
  }
  for (int32_t i = 0; i < below; ++i) {
    backward(1);
    steps.forward(1);
    backward(0);
  }
  // The second half of the last backwards is split; ranks of odd number begin with chunk 1.
  bool split = false;
  for (int32_t i = 0; i < rank + 1; ++i) {
    if (i == (rank + 1) / 2 && rank % 2 == 1) split = true;
    split ? put_off(1) : backward(1);
    if (i == (rank + 1) / 2 && rank % 2 == 0) split = true;
    split ? put_off(0) : backward(0);
  }
  for (int32_t i = 0; i < below; ++i) {
    weight();
    put_off(0);
  }
  while (next_waiting < waiting.size()) weight();
}

// 1F1B with W put off as long as memory allows: at most p micro-batches whose W is still to come, on every rank. So the W of the warm-up
// are left for the end, where one between two I fills the wait for the next gradient.
void zb_h1(const PipelineOptions& options, int32_t rank, RankSteps& steps) {
  const int32_t p = options.num_ranks, m = options.num_micro_batches;
  const auto count = [&](ActionKind kind) { return steps.count(kind, 0); };
  for (int32_t i = 0; i < std::min(m, p - rank); ++i) steps.forward();
  while (!steps.done(ActionKind::kBackwardInput, 0)) {
    steps.input();
    if (!steps.done(ActionKind::kForward, 0)) {
      if (count(ActionKind::kForward) - count(ActionKind::kBackwardWeight) >= p) steps.weight();
      steps.forward();
    } else if (!steps.done(ActionKind::kBackwardInput, 0)) {
      steps.weight();
    }
  }
  while (!steps.done(ActionKind::kBackwardWeight, 0)) steps.weight();
}

// 2BW cuts the flow of 1F1B over all steps where rank 0 has run one forward behind the last backward of a step, which hides the exchange that the
// update waits for. In times of F = 1 and B = 2, B of micro-batch i ends on rank r at 3 i + 2 (p - 1 - r), so that forward at 2 (p - 2), counted from
// the next step's micro-batch 0; what every rank has done by then is carried.
struct Cut {
  int32_t forwards = 0, backwards = 0;
};
Cut cut_of(int32_t num_ranks, int32_t rank) {
  Cut cut;
  cut.backwards = (2 * rank + 1) / 3;
  cut.forwards = cut.backwards + num_ranks - 1 - rank + (3 * cut.backwards <= 2 * rank ? 1 : 0);
  return cut;
}

void two_bw(const PipelineOptions& options, int32_t rank, std::vector<ComputeStep>& steps) {
  const int32_t m = options.num_micro_batches, ahead = options.num_ranks - 1 - rank;
  const Cut cut = cut_of(options.num_ranks, rank);
  for (int32_t forward = cut.forwards, backward = cut.backwards; forward < m + cut.forwards || backward < m + cut.backwards;) {
    if (forward <= backward + ahead)
      steps.push_back({ActionKind::kForward, rank, forward++});
    else
      steps.push_back({ActionKind::kBackward, rank, backward++});
  }
}

void check_options(const PipelineOptions& options) {
  const std::string_view name = pipeline_name(options.kind);
  const int32_t p = options.num_ranks, m = options.num_micro_batches, v = options.chunks_per_rank;
  ORRERY_CHECK(p >= 1 && m >= 1 && v >= 1, "p={} m={} v={}", p, m, v);
  const auto& [schedule, ranks, group] = options.terms;
  const int32_t wanted_chunks = is_v_shaped(options.kind) ? 2 : 1;
  if (options.kind != PipelineKind::kInterleaved && v != wanted_chunks)
    throw Error(ErrorCode::kInvalidConfig, "{} stages per rank with {} \"{}\": it has {}; use \"interleaved\" for more", v, schedule, name, wanted_chunks);
  const int32_t wanted_group = options.micro_batch_group_size;
  if (wanted_group != 0 && (options.kind != PipelineKind::kInterleaved || wanted_group < p))
    throw Error(ErrorCode::kInvalidConfig, "{} = {} with {} \"{}\" on {} ranks: it is of \"interleaved\", and at least {} {}", group, wanted_group, schedule, name, p, ranks, p);
  // The first backward of a group waits for its first micro-batch to have come round.
  if (const int32_t rest = m % group_size(options); options.kind == PipelineKind::kInterleaved && (m < p || (rest != 0 && rest < p)))
    throw Error(ErrorCode::kInvalidConfig, "{} \"interleaved\" sends groups of {} micro-batches and a last one of at least {} {}; {} micro-batches leave {}, use {}, or another {}", schedule,
                group_size(options), ranks, p, m, rest, m < p ? p : m + p - rest, group);
  if (options.kind == PipelineKind::kDualPipeV && m < 2 * p)
    throw Error(ErrorCode::kInvalidConfig, "{} \"dualpipe-v\" needs at least 2 x {} {} micro-batches, not {}; use \"zb-v\"", schedule, ranks, p, m);
  if (options.kind == PipelineKind::k2Bw && m < p)
    throw Error(ErrorCode::kInvalidConfig, "{} \"2bw\" keeps two weight versions only with at least {} {} micro-batches, not {}; use \"1f1b\"", schedule, ranks, p, m);
  ORRERY_CHECK(!options.carries || options.kind == PipelineKind::k2Bw, "steps of {} run into each other", name);
}

}  // namespace

std::string_view pipeline_name(PipelineKind kind) { return kNames[static_cast<size_t>(kind)]; }

PipelineKind parse_pipeline_kind(std::string_view name, const PipelineTerms& terms) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) throw Error(ErrorCode::kInvalidConfig, "{} \"{}\": wanted one of {}", terms.schedule, name, fmt::join(kNames, ", "));
  return static_cast<PipelineKind>(found - kNames.begin());
}

PipelineOrder pipeline_order(const PipelineOptions& options) {
  check_options(options);
  const int32_t p = options.num_ranks;
  PipelineOrder order;
  order.num_micro_batches = options.num_micro_batches;
  order.carries = options.carries;
  order.steps.resize(static_cast<size_t>(p));
  for (int32_t stage = 0; stage < p * options.chunks_per_rank; ++stage)
    order.rank_of_stage.push_back(is_v_shaped(options.kind) && stage >= p ? 2 * p - 1 - stage : stage % p);
  for (int32_t rank = 0; rank < p; ++rank) {
    std::vector<int32_t> stages;
    for (int32_t stage = 0; stage < order.num_stages(); ++stage)
      if (order.rank_of_stage[static_cast<size_t>(stage)] == rank) stages.push_back(stage);
    RankSteps steps(order.steps[static_cast<size_t>(rank)], stages, options.num_micro_batches);
    switch (options.kind) {
      case PipelineKind::kGPipe: gpipe(options, rank, steps); break;
      case PipelineKind::k1F1B: one_f_one_b(options, rank, steps); break;
      case PipelineKind::kInterleaved: interleaved(options, rank, steps); break;
      case PipelineKind::kZbV: zb_v(options, rank, steps); break;
      case PipelineKind::kDualPipeV: dualpipe_v(options, rank, steps); break;
      case PipelineKind::k2Bw: options.carries ? two_bw(options, rank, order.steps[static_cast<size_t>(rank)]) : one_f_one_b(options, rank, steps); break;
      case PipelineKind::kZbH1: zb_h1(options, rank, steps); break;
    }
  }
  return order;
}

int32_t peak_activations(const PipelineOptions& options, int32_t rank) {
  const int32_t p = options.num_ranks, v = options.chunks_per_rank, m = options.num_micro_batches;
  switch (options.kind) {
    case PipelineKind::kGPipe: return m;
    case PipelineKind::k1F1B:
    case PipelineKind::k2Bw: return std::min(m, p - rank);
    case PipelineKind::kInterleaved: return std::min(v * m, (p - 1 - rank) * 2 + (v - 1) * group_size(options) + 1);
    case PipelineKind::kZbH1: return std::min(m, p);
    case PipelineKind::kZbV: return std::min(2 * m, 2 * p);
    case PipelineKind::kDualPipeV: return 2 * p + 1;
  }
  return 0;
}

}  // namespace orrery
