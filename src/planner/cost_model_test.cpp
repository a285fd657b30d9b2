// The closed-form cost model: what must hold whatever the constants are (more work takes longer, a faster link never hurts, the bubble
// follows its formula), the reader's complaints about malformed tables, and that no row is priced by constants fitted on it.
#include "planner/cost_model.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "planner/cost_constants.h"
#include "planner/validate.h"

namespace orrery {
namespace {

TrainingJob job_13b() {
  TrainingJob job;
  job.model = {.num_layers = 40, .hidden = 5120, .num_heads = 40, .num_kv_heads = 40, .head_dim = 128, .ffn_hidden = 13824, .vocab = 32000, .seq_len = 4096, .gated = true};
  job.layout = {.tp = 2, .pp = 4, .dp = 8, .micro_batch = 1, .num_micro_batches = 16, .sequence_parallel = true, .zero = ZeroStage::kOptimizer};
  job.cluster = {.device = find_device("H100"), .num_devices = 64, .domain_size = 8, .link_bytes_per_second = 450e9, .network_bytes_per_second = 50e9};
  return job;
}

double seconds(const TrainingJob& job) { return predict_step(job, default_constants()).seconds; }

TEST(CostModel, ParametersOfKnownModels) {
  ModelShape llama = {.num_layers = 80, .hidden = 8192, .num_heads = 64, .num_kv_heads = 8, .head_dim = 128, .ffn_hidden = 28672, .vocab = 128256, .seq_len = 8192, .gated = true};
  EXPECT_NEAR(count_parameters(llama).total, 70.55e9, 0.01e9);  // norms are not counted
  ModelShape gpt3 = {.num_layers = 96, .hidden = 12288, .num_heads = 96, .num_kv_heads = 96, .head_dim = 128, .ffn_hidden = 49152, .vocab = 51200, .seq_len = 2048, .tied_head = true};
  EXPECT_NEAR(count_parameters(gpt3).total, 174.6e9, 0.2e9);
}

TEST(CostModel, MoreWorkTakesLonger) {
  const TrainingJob base = job_13b();
  for (double ModelShape::*member : {&ModelShape::num_layers, &ModelShape::hidden, &ModelShape::ffn_hidden, &ModelShape::vocab}) {
    TrainingJob more = base;
    more.model.*member *= 2;
    EXPECT_GT(seconds(more), seconds(base));
  }
  TrainingJob more = base;
  more.layout.recompute = RecomputeKind::kFull;
  EXPECT_GT(seconds(more), seconds(base));
  more = base;
  more.layout.num_micro_batches *= 2;
  EXPECT_GT(seconds(more), seconds(base));
}

TEST(CostModel, SlowerLinksNeverHelp) {
  const TrainingJob base = job_13b();
  for (double JobCluster::*member : {&JobCluster::link_bytes_per_second, &JobCluster::network_bytes_per_second}) {
    TrainingJob slow = base;
    slow.cluster.*member /= 4;
    EXPECT_GT(seconds(slow), seconds(base));
  }
}

// Ulysses: what leaves a rank is counted by hand: of q, k, v and the output, cut among the tensor ranks, all but the share that stays, forward and backward,
// and once more where the forward is repeated; inside a domain over its links, beyond it over the network. Ring's price depends on neither method's field.
TEST(CostModel, UlyssesIsItsAllToAlls) {
  TrainingJob job = job_13b();
  const double tp = 2, heads = 40, kv_heads = 20, head_dim = 128, tokens = 4096;
  job.model.num_kv_heads = kv_heads;
  job.layout.pp = 1, job.layout.dp = 1, job.layout.num_micro_batches = 1, job.layout.zero = ZeroStage::kNone;
  using enum Constant;
  const CostConstants& k = default_constants();
  const auto communication = [&](double cp, ContextMethod method, double domain, RecomputeKind recompute) {
    TrainingJob of = job;
    of.layout.cp = cp, of.layout.context_method = method, of.layout.recompute = recompute, of.cluster.domain_size = domain;
    of.model.seq_len = tokens * cp;  // so that a rank's tokens, and with them all other messages, are the same
    return predict_step(of, k);
  };
  const double sent = tokens * 2 * (2 * heads + 2 * kv_heads) * head_dim / tp;
  for (const RecomputeKind recompute : {RecomputeKind::kNone, RecomputeKind::kFull})
    for (const double cp : {2.0, 4.0, 10.0}) {
      const double passes = recompute == RecomputeKind::kFull ? 3 : 2;
      for (const double domain : {8.0, 64.0}) {
        const double inside = std::min(cp, domain / tp);
        const double moved = sent * ((inside - 1) / cp / (450e9 * k[kLinkShare]) + (cp - inside) / cp / (50e9 * k[kNetworkShare]));
        const double waits = 4 * (inside < cp ? k[kNetworkLatency] : k[kHopModern]);
        // Less the layers' other messages: those of one context rank. What is left beside is the gradients' reduction over context ranks, equal for both methods.
        const double ulysses = communication(cp, ContextMethod::kUlysses, domain, recompute).communication_seconds;
        const double ring = communication(cp, ContextMethod::kRing, domain, recompute).communication_seconds;
        const double one = communication(1, ContextMethod::kRing, domain, recompute).communication_seconds;
        TrainingJob reduced = job;  // the reduction alone: as many data-parallel ranks in their place
        reduced.layout.dp = cp, reduced.layout.recompute = recompute, reduced.cluster.domain_size = domain;
        const double reduction = predict_step(reduced, k).communication_seconds - one;
        EXPECT_NEAR(ulysses - one - reduction, 40 * passes * (moved + waits), 1e-9 * ulysses) << cp << " of " << domain;
        EXPECT_GT(ring, one);
      }
    }
}

TEST(CostModel, BubbleIsTheFormulas) {
  // One micro-batch more adds a slot; the fill is (p - 1) / v slots of the mean stage.
  TrainingJob job = job_13b();
  job.model.vocab = 1;  // no head, so that every stage is the same
  const StepCost cost = predict_step(job, default_constants());
  TrainingJob longer = job;
  longer.layout.num_micro_batches += 1;
  const double slot = seconds(longer) - cost.seconds;
  EXPECT_NEAR(cost.bubble_seconds, 3 * slot, 1e-3 * cost.bubble_seconds);
  job.layout.virtual_stages = 5;
  EXPECT_LT(predict_step(job, default_constants()).bubble_seconds, cost.bubble_seconds / 4);
}

TEST(CostModel, MemoryFallsWithSharding) {
  TrainingJob job = job_13b();
  const double sharded = predict_memory(job).total();
  job.layout.zero = ZeroStage::kNone;
  EXPECT_GT(predict_memory(job).optimizer, 7.9 * (predict_memory(job_13b()).optimizer));
  EXPECT_GT(predict_memory(job).total(), sharded);
}

TEST(CostModel, TraitsOfDevicesAreSane) {
  for (const AcceleratorSpec& device : device_catalogue()) {
    EXPECT_EQ(find_device(device.name), &device) << device.name;
    EXPECT_GT(device.bf16_flops, 0);
    EXPECT_GT(device.memory_bytes_per_second, 0);
    EXPECT_GT(device.power_watts, device.idle_watts);
    EXPECT_FALSE(device.source.empty());
  }
}

const std::string kHeader =
    "source,table_or_section,system,model_name,params_B,layers,hidden,heads,kv_heads,ffn_hidden,vocab,seq_len,num_experts,top_k,gpu,num_gpus,gpus_per_node,tp,pp,vpp_interleave,dp,"
    "cp,ep,micro_batch,global_batch,precision,zero_stage_or_fsdp,activation_recompute,sequence_parallel,measured_metric,measured_value,notes\n";

TEST(PublishedRuns, CompleteRow) {
  const auto runs = parse_published_runs(kHeader + "S,T,NeMo,\"LLAMA3, 8B\",8,32,4096,32,8,14336,128256,8192,,,H100,8,8,1,1,,8,1,,1,128,FP8,,,,tokens_per_s_per_gpu,12000,\n", "t.csv");
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].skipped, "");
  EXPECT_DOUBLE_EQ(runs[0].step_seconds, 128.0 * 8192 / (12000 * 8));
  EXPECT_EQ(runs[0].job.layout.num_micro_batches, 16);
}

