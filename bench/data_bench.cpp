// Speed of `data build` per core and of reading samples. usage: data_bench TEXT... : globs or files of text to read.
// Build speed is given per second of processor time (one thread, read + tokenize + write + sync), because other programs' load
// must not count; the same with an encoder of one id per byte shows what everything but the tokenizer costs.
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/data_builder.h"
#include "data/prefetcher.h"
#include "data/tokenizer_encoder.h"

namespace orrery {
namespace {

double processor_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double wall_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

TokenEncoder byte_encoder() {
  TokenEncoder encoder;
  encoder.vocab_size = 256;
  encoder.new_session = [] {
    return [](std::string_view text, bool, std::vector<int32_t>* ids) {
      for (char c : text) ids->push_back(static_cast<uint8_t>(c));
    };
  };
  return encoder;
}

void bench_build(const char* name, const std::vector<std::string>& inputs, const TokenEncoder& encoder,
                 const std::string& folder, int num_threads) {
  double best_processor = 1e9, best_wall = 1e9;
  BuildResult result;
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::filesystem::remove_all(folder);
    const double processor = processor_seconds(), wall = wall_seconds();
    result = build_data({.inputs = inputs, .output_folder = folder, .num_threads = num_threads}, encoder);
    best_processor = std::min(best_processor, processor_seconds() - processor);
    best_wall = std::min(best_wall, wall_seconds() - wall);
  }
  const double megabytes = static_cast<double>(result.totals.text_bytes) / 1e6;
  fmt::print(
      "build {:<10} {} thread(s)  {:7.1f} MB/s of processor time  {:7.1f} MB/s wall  ({:.1f} MB, {} tokens, best of 5)\n", name,
      num_threads, megabytes / best_processor, megabytes / best_wall, megabytes, result.totals.tokens);
}

void bench_samples(const std::string& folder) {
  const DataManifest manifest = load_manifest(folder);
  DataSource source{.name = folder};
  for (const std::string& shard : manifest.train.shards) source.files.push_back(folder + "/" + shard);
  const Dataset dataset({source}, {.seq_len = 512});
  std::vector<int32_t> ids(512), targets(512), positions(512), starts(static_cast<size_t>(dataset.max_segments_per_sample()));
  constexpr uint64_t kSamples = 20000;
  const double begin = processor_seconds();
  for (uint64_t g = 0; g < kSamples; ++g)
    dataset.fill_sample(g, {ids.data(), targets.data(), positions.data()}, 0, starts.data());
  const double seconds = processor_seconds() - begin;
  fmt::print("fill_sample seq_len 512: {:.2f} us a sample, {:.0f} M tokens/s of processor time\n", seconds / kSamples * 1e6,
             kSamples * 512 / seconds / 1e6);
}

int run(const std::vector<std::string>& inputs) {
  const std::string folder =
      (std::filesystem::temp_directory_path() / fmt::format("orrery_data_bench-{}", ::getpid())).string();
  for (int num_threads : {1, 2}) bench_build("bytes", inputs, byte_encoder(), folder, num_threads);
  for (int32_t vocab_size : {4096, 32000}) {
    const Tokenizer tokenizer = train_tokenizer({.inputs = inputs, .vocab_size = vocab_size});
    const TokenEncoder encoder = token_encoder(tokenizer);
    for (int num_threads : {1, 2}) bench_build(fmt::format("bpe-{}", vocab_size).c_str(), inputs, encoder, folder, num_threads);
  }
  bench_samples(folder);
  std::filesystem::remove_all(folder);
  return 0;
}

}  // namespace
}  // namespace orrery

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: data_bench TEXT...\n");
    return 2;
  }
  try {
    return orrery::run({argv + 1, argv + argc});
  } catch (const orrery::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return orrery::exit_status(error.code());
  }
}
