#include "planner/published_runs.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>

#include "base/error.h"
#include "planner/layout_residuals.h"

namespace orrery {
namespace {

constexpr double kGiB = 1073741824.0;

// RFC 4180: fields in double quotes may hold commas, quotes (doubled) and line ends.
std::vector<std::pair<int, std::vector<std::string>>> read_csv(std::string_view text) {
  std::vector<std::pair<int, std::vector<std::string>>> rows;
  std::vector<std::string> row(1);
  int line = 1, row_line = 1;
  bool quoted = false, any = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') ++line;
    if (quoted) {
      if (c != '"') row.back() += c;
      else if (i + 1 < text.size() && text[i + 1] == '"') row.back() += '"', ++i;
      else quoted = false;
      continue;
    }
    if (c == '"') quoted = any = true;
    else if (c == ',') row.emplace_back(), any = true;
    else if (c == '\n') {
      if (any) rows.emplace_back(row_line, std::move(row));
      row.assign(1, {});
      any = false;
      row_line = line;
    } else if (c != '\r') row.back() += c, any = true;
  }
  if (any) rows.emplace_back(row_line, std::move(row));
  return rows;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}
bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

constexpr std::array kColumns = {"source", "system", "model_name", "params_B", "layers", "hidden", "heads", "kv_heads", "ffn_hidden", "vocab", "seq_len",
                                 "num_experts", "top_k", "gpu", "num_gpus", "gpus_per_node", "tp", "pp", "vpp_interleave", "dp", "cp", "ep", "micro_batch",
                                 "global_batch", "precision", "zero_stage_or_fsdp", "activation_recompute", "sequence_parallel", "measured_metric",
                                 "measured_value", "notes"};

struct Row {
  const std::map<std::string, size_t, std::less<>>& columns;
  const std::vector<std::string>& fields;
  const std::string& text(std::string_view name) const { return fields[columns.find(name)->second]; }
  /// 0 when empty or not a number.
  double number(std::string_view name) const {
    const std::string& field = text(name);
    double value = 0;
    const auto result = std::from_chars(field.data(), field.data() + field.size(), value);
    return result.ec == std::errc() && std::isfinite(value) && value > 0 ? value : 0;
  }
};

// Published architectures, for rows that print only a name. layers, hidden, heads, kv heads, feed-forward, vocabulary, length, gated.
struct KnownModel {
  std::string_view name;
  double layers, hidden, heads, kv_heads, ffn, vocab, seq_len;
  bool gated;
};
constexpr std::array kKnownModels = {
    KnownModel{"gpt 22b", 48, 6144, 64, 64, 24576, 51200, 2048, false},      KnownModel{"gpt 175b", 96, 12288, 96, 96, 49152, 51200, 2048, false},
    KnownModel{"gpt 530b", 105, 20480, 128, 128, 81920, 51200, 2048, false}, KnownModel{"gpt 1t", 128, 25600, 160, 160, 102400, 51200, 2048, false},
    KnownModel{"gpt-3 175b", 96, 12288, 96, 96, 49152, 51200, 2048, false},  KnownModel{"mt-nlg", 105, 20480, 128, 128, 81920, 51200, 2048, false},
    KnownModel{"llama2-7b", 32, 4096, 32, 32, 11008, 32000, 4096, true},     KnownModel{"llama2-13b", 40, 5120, 40, 40, 13824, 32000, 4096, true},
    KnownModel{"llama2-70b", 80, 8192, 64, 8, 28672, 32000, 4096, true},     KnownModel{"llama3-8b", 32, 4096, 32, 8, 14336, 128256, 8192, true},
    KnownModel{"llama3-70b", 80, 8192, 64, 8, 28672, 128256, 8192, true},    KnownModel{"llama3-405b", 126, 16384, 128, 8, 53248, 128256, 8192, true},
    KnownModel{"mixtral 8x7b", 32, 4096, 32, 8, 14336, 32000, 4096, true},   KnownModel{"mixtral 8x22b", 56, 6144, 48, 8, 16384, 32768, 4096, true},
    KnownModel{"nemotron-340b", 96, 18432, 96, 8, 73728, 256000, 4096, false}, KnownModel{"nemotron4 15b", 32, 6144, 48, 8, 24576, 256000, 4096, false},
};

std::string squeeze(std::string_view text) {
  std::string out;
  for (const char c : lower(text))
    if (std::isalnum(static_cast<unsigned char>(c))) out += c;
  for (const std::string_view drop : {"31", "meta"})
    if (const size_t at = out.find("llama" + std::string(drop)); at != std::string::npos && drop == "31") out.erase(at + 6, 1);
  return out;
}

const KnownModel* known_model(const std::string& name) {
  const std::string wanted = squeeze(name);
  for (const KnownModel& model : kKnownModels)
    if (wanted.starts_with(squeeze(model.name))) return &model;
  return nullptr;
}

ModelShape read_model(const Row& row, std::string& skipped) {
  const std::string name = lower(row.text("model_name"));
  const KnownModel* known = known_model(name);
  auto field = [&](std::string_view column, double KnownModel::*member) {
    const double given = row.number(column);
    return given > 0 ? given : known ? known->*member : 0;
  };
  ModelShape m;
  m.num_layers = field("layers", &KnownModel::layers), m.hidden = field("hidden", &KnownModel::hidden);
  m.num_heads = field("heads", &KnownModel::heads), m.num_kv_heads = field("kv_heads", &KnownModel::kv_heads);
  m.ffn_hidden = field("ffn_hidden", &KnownModel::ffn), m.vocab = field("vocab", &KnownModel::vocab), m.seq_len = field("seq_len", &KnownModel::seq_len);
  m.num_experts = row.number("num_experts"), m.top_k = row.number("top_k");
  const bool plain = has(name, "gpt") || has(name, "mpt") || has(name, "bloom") || has(name, "megatron") || has(name, "nemotron") || has(name, "opt-");
  m.gated = has(name, "oss") || !plain;
  if (m.hidden <= 0) return skipped = "the model's hidden size is not stated", m;
  if (m.seq_len <= 0) return skipped = "the sequence length is not stated", m;
  if (m.num_layers <= 0) {
    // From the number of parameters: 12 h^2 a layer, plus the vocabulary.
    const double params = row.number("params_B") * 1e9;
    if (params <= 0) return skipped = "neither layers nor parameters are stated", m;
    m.num_layers = std::max(1.0, std::round((params - m.vocab * m.hidden) / (12 * m.hidden * m.hidden)));
  }
  // Heads of 128, the usual width, unless that leaves a fraction.
  if (m.num_heads <= 0) m.num_heads = m.hidden >= 12288 ? 64 : std::max(1.0, std::round(m.hidden / 128));
  if (has(name, "bloom") && row.number("heads") <= 0 && (m.hidden == 14400 || m.hidden == 13824)) m.num_heads = 96;
  if (m.num_kv_heads <= 0) m.num_kv_heads = m.num_heads;
  m.head_dim = m.hidden / m.num_heads;
  if (m.ffn_hidden <= 0) m.ffn_hidden = m.gated && m.num_experts == 0 ? std::round(m.hidden * 3.5) : 4 * m.hidden;
  m.tied_head = !m.gated && !has(name, "nemotron") && !has(row.text("source"), "functional_tests");  // the CI's GPTs have heads of their own
  if (m.vocab <= 0) m.vocab = m.gated ? 32000 : 51200;
  m.expert_ffn = m.num_experts > 0 ? m.ffn_hidden : 0;
  if (has(name, "qwen3")) m.head_dim = 128;
  if (has(name, "oss")) m.head_dim = 64, m.window_layers = 0.5, m.window = 128;
  const bool latent = has(name, "deepseek") || has(name, "kimi") || has(name, "mla");
  if (latent) {
    m.q_lora = 1536, m.kv_lora = 512, m.rope_dim = 64, m.head_dim = 128, m.num_kv_heads = m.num_heads;
    if (has(name, "lite")) m.q_lora = 0;
    m.gated = true, m.tied_head = false;
    if (m.num_experts > 0 && !has(name, "proxy")) {
      m.expert_ffn = has(name, "lite") ? 1408 : 2048;
      m.shared_ffn = has(name, "lite") ? 2816 : 2048;
      m.dense_layers = has(name, "kimi") || has(name, "lite") || m.num_layers < 10 ? 1 : 3;
      if (m.ffn_hidden < 8192) m.ffn_hidden = has(name, "lite") ? 10944 : 18432;
    }
  }
  return m;
}

SoftwareStack read_stack(const Row& row, const AcceleratorSpec& device) {
  const std::string system = lower(row.text("system")), source = lower(row.text("source")), notes = lower(row.text("notes"));
  if (has(system, "deterministic")) return SoftwareStack::kDeterministic;
  if (has(system, "deepspeed")) return SoftwareStack::kMegatronDeepSpeed;
  if (has(system, "foundry") || has(system, "composer")) return SoftwareStack::kFsdp2023;
  if (has(system, "torchtitan") || has(system, "maxtext") || has(system, "jax")) return SoftwareStack::kFsdpCompiled;
  if (has(lower(row.text("zero_stage_or_fsdp")), "fsdp") && !has(system, "megatron") && !has(system, "nemo")) return SoftwareStack::kFsdp2023;
  const bool early = device.generation == DeviceGeneration::kAmpere || device.generation == DeviceGeneration::kVolta;
  if (has(system, "megatron-lm") && early && !has(system, "core")) return SoftwareStack::kMegatron2020;
  return SoftwareStack::kMegatronCore;
}

NumberFormat read_format(const Row& row) {
  const std::string precision = lower(row.text("precision"));
  if (has(precision, "fp4")) return NumberFormat::kFp4;
  if (has(precision, "mxfp8") || precision == "fp8-mx") return NumberFormat::kFp8Blocks;
  return has(precision, "fp8") ? NumberFormat::kFp8 : NumberFormat::kBf16;
}

RecomputeKind read_recompute(const Row& row, SoftwareStack stack) {
  const std::string text = lower(row.text("activation_recompute"));
  if (has(text, "full")) return RecomputeKind::kFull;
  if (has(text, "sel")) return RecomputeKind::kSelective;
  if (!text.empty()) return RecomputeKind::kNone;
  if (stack == SoftwareStack::kMegatronDeepSpeed || stack == SoftwareStack::kMegatron2020) return RecomputeKind::kFull;
  return stack == SoftwareStack::kFsdpCompiled ? RecomputeKind::kSelective : RecomputeKind::kNone;
}

JobCluster read_cluster(const Row& row, const AcceleratorSpec& device, double num_gpus) {
  JobCluster cluster;
  const std::string source = lower(row.text("source"));
  cluster.device = &device;
  cluster.num_devices = num_gpus;
  const double per_node = row.number("gpus_per_node");
  // A rack of 72 is one domain although a tray holds four; elsewhere the domain is the node.
  cluster.domain_size = device.domain_size >= 72 ? device.domain_size : per_node > 0 ? per_node : device.domain_size;
  cluster.link_bytes_per_second = device.link_bytes_per_second;
  cluster.network_bytes_per_second = device.network_bytes_per_second;
  // Adapters as the sources state them, in bytes a second of a device and direction.
  if (has(source, "vtrain")) cluster.network_bytes_per_second = 800e9 / 8 / 8;
  if (has(source, "bigscience")) cluster.network_bytes_per_second = 400e9 / 8 / 8;
  if (has(source, "foundry") && device.generation == DeviceGeneration::kAmpere) cluster.network_bytes_per_second = 1600e9 / 8 / 8;
  if (device.name == "H100-96GB-HBM2e-500W") cluster.power_scale = 500.0 / 700;
  if (device.name == "GB200") cluster.power_scale = 1.0;
  return cluster;
}

JobLayout read_layout(const Row& row, SoftwareStack stack, double& global_batch, double num_gpus, std::string& skipped) {
  JobLayout l;
  auto degree = [&](std::string_view column) { return std::max(1.0, row.number(column)); };
  l.tp = degree("tp"), l.pp = degree("pp"), l.cp = degree("cp"), l.ep = degree("ep"), l.virtual_stages = degree("vpp_interleave");
  l.dp = row.number("dp");
  if (l.dp <= 0) l.dp = std::max(1.0, std::floor(num_gpus / (l.tp * l.pp * l.cp)));
  if (row.number("tp") <= 0 && row.number("pp") <= 0) return skipped = "the layout is not stated", l;
  l.micro_batch = row.number("micro_batch");
  if (global_batch <= 0 && l.micro_batch > 0) global_batch = l.dp * l.micro_batch;
  if (global_batch <= 0) return skipped = "neither global nor micro-batch is stated", l;
  if (l.micro_batch <= 0) l.micro_batch = stack == SoftwareStack::kMegatron2020 && l.pp == 1 ? global_batch / l.dp : 1;
  if (global_batch + 1e-9 < l.dp * l.micro_batch) return skipped = fmt::format("global batch {} is below dp {} x micro-batch {}", global_batch, l.dp, l.micro_batch), l;
  l.num_micro_batches = global_batch / (l.dp * l.micro_batch);
  const std::string sharding = lower(row.text("zero_stage_or_fsdp")), sp = lower(row.text("sequence_parallel"));
  const bool modern = stack == SoftwareStack::kMegatronCore || stack == SoftwareStack::kFsdpCompiled || stack == SoftwareStack::kDeterministic;
  // The CI states it where it is on.
  l.sequence_parallel = l.tp > 1 && (sp == "yes" || (sp.empty() && modern && stack != SoftwareStack::kDeterministic));
  // Every run of the BLOOM team with replicas that states its sharding used ZeRO-1.
  const bool deepspeed = stack == SoftwareStack::kMegatronDeepSpeed && sharding.empty() && row.number("dp") > 1;
  l.zero = modern || deepspeed || has(sharding, "zero1") || has(sharding, "distributed") ? ZeroStage::kOptimizer : ZeroStage::kNone;
  if (has(sharding, "zero2") || has(sharding, "shard_grad_op")) l.zero = ZeroStage::kGradients;
  if (has(sharding, "fsdp") && !has(sharding, "shard_grad_op")) l.zero = ZeroStage::kFull;
  if (has(sharding, "zero3") || stack == SoftwareStack::kFsdpCompiled) l.zero = ZeroStage::kFull;
  l.shard_size = l.dp * l.cp;
  if (const size_t at = sharding.find("fsdp"); at != std::string::npos) {
    double ranks = 0;
    std::from_chars(sharding.data() + at + 4, sharding.data() + sharding.size(), ranks);
    if (ranks >= 1) l.shard_size = std::min(ranks, l.shard_size);
  }
  return l;
}

// Rows whose printed figures contradict each other, so that no prediction could be judged by them.
std::string contradiction(const PublishedRun& run, const std::string& notes, double per_device_flops) {
  const size_t at = notes.find(" TFLOPs as printed");
  if (at == std::string::npos || run.metric != RunMetric::kStepTime) return {};
  size_t begin = at;
  while (begin > 0 && (std::isdigit(static_cast<unsigned char>(notes[begin - 1])) || notes[begin - 1] == '.')) --begin;
  const double printed = std::strtod(notes.c_str() + begin, nullptr);
  const double implied = per_device_flops * 4 / 3 / run.step_seconds / 1e12;
  if (printed > 0 && (implied > 2 * printed || printed > 2 * implied))
    return fmt::format("its printed {} TFLOP/s and its step time disagree ({:.0f})", printed, implied);
  return {};
}

void read_metric(const Row& row, PublishedRun& run) {
  const std::string& metric = row.text("measured_metric");
  const double value = row.number("measured_value"), tokens = run.global_batch * run.job.model.seq_len;
  const double gpus = run.job.cluster.num_devices;
  const ModelShape& m = run.job.model;
  if (value <= 0) {
    run.skipped = fmt::format("measured_value \"{}\" is not a positive number", row.text("measured_value"));
    return;
  }
  const std::string system = lower(run.system);
  // Model work of a step over all devices. Orrery's count halves attention by its mask; sources differ.
  const ParameterCount count = count_parameters(m);
  const double matrices = 6 * (count.active - (m.tied_head ? 0 : count.embedding / 2)) * tokens;
  const double attention_full = 12 * m.num_layers * m.seq_len * m.num_heads * m.head_dim * tokens;
  const bool full_attention = has(system, "24.0") || has(system, "megatron-lm");
  if (metric == "step_time_s") run.metric = RunMetric::kStepTime, run.step_seconds = value;
  else if (metric == "tokens_per_s_per_gpu") run.metric = RunMetric::kStepTime, run.step_seconds = tokens / (value * gpus);
  else if (metric == "model_tflops_per_gpu") run.metric = RunMetric::kStepTime, run.step_seconds = (matrices + attention_full * (full_attention ? 1 : 0.5)) / (value * 1e12 * gpus);
  else if (metric == "mfu_percent") run.metric = RunMetric::kStepTime, run.step_seconds = (matrices + attention_full * (full_attention ? 1 : 0.5)) / (value / 100 * run.job.cluster.device->bf16_flops * gpus);
  else if (metric.starts_with("achieved_tflops_per_gpu")) {
    // Narayanan et al. 2021, equation 3: with full recomputation.
    const double work = 96 * tokens * m.num_layers * m.hidden * m.hidden * (1 + m.seq_len / (6 * m.hidden) + m.vocab / (16 * m.num_layers * m.hidden));
    run.metric = RunMetric::kStepTime, run.step_seconds = work / (value * 1e12 * gpus);
  } else if (metric.starts_with("peak_mem")) {
    run.metric = RunMetric::kMemory;
    run.memory_bytes = value * (has(metric, "mib") ? 1048576.0 : kGiB);  // nvidia-smi counts in binary units, whatever it prints
    run.memory_reserved = has(metric, "smi") || has(metric, "reserved") || metric == "peak_mem_gib";
  } else if (metric == "oom") run.metric = RunMetric::kOutOfMemory;
  else if (metric == "mean_power_w_per_node_ac") run.metric = RunMetric::kPower, run.node_watts = value;
  else run.skipped = fmt::format("{} needs the length of the whole run, which the table does not hold", metric);
}

PublishedRun read_run(const Row& row, int line) {
  PublishedRun run;
  run.line = line;
  run.source = row.text("source"), run.system = row.text("system"), run.model_name = row.text("model_name");
  run.release = run.system;
  run.job.model = read_model(row, run.skipped);
  const AcceleratorSpec* device = find_device_in_text(row.text("gpu"));
  if (!device) {
    if (run.skipped.empty()) run.skipped = row.text("gpu").empty() ? "the device is not stated" : fmt::format("device \"{}\" is not in the catalogue", row.text("gpu"));
    device = find_device("H100");
  }
  run.job.stack = read_stack(row, *device);
  run.job.format = read_format(row);
  // torchtitan compiles its loss since 2025; its benchmarks have their month in the name.
  run.job.compiled_loss = has(lower(run.system), "torchtitan") && (has(run.source, "_2025") || has(run.source, "_2026"));
  // DeepSpeed's bf16 optimizer accumulates in f32 beside the bf16 gradients.
  if (run.job.stack == SoftwareStack::kMegatronDeepSpeed && lower(row.text("precision")) == "bf16") run.job.gradient_bytes = 6;
  run.global_batch = row.number("global_batch");
  double num_gpus = row.number("num_gpus");
  double tp = row.number("tp"), pp = row.number("pp");
  std::string layout_problem;
  run.job.layout = read_layout(row, run.job.stack, run.global_batch, num_gpus, layout_problem);
  // Korthikanti et al. 2022, table 3: the layouts of the four GPT models whose rows print a name alone.
  if (!layout_problem.empty() && tp <= 0 && pp <= 0 && run.job.stack == SoftwareStack::kMegatron2020 && known_model(run.model_name)) {
    struct Known { double layers, pp, virtual_stages, micro, global; };
    for (const Known& k : {Known{48, 1, 1, 4, 4}, Known{96, 8, 3, 1, 64}, Known{105, 35, 3, 1, 280}, Known{128, 64, 1, 1, 512}}) {
      if (run.job.model.num_layers != k.layers) continue;
      JobLayout& l = run.job.layout;
      l.tp = 8, l.pp = k.pp, l.virtual_stages = k.virtual_stages, l.micro_batch = k.micro, l.dp = 1;
      l.num_micro_batches = k.global / k.micro;
      l.sequence_parallel = lower(row.text("sequence_parallel")) == "yes";
      run.global_batch = k.global;
      if (num_gpus <= 0) num_gpus = 8 * k.pp;
      layout_problem.clear();
    }
  }
  if (run.skipped.empty()) run.skipped = layout_problem;
  JobLayout& l = run.job.layout;
  if (num_gpus <= 0) num_gpus = l.tp * l.pp * l.cp * l.dp;
  l.recompute = read_recompute(row, run.job.stack);
  run.job.cluster = read_cluster(row, *device, num_gpus);
  const double product = l.tp * l.pp * l.cp * l.dp;
  if (run.skipped.empty() && std::abs(product - num_gpus) > 0.02 * num_gpus)
    run.skipped = fmt::format("tp x pp x cp x dp = {} is not the number of devices, {}", product, num_gpus);
  if (run.skipped.empty()) read_metric(row, run);
  if (run.skipped.empty() && l.recompute == RecomputeKind::kFull && run.metric == RunMetric::kStepTime) {
    const ModelShape& m = run.job.model;
    const double work = 72 * run.global_batch * m.seq_len * m.num_layers * m.hidden * m.hidden * (1 + m.seq_len / (6 * m.hidden));
    run.skipped = contradiction(run, row.text("notes"), work / num_gpus);
  }
  run.plan_group = fmt::format("{}|{}|{}|{}|{}|{}|{}|{}|{}", run.source, run.system, run.model_name, run.job.model.num_layers, run.job.model.hidden, row.text("gpu"), num_gpus,
                               run.global_batch, run.job.model.seq_len) + "|" + row.text("precision") + "|" + row.text("measured_metric");
  run.layout_key = fmt::format("{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}", run.job.model.num_layers, run.job.model.hidden, run.job.model.num_experts, num_gpus, row.text("gpu"), l.tp, l.pp,
                               l.virtual_stages, l.cp, l.ep, l.micro_batch, run.job.model.seq_len);
  run.layer_key = fmt::format("{}|{}|{}|{}|{}|{}|{}|{}", row.text("gpu"), run.job.model.hidden, run.job.model.num_experts, l.tp, l.micro_batch, run.job.model.seq_len, l.ep, row.text("precision"));
  std::string all;
  for (const auto& [name, index] : row.columns)
    if (name != "measured_value" && name != "notes") all += row.fields[index] + "\x1f";
  run.fingerprint = hash_name(all);
  return run;
}

}  // namespace