TEST(PublishedRuns, IncompleteRowsSayWhy) {
  auto reason = [](const std::string& row) { return parse_published_runs(kHeader + row + "\n", "t.csv")[0].skipped; };
  EXPECT_NE(reason("S,T,NeMo,X,,,,,,,,,,,H100,8,8,1,1,,8,1,,1,128,FP8,,,,step_time_s,1,").find("hidden size"), std::string::npos);
  EXPECT_NE(reason("S,T,NeMo,X,,32,4096,32,8,,,4096,,,Abacus,8,8,1,1,,8,1,,1,128,FP8,,,,step_time_s,1,").find("Abacus"), std::string::npos);
  EXPECT_NE(reason("S,T,NeMo,X,,32,4096,32,8,,,4096,,,H100,8,8,2,2,,8,1,,1,128,FP8,,,,step_time_s,1,").find("number of devices"), std::string::npos);
  EXPECT_NE(reason("S,T,NeMo,X,,32,4096,32,8,,,4096,,,H100,8,8,1,1,,8,1,,1,128,FP8,,,,step_time_s,nan,").find("positive"), std::string::npos);
  EXPECT_NE(reason("S,T,NeMo,X,,32,4096,32,8,,,4096,,,H100,8,8,1,1,,8,1,,4,8,FP8,,,,step_time_s,1,").find("global batch"), std::string::npos);
}

