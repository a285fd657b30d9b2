// Serving speed of a model file beside llama.cpp's benchmarks: the same prompts, batches and numbers of tokens as llama-bench (pp512) and
// llama-batched-bench (-npp 128 -ntg 64 -npl 1,8,32). Also the perplexity of a text as
// llama-perplexity counts it: chunks of 512 tokens, the second half of each.
//   decode_bench MODEL [--dtype bf16|f32] [--kv-dtype auto|int8] [--threads N] [--repeat 3] [--ops] [--only pp512|1|8|32] [--clock wall|cpu]
//   decode_bench MODEL --perplexity TEXT [--chunks 20] [--kv-dtype auto|int8]
//   decode_bench MODEL --generate [--dtype bf16|f32] [--threads N] [--repeat 9] [--ops]
// The last is what `orrery generate` does after its prompt (forward pass, draw, one sequence), in rounds of 16 tokens in turns with
// the read loop; medians.
// --clock cpu counts the process's processor time divided by the threads: what the code costs on a machine that others use too, without
// what was preempted, but with what threads spun for each other. One thread is cleanest.
// Prints one JSON line. read_gb_s is a read loop over as many bytes as the packed weights, read_share the share of it that batch 1 reaches;
// core_round_trip_ns how far the cores were apart before and after (core_round_trip.h), on which most figures of two threads depend.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <map>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "core_round_trip.h"
#include "runtime/memory_bandwidth.h"
#include "serve/generator.h"
#include "serve/sampling/sampler.h"
#include "serve/serving_model.h"

namespace orrery {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

struct Options {
  std::string model, dtype = "bf16", perplexity, only;
  int threads = 0, repeat = 3;
  int64_t chunks = 20;
  bool ops = false, generate = false, cpu_clock = false, kv_int8 = false;
};

// Seconds of wall time, or of processor time a thread.
class Stopwatch {
 public:
  explicit Stopwatch(int cpu_threads) : cpu_threads_(cpu_threads), begin_(now()) {}
  double seconds() const { return now() - begin_; }

 private:
  double now() const {
    timespec time{};
    clock_gettime(cpu_threads_ > 0 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return (static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec)) / std::max(1, cpu_threads_);
  }
  int cpu_threads_;
  double begin_;
};

class Batch {
 public:
  Batch(ServingModel& model, int64_t sequences) : model_(model), lengths_(static_cast<size_t>(sequences), 0) {
    const int64_t width = model.plan().blocks_per_sequence;
    int32_t* table = model.field<int32_t>(BatchField::kBlockTable);
    std::iota(table, table + sequences * width, 0);
  }
  /// The next `tokens` of one sequence, or of all when sequence < 0 (one token each). Logits of `rows` last rows.
  void forward(int64_t sequence, std::span<const int32_t> tokens, int64_t rows) {
    const int64_t block_tokens = model_.plan().options.block_tokens, width = model_.plan().blocks_per_sequence;
    const bool all = sequence < 0;
    const int64_t count = all ? static_cast<int64_t>(lengths_.size()) : 1, each = all ? 1 : static_cast<int64_t>(tokens.size());
    int32_t *ids = model_.field<int32_t>(BatchField::kIds), *positions = model_.field<int32_t>(BatchField::kPositions),
            *slots = model_.field<int32_t>(BatchField::kSlots), *starts = model_.field<int32_t>(BatchField::kCuSeqlens),
            *contexts = model_.field<int32_t>(BatchField::kContextLens), *gathered = model_.field<int32_t>(BatchField::kRows),
            *table = model_.field<int32_t>(BatchField::kBlockTable);
    int64_t row = 0;
    for (int64_t s = 0; s < count; ++s) {
      int64_t& length = lengths_[static_cast<size_t>(all ? s : sequence)];
      const int64_t first_block = (all ? s : sequence) * width;
      for (int64_t b = 0; b < width; ++b) table[s * width + b] = static_cast<int32_t>(first_block + b);
      starts[s] = static_cast<int32_t>(row);
      for (int64_t t = 0; t < each; ++t, ++row) {
        ids[row] = tokens[static_cast<size_t>(row)];
        positions[row] = static_cast<int32_t>(length + t);
        slots[row] = static_cast<int32_t>((first_block + (length + t) / block_tokens) * block_tokens + (length + t) % block_tokens);
      }
      length += each;
      contexts[s] = static_cast<int32_t>(length);
    }
    starts[count] = static_cast<int32_t>(row);
    for (int64_t i = 0; i < rows; ++i) gathered[i] = static_cast<int32_t>(row - rows + i);
    model_.forward(row, count, rows);
  }
  void clear() { std::fill(lengths_.begin(), lengths_.end(), 0); }

