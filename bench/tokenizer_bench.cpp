// Tokenizer speed, and the ids themselves for comparison by scripts/compare_tokenizers.py.
//   tokenizer_bench speed TOKENIZER FILE [REPEATS]     MB per CPU second of encode, lines of FILE one by one and the whole
//   tokenizer_bench train FILE VOCAB_SIZE FOLDER       trains byte-level BPE, writes FOLDER
//   tokenizer_bench encode TOKENIZER                   reads texts (u32 length, bytes) from stdin, writes (u32 count, i32 ids)
// TOKENIZER: a path for load_tokenizer, PATTERN=FILE for a rank file, or gguf=FILE with the GGUF keys as JSON.
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "tokenizer/bpe_trainer.h"
#include "tokenizer/tokenizer.h"

namespace {

using namespace orrery;

// CPU time of this process: the machine may be busy with other work, and everything here runs on one thread.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error(ErrorCode::kIo, "cannot open {}", path);
  return {std::istreambuf_iterator<char>(in), {}};
}

Tokenizer load_gguf_json(const std::string& path) {
  const auto root = nlohmann::json::parse(read_all(path));
  GgufTokenizerData data;
  data.model = root.at("model");
  data.pre = root.value("pre", "");
  data.tokens = root.at("tokens");
  data.merges = root.value("merges", data.merges);
  data.scores = root.value("scores", data.scores);
  data.token_types = root.value("token_types", data.token_types);
  data.bos_id = root.value("bos_id", -1);
  data.eos_id = root.value("eos_id", -1);
  return load_gguf_tokenizer(data);
}

Tokenizer load(const std::string& what) {
  const size_t equals = what.find('=');
  if (equals == std::string::npos) return load_tokenizer(what);
  const std::string file = what.substr(equals + 1);
  return what.starts_with("gguf=") ? load_gguf_json(file) : load_tiktoken(read_all(file), what.substr(0, equals));
}

double seconds_since(double start) { return cpu_seconds() - start; }

void speed(const std::string& what, const std::string& file, int repeats) {
  const double load_start = cpu_seconds();
  const Tokenizer tokenizer = load(what);
  const double load_s = seconds_since(load_start);
  const std::string text = read_all(file);
  EncodeScratch scratch;
  std::vector<int32_t> ids;
  double best_whole = 1e9, best_lines = 1e9;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    EncodeScratch fresh;
    ids.clear();
    double start = cpu_seconds();
    tokenizer.encode(text, {.add_special = false}, &fresh, &ids);
    best_whole = std::min(best_whole, seconds_since(start));
    ids.clear();
    start = cpu_seconds();
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) tokenizer.encode(line, {.add_special = false}, &scratch, &ids);
    best_lines = std::min(best_lines, seconds_since(start));
  }
  const auto megabytes = static_cast<double>(text.size()) * 1e-6;
  ids.clear();
  tokenizer.encode(text, {.add_special = false}, &scratch, &ids);
  std::printf("orrery      load %.3f s  whole %7.1f MB/s (cold cache)  lines %7.1f MB/s  %zu ids for %.1f MB\n", load_s,
              megabytes / best_whole, megabytes / best_lines, ids.size(), megabytes);
}

void train(const std::string& file, int vocab_size, const std::string& folder) {
  const std::string text = read_all(file);
  bool done = false;
  TrainBpeOptions options;
  options.vocab_size = vocab_size;
  options.special_tokens = {"<|endoftext|>"};
  options.eos_token = "<|endoftext|>";
  const double start = cpu_seconds();
  const Tokenizer tokenizer = train_bpe(
      [&](std::string* chunk) {
        if (done) return false;
        *chunk = text;
        return done = true;
      },
      options);
  std::printf("orrery      trained %d tokens on %.1f MB in %.2f s\n", tokenizer.vocab_size(),
              static_cast<double>(text.size()) * 1e-6, seconds_since(start));
  save_tokenizer_json(tokenizer, folder);
}

void encode_stream(const std::string& what) {
  const Tokenizer tokenizer = load(what);
  EncodeScratch scratch;
  uint32_t size = 0;
  while (std::fread(&size, 4, 1, stdin) == 1) {
    std::string text(size, '\0');
    if (std::fread(text.data(), 1, size, stdin) != size) throw Error(ErrorCode::kCorruptData, "stdin ends inside a text");
    std::vector<int32_t> ids;
    tokenizer.encode(text, {.add_special = false}, &scratch, &ids);
    const auto count = static_cast<uint32_t>(ids.size());
    std::fwrite(&count, 4, 1, stdout);
    std::fwrite(ids.data(), 4, ids.size(), stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string mode = argc > 1 ? argv[1] : "";
    if (mode == "speed" && argc >= 4) {
      speed(argv[2], argv[3], argc > 4 ? std::atoi(argv[4]) : 5);
    } else if (mode == "train" && argc == 5) {
      train(argv[2], std::atoi(argv[3]), argv[4]);
    } else if (mode == "encode" && argc == 3) {
      encode_stream(argv[2]);
    } else {
      std::fprintf(stderr,
                   "usage: tokenizer_bench speed TOKENIZER FILE [REPEATS] | train FILE VOCAB_SIZE FOLDER | encode TOKENIZER\n");
      return 2;
    }
    return 0;
  } catch (const Error& e) {
    std::fprintf(stderr, "tokenizer_bench: %s\n", e.what());
    return exit_status(e.code());
  }
}