TEST(PublishedRuns, MalformedTablesAreRefused) {
  EXPECT_THROW(parse_published_runs("", "t.csv"), Error);
  EXPECT_THROW(parse_published_runs("a,b\n1,2\n", "t.csv"), Error);
  EXPECT_THROW(parse_published_runs(kHeader + "only,three,fields\n", "t.csv"), Error);
  EXPECT_THROW(load_published_runs("/nonexistent.csv"), Error);
}

TEST(Validate, ASourceIsNeverPricedByConstantsThatSawIt) {
  for (const SourceConstants& entry : shipped_constants()) {
    if (entry.source.empty()) continue;
    EXPECT_EQ(&frozen_constants(entry.source), &entry.constants);
    EXPECT_NE(entry.constants.value, default_constants().value) << entry.source;
  }
}

TEST(Validate, FoldsDoNotLeak) {
  // Two layouts of one source: each is calibrated on the other alone, so a figure ten times off moves only the other's prediction.
  const std::string a = "S,T,NeMo,X,,32,4096,32,8,14336,32000,4096,,,H100,8,8,1,1,,8,1,,1,128,bf16,,,,step_time_s,", b = "S,T,NeMo,X,,32,4096,32,8,14336,32000,4096,,,H100,8,8,2,1,,4,1,,1,128,bf16,,,,step_time_s,";
  auto predictions = [&](const std::string& first) {
    const ValidateReport report = validate(parse_published_runs(kHeader + a + first + ",\n" + b + "9,\n", "t.csv"));
    const auto& scores = report.modes[1].scores;
    return std::pair(scores[0].predicted, scores[1].predicted);
  };
  const auto base = predictions("8"), moved = predictions("9.5");
  EXPECT_EQ(base.first, moved.first);
  EXPECT_NE(base.second, moved.second);
}

// As many as the binary counter of parallel/lanes.h has at its peak: four for eight lanes of one rank in micro-batches of a part, one where each rank has one.
TEST(Memory, LanesHaveAccumulatorsOfTheirOwn) {
  TrainingJob job;
  job.model = {.num_layers = 4, .hidden = 64, .num_heads = 4, .num_kv_heads = 4, .head_dim = 16, .ffn_hidden = 256, .vocab = 1000, .seq_len = 128};
  job.layout.num_micro_batches = 64;
  const double one = predict_memory(job).gradients;
  ASSERT_GT(one, 0);
  job.lanes = 8;
  EXPECT_EQ(predict_memory(job).gradients, 4 * one);
  job.layout.num_micro_batches = 8;
  EXPECT_EQ(predict_memory(job).gradients, 3 * one);
  job.layout.dp = 8, job.layout.num_micro_batches = 64;
  EXPECT_EQ(predict_memory(job).gradients, one);
  job.layout.dp = 1, job.layout.zero = ZeroStage::kGradients;
  EXPECT_EQ(predict_memory(job).gradients, one);
}

}  // namespace
}  // namespace orrery
