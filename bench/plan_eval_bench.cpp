// How many plans a second one core prices in closed form (a million fixed plans of a 175 B model), and how long the full search for a
// 1-trillion-parameter model on 16,384 devices and a re-plan after losing two hosts take.
#include <fmt/format.h>

#include <chrono>

#include "planner/search.h"

using namespace orrery;

namespace {
double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
}  // namespace

int main() {
  TrainingJob job;
  job.model = {.num_layers = 96, .hidden = 12288, .num_heads = 96, .num_kv_heads = 96, .head_dim = 128, .ffn_hidden = 49152, .vocab = 51200, .seq_len = 2048};
  job.cluster = {.device = find_device("H100"), .num_devices = 512, .domain_size = 8, .link_bytes_per_second = 450e9, .network_bytes_per_second = 50e9};
  job.layout.zero = ZeroStage::kOptimizer;
  constexpr int kPlans = 1000000;
  double sum = 0;
  const double begin = now();
  for (int i = 0; i < kPlans; ++i) {
    JobLayout& l = job.layout;
    l.tp = 1 << (i & 3), l.pp = 1 << ((i >> 2) & 3), l.dp = 512 / (l.tp * l.pp), l.micro_batch = 1 << ((i >> 4) & 1), l.num_micro_batches = 1 + (i >> 5) % 64;
    l.recompute = (i >> 11) & 1 ? RecomputeKind::kFull : RecomputeKind::kNone;
    l.sequence_parallel = (i >> 12) & 1 && l.tp > 1;
    sum += predict_step(job, default_constants()).seconds;
  }
  const double seconds = now() - begin;
  fmt::print("closed form: {:.0f} plans/s on one core (mean {:.2f} s)\n", kPlans / seconds, sum / kPlans);

  SearchRequest request;
  request.model = {.num_layers = 128, .hidden = 25600, .num_heads = 160, .num_kv_heads = 160, .head_dim = 160, .ffn_hidden = 102400, .vocab = 51200, .seq_len = 2048};
  request.global_batch = 4096 * 4;
  request.total_tokens = 1e12;
  request.cluster = parse_cluster("[devices]\nkind = \"H100\"\ncount = 16384\n", "bench");
  SearchResult result;
  double start = now();
  search_layouts(request, result);
  fmt::print("search, {:.2f} T parameters on 16384 devices: {:.2f} s, {} layouts priced\n", count_parameters(request.model).total / 1e12, now() - start, result.considered);
  fmt::print("{}", search_to_text(request, result, true));
  start = now();
  replan_after_loss(request, 0, 2, result);
  fmt::print("re-plan after losing 2 hosts: {:.2f} s, {} devices used\n", now() - start, result.best.front().job.cluster.num_devices);
}