std::vector<PublishedRun> parse_published_runs(std::string_view text, const std::string& file) {
  const auto rows = read_csv(text);
  if (rows.empty()) throw Error(ErrorCode::kCorruptData, "{}: empty: wanted a header line and rows of published runs", file);
  std::map<std::string, size_t, std::less<>> columns;
  for (size_t i = 0; i < rows[0].second.size(); ++i) columns[rows[0].second[i]] = i;
  for (const char* name : kColumns)
    if (!columns.contains(name)) throw Error(ErrorCode::kCorruptData, "{}:1: column `{}` is missing; the header needs: {}", file, name, fmt::join(kColumns, ", "));
  std::vector<PublishedRun> runs;
  for (size_t i = 1; i < rows.size(); ++i) {
    if (rows[i].second.size() != rows[0].second.size())
      throw Error(ErrorCode::kCorruptData, "{}:{}: {} fields, the header has {}", file, rows[i].first, rows[i].second.size(), rows[0].second.size());
    runs.push_back(read_run({columns, rows[i].second}, rows[i].first));
  }
  return runs;
}

std::vector<PublishedRun> load_published_runs(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error(ErrorCode::kInvalidArgument, "{}: cannot be read; wanted a CSV table of published runs", path);
  std::ostringstream text;
  text << in.rdbuf();
  return parse_published_runs(text.str(), path);
}

}  // namespace orrery