 private:
  ServingModel& model_;
  std::vector<int64_t> lengths_;
};

// Reads memory as large as the weights, with huge pages like theirs.
class ReadLoop {
 public:
  ReadLoop(ThreadPool& pool, int64_t bytes) : pool_(pool), memory_(bytes), part_(static_cast<size_t>(bytes / pool.num_threads() / 256 * 256)) {}
  double seconds() {
    volatile uint64_t sink = 0;
    const auto begin = Clock::now();
    pool_.run([&](int thread, int) { sink = read_all_bytes_avx2(memory_.data() + static_cast<size_t>(thread) * part_, part_); });
    return seconds_since(begin);
  }
  double bytes() const { return static_cast<double>(part_) * pool_.num_threads(); }

 private:
  ThreadPool& pool_;
  Arena memory_;
  size_t part_;
};

double best_read_gb_s(ThreadPool& pool, int64_t bytes) {
  ReadLoop loop(pool, bytes);
  double best = 1e9;
  for (int i = 0; i < 5; ++i) best = std::min(best, loop.seconds());
  return loop.bytes() / best / 1e9;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Milliseconds of one forward pass by op, packed products by shape with the rate at which they pass their weights.
void print_ops(const ServingPlan& plan, Executor& executor, const char* what) {
  struct Sum {
    double seconds = 0, bytes = 0;
    int64_t calls = 0, ops = 0;
  };
  const Stage& stage = plan.stage;
  const auto& times = executor.op_times(Phase::kForward);
  const auto& ops = stage.block(Phase::kForward).ops;
  std::map<std::string, Sum> sums;
  double total = 0;
  for (size_t i = 0; i < ops.size(); ++i) {
    std::string name(op_name(ops[i].kind));
    const bool packed = ops[i].kind == OpKind::kLinearPacked;
    if (packed) name += fmt::format(" {}x{}", stage.value(ops[i].inputs[0]).shape.back().bound, std::get<PackedLinearAttributes>(ops[i].attributes).num_columns);
    Sum& sum = sums[name];
    sum.seconds += times[i].seconds;
    sum.calls += times[i].calls;
    ++sum.ops;
    if (packed) sum.bytes += static_cast<double>(stage.value(ops[i].inputs[1]).bytes()) * static_cast<double>(times[i].calls);
    total += times[i].seconds;
  }
  const auto passes = static_cast<double>(std::max<int64_t>(1, times.back().calls));
  fmt::print(stderr, "{}: {:.3f} ms a pass\n", what, 1e3 * total / passes);
  for (const auto& [name, sum] : sums)
    fmt::print(stderr, "  {:<28} {:4} x {:8.2f} us = {:7.3f} ms {:5.1f} %{}\n", name, sum.ops, 1e6 * sum.seconds / static_cast<double>(sum.calls), 1e3 * sum.seconds / passes,
               100 * sum.seconds / total, sum.bytes > 0 ? fmt::format("  {:.1f} GB/s", sum.bytes / sum.seconds / 1e9) : "");
  executor.reset_op_times();
}

void run_speed(const Options& options) {
  const double apart = bench::core_round_trip_ns();
  const ModelSource source = open_model(options.model);
  ServingModelOptions serving;
  serving.num_threads = options.threads;
  serving.compute_dtype = *parse_dtype(options.dtype);
  serving.kv_int8 = options.kv_int8;
  serving.max_context = 512;
  serving.max_sequences = 32;
  const auto load_begin = Clock::now();
  ServingModel model(source, serving);
  const double load = seconds_since(load_begin);
  std::vector<int32_t> tokens(512);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(model.config().vocab_size));
  const int cpu_threads = options.cpu_clock ? model.pool().num_threads() : 0;
  Batch batch(model, 32);
  const auto wanted = [&](const char* name) { return options.only.empty() || options.only == name; };
  fmt::print("{{\"model\": \"{}\", \"dtype\": \"{}\", \"load_s\": {:.2f}", options.model, options.dtype, load);
  if (wanted("pp512")) {
    std::vector<double> rates;
    for (int i = 0; i <= options.repeat; ++i) {
      batch.clear();
      model.executor().reset_op_times();
      const Stopwatch watch(cpu_threads);
      batch.forward(0, tokens, 1);
      if (i > 0) rates.push_back(512 / watch.seconds());
    }
    if (options.ops) print_ops(model.plan(), model.executor(), "pp512");
    fmt::print(", \"pp512\": {:.1f}", median(rates));
  }
  double one = 0;
  for (int64_t sequences : {1, 8, 32}) {
    if (!wanted(std::to_string(sequences).c_str())) continue;
    Batch decode(model, sequences);
    for (int64_t s = 0; s < sequences; ++s) decode.forward(s, std::span(tokens).first(128), 1);
    model.executor().reset_op_times();
    std::vector<double> rates;
    for (int i = 0; i < options.repeat; ++i) {
      const int steps = 64 / options.repeat;
      const Stopwatch watch(cpu_threads);
      for (int step = 0; step < steps; ++step) decode.forward(-1, tokens, sequences);
      rates.push_back(static_cast<double>(sequences * steps) / watch.seconds());
    }
    if (options.ops) print_ops(model.plan(), model.executor(), fmt::format("batch {}", sequences).c_str());
    if (sequences == 1) one = median(rates);
    fmt::print(", \"batch_{}\": {:.1f}", sequences, median(rates));
  }
  const int64_t bytes = model.plan().memory.class_bytes[static_cast<size_t>(MemoryClass::kPackedWeights)];
  const double read = best_read_gb_s(model.pool(), bytes);
  fmt::print(", \"weight_mb\": {:.1f}, \"read_gb_s\": {:.1f}, \"read_share\": {:.3f}, \"core_round_trip_ns\": [{:.0f}, {:.0f}]}}\n", static_cast<double>(bytes) / 1e6, read,
             one * static_cast<double>(bytes) / 1e9 / read, apart, bench::core_round_trip_ns());
}

void run_generate(const Options& options) {
  constexpr int64_t kPrompt = 32, kRound = 16;
  const ModelSource source = open_model(options.model);
  GeneratorOptions serving;
  serving.num_threads = options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
  serving.compute_dtype = *parse_dtype(options.dtype);
  serving.max_context = std::min<int64_t>(source.config().max_seq_len, kPrompt + kRound * (options.repeat + 1));
  Generator generator(source, serving);
  ThreadPool readers(serving.num_threads);  // sleeps while the generator's own threads work
  SamplingOptions greedy;
  greedy.temperature = 0;
  Sampler sampler(greedy);
  SamplerScratch scratch;
  const int64_t bytes = generator.plan().memory.class_bytes[static_cast<size_t>(MemoryClass::kPackedWeights)];
  ReadLoop loop(readers, bytes);
  std::vector<int32_t> prompt(static_cast<size_t>(kPrompt));
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(source.config().vocab_size));
  std::span<const float> logits = generator.append(prompt);
  generator.executor().reset_op_times();
  std::vector<double> token_seconds, read_seconds, shares;
  for (int round = 0; round <= options.repeat; ++round) {
    const auto begin = Clock::now();
    for (int64_t i = 0; i < kRound; ++i) {
      const int32_t id = sampler.sample(logits, generator.length(), {}, &scratch).id;
      sampler.accept(id);
      logits = generator.append(std::span(&id, 1));
    }
    const double token = seconds_since(begin) / kRound;
    double read = 0;
    for (int64_t i = 0; i < kRound; ++i) read += loop.seconds() / kRound;
    if (round == 0) continue;
    token_seconds.push_back(token);
    read_seconds.push_back(read);
    shares.push_back(read * (static_cast<double>(bytes) / loop.bytes()) / token);
  }
  if (options.ops) print_ops(generator.plan(), generator.executor(), "generate");
  fmt::print("{{\"model\": \"{}\", \"dtype\": \"{}\", \"threads\": {}, \"generate_tokens_per_s\": {:.1f}, \"weight_mb\": {:.1f}, \"read_gb_s\": {:.1f}, \"read_share\": {:.3f}}}\n",
             options.model, options.dtype, readers.num_threads(), 1 / median(token_seconds), static_cast<double>(bytes) / 1e6,
             loop.bytes() / median(read_seconds) / 1e9, median(shares));
}

