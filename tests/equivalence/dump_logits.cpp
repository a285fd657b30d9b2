// dump_logits MODEL IDS OUT f32|bf16: reads sequences of token ids, one a line, and writes the logits after each token, as f32 rows, to OUT:
// what scripts/compare_llama_cpp.py and scripts/compare_exports.py measure.
#include <fmt/core.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/model_source.h"
#include "serve/generator.h"

namespace orrery {
namespace {

std::vector<std::vector<int32_t>> read_sequences(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Error(ErrorCode::kIo, "cannot read {}", path);
  std::vector<std::vector<int32_t>> sequences;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::vector<int32_t> ids;
    for (int32_t id = 0; words >> id;) ids.push_back(id);
    sequences.push_back(std::move(ids));
  }
  return sequences;
}

void run(const std::string& model, const std::string& ids, const std::string& out, DType compute_dtype) {
  const auto sequences = read_sequences(ids);
  size_t longest = 1;
  for (const auto& sequence : sequences) longest = std::max(longest, sequence.size());
  const ModelSource source = open_model(model);
  Generator generator(source, {.max_context = static_cast<int64_t>(longest), .compute_dtype = compute_dtype});
  std::ofstream file(out, std::ios::binary);
  for (const auto& sequence : sequences) {
    generator.clear();
    for (const int32_t id : sequence) {
      const std::span<const float> row = generator.append(std::span(&id, 1));
      file.write(reinterpret_cast<const char*>(row.data()), static_cast<std::streamsize>(row.size_bytes()));
    }
  }
  if (!file.flush()) throw Error(ErrorCode::kIo, "cannot write {}", out);
}

}  // namespace
}  // namespace orrery

int main(int argc, char** argv) {
  using orrery::DType;
  const auto dtype = argc == 5 ? orrery::parse_dtype(argv[4]) : std::nullopt;
  if (!dtype || (*dtype != DType::kF32 && *dtype != DType::kBF16)) {
    fmt::print(stderr, "usage: dump_logits MODEL IDS OUT f32|bf16\n");
    return 2;
  }
  try {
    orrery::run(argv[1], argv[2], argv[3], *dtype);
    return 0;
  } catch (const orrery::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
