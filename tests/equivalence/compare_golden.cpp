// compare_golden FOLDER [--all]: prints how far Orrery and PyTorch are from float64 for a folder of scripts/compare_torch.py, the worst
// tensors first. Exit code 1 when something lies outside NUMERICS rule 14.
#include <fmt/core.h>

#include <algorithm>
#include <string_view>

#include "base/error.h"
#include "equivalence/golden_case.h"

namespace orrery {
namespace {

constexpr size_t kShown = 3;

// Returns how many are outside.
size_t print(std::string_view title, std::vector<Measurement> measurements, bool all) {
  const auto share = [](const Measurement& m) { return m.bound > 0 ? m.error / m.bound : 0; };
  std::stable_sort(measurements.begin(), measurements.end(), [&](const auto& a, const auto& b) { return share(a) > share(b); });
  const auto outside = static_cast<size_t>(std::count_if(measurements.begin(), measurements.end(), [](const auto& m) { return !m.within(); }));
  double middle = 0;
  if (!measurements.empty()) middle = share(measurements[measurements.size() / 2]);
  fmt::print("{}: {} of {} within 2 x PyTorch's error; median {:.2f} x PyTorch's error\n", title, measurements.size() - outside, measurements.size(), 2 * middle);
  for (size_t i = 0; i < measurements.size() && (all || i < std::max(kShown, outside)); ++i) {
    const Measurement& m = measurements[i];
    fmt::print("  {:<64} error {:.2e}  PyTorch's {:.2e}  ratio {:.2f}  norm {:.2e}{}\n", m.name, m.error, m.bound / 2, 2 * share(m), m.exact_norm, m.within() ? "" : "  OUTSIDE");
  }
  return outside;
}

int run(const std::string& folder, bool all) {
  const GoldenCase golden(folder, /*num_threads=*/0);
  size_t outside = 0;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    outside += print(fmt::format("logits {}", dtype_name(dtype)), {golden.logits(dtype)}, all);
    outside += print(fmt::format("gradients {}", dtype_name(dtype)), golden.gradients(dtype), all);
  }
  if (golden.has_losses()) outside += print("losses f32", golden.losses(), all);
  return outside == 0 ? 0 : 1;
}

}  // namespace
}  // namespace orrery

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: compare_golden FOLDER [--all]\n");
    return 2;
  }
  try {
    return orrery::run(argv[1], argc > 2 && std::string_view(argv[2]) == "--all");
  } catch (const orrery::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