void run_perplexity(const Options& options) {
  const ModelSource source = open_model(options.model);
  const Tokenizer tokenizer = load_model_tokenizer(source);
  std::ifstream file(options.perplexity, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (text.empty()) throw Error(ErrorCode::kIo, "{}: no text", options.perplexity);
  std::vector<int32_t> ids = tokenizer.encode(text);
  ServingModelOptions serving;
  serving.num_threads = options.threads;
  serving.compute_dtype = *parse_dtype(options.dtype);
  serving.kv_int8 = options.kv_int8;
  serving.max_context = 512;
  serving.max_rows = 256;
  ServingModel model(source, serving);
  Batch batch(model, 1);
  // As llama-perplexity: with a model that begins texts with bos, the first token of every chunk is replaced by it.
  const auto bos = model.config().bos_token_id;
  const bool replaces = !ids.empty() && bos && tokenizer.encode("a", {.add_special = true}).front() == *bos;
  double sum = 0;
  int64_t count = 0;
  for (int64_t chunk = 0; chunk < options.chunks && (chunk + 1) * 512 <= static_cast<int64_t>(ids.size()); ++chunk) {
    std::vector<int32_t> part(ids.begin() + chunk * 512, ids.begin() + (chunk + 1) * 512);
    if (replaces) part[0] = static_cast<int32_t>(*bos);
    batch.clear();
    batch.forward(0, part, 256);
    for (int64_t i = 0; i < 255; ++i) {
      const auto logits = model.logits(i);
      const float top = *std::max_element(logits.begin(), logits.end());
      double total = 0;
      for (float logit : logits) total += std::exp(static_cast<double>(logit - top));
      sum -= logits[static_cast<size_t>(part[static_cast<size_t>(257 + i)])] - top - std::log(total);
      ++count;
    }
  }
  fmt::print("{{\"model\": \"{}\", \"dtype\": \"{}\", \"tokens\": {}, \"perplexity\": {:.4f}}}\n", options.model, options.dtype, count,
             std::exp(sum / static_cast<double>(count)));
}

int run(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto next = [&]() -> std::string {
      if (i + 1 >= argc) throw Error(ErrorCode::kInvalidArgument, "{} needs a value", flag);
      return argv[++i];
    };
    if (flag == "--dtype") options.dtype = next();
    else if (flag == "--threads") options.threads = std::stoi(next());
    else if (flag == "--repeat") options.repeat = std::stoi(next());
    else if (flag == "--perplexity") options.perplexity = next();
    else if (flag == "--chunks") options.chunks = std::stoi(next());
    else if (flag == "--only") options.only = next();
    else if (flag == "--ops") options.ops = true;
    else if (flag == "--generate") options.generate = true;
    else if (flag == "--kv-dtype") options.kv_int8 = next() == "int8";
    else if (flag == "--clock") options.cpu_clock = next() == "cpu";
    else if (!flag.starts_with("--") && options.model.empty()) options.model = flag;
    else throw Error(ErrorCode::kInvalidArgument, "{} is not known; the flags are listed at the top of decode_bench.cpp", flag);
  }
  if (options.model.empty()) throw Error(ErrorCode::kInvalidArgument, "give a model file");
  if (!options.perplexity.empty()) run_perplexity(options);
  else if (options.generate) run_generate(options);
  else run_speed(options);
  return 0;
}

}  // namespace
}  // namespace orrery

int main(int argc, char** argv) {
  try {
    return orrery::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
