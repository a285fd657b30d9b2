#include "topology/device_catalogue.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <vector>

#include "base/nearest_name.h"

namespace orrery {
namespace {

constexpr double kT = 1e12, kG = 1e9, kGiB = 1073741824.0;
using enum DeviceGeneration;

// name, generation, units, bf16, fp8, fp4, memory, memory/s, link/s, domain, network/s, power, idle, source
constexpr std::array kDevices = {
    AcceleratorSpec{"V100", kVolta, 80, 125 * kT, 0, 0, 32 * kGiB, 900 * kG, 150 * kG, 16, 6.25 * kG, 450, 60, "NVIDIA V100 datasheet; DGX-2H"},
    AcceleratorSpec{"A100", kAmpere, 108, 312 * kT, 0, 0, 80 * kGiB, 2039 * kG, 300 * kG, 8, 25 * kG, 400, 60, "NVIDIA A100 80GB SXM datasheet"},
    AcceleratorSpec{"A100-40GB", kAmpere, 108, 312 * kT, 0, 0, 40 * kGiB, 1555 * kG, 300 * kG, 8, 25 * kG, 400, 60, "NVIDIA A100 40GB SXM datasheet"},
    AcceleratorSpec{"H100", kHopper, 132, 989.5 * kT, 1979 * kT, 0, 80 * kGiB, 3350 * kG, 450 * kG, 8, 50 * kG, 700, 100, "NVIDIA H100 SXM datasheet"},
    AcceleratorSpec{"H100-96GB-HBM2e-500W", kHopper, 132, 989.5 * kT, 1979 * kT, 0, 96 * kGiB, 2400 * kG, 450 * kG, 8, 50 * kG, 500, 100, "torchtitan benchmark note: 96 GB HBM2e, 500 W"},
    AcceleratorSpec{"H800", kHopper, 132, 989.5 * kT, 1979 * kT, 0, 80 * kGiB, 3350 * kG, 200 * kG, 8, 50 * kG, 700, 100, "DeepSeek-V3 report: NVLink 400 GB/s both ways"},
    AcceleratorSpec{"H200", kHopper, 132, 989.5 * kT, 1979 * kT, 0, 141 * kG, 4800 * kG, 450 * kG, 8, 50 * kG, 700, 110, "NVIDIA H200 SXM datasheet"},
    AcceleratorSpec{"GH200", kHopper, 132, 989.5 * kT, 1979 * kT, 0, 96 * kGiB, 4000 * kG, 450 * kG, 4, 25 * kG, 700, 110, "NVIDIA GH200 datasheet"},
    AcceleratorSpec{"B200", kBlackwell, 148, 2250 * kT, 4500 * kT, 9000 * kT, 180 * kGiB, 8000 * kG, 900 * kG, 8, 50 * kG, 1000, 140, "NVIDIA HGX B200 datasheet"},
    AcceleratorSpec{"GB200", kBlackwell, 148, 2500 * kT, 5000 * kT, 10000 * kT, 186 * kGiB, 8000 * kG, 900 * kG, 72, 50 * kG, 1200, 140, "NVIDIA GB200 NVL72 datasheet"},
    AcceleratorSpec{"B300", kBlackwell, 148, 2250 * kT, 4500 * kT, 13500 * kT, 270 * kGiB, 8000 * kG, 900 * kG, 8, 100 * kG, 1100, 150, "NVIDIA HGX B300 datasheet"},
    AcceleratorSpec{"GB300", kBlackwell, 148, 2500 * kT, 5000 * kT, 15000 * kT, 279 * kGiB, 8000 * kG, 900 * kG, 72, 100 * kG, 1400, 150, "NVIDIA GB300 NVL72 datasheet"},
    AcceleratorSpec{"MI250X", kCdna, 220, 383 * kT, 0, 0, 128 * kGiB, 3277 * kG, 200 * kG, 4, 25 * kG, 560, 90, "AMD MI250X datasheet"},
    AcceleratorSpec{"MI300X", kCdna, 304, 1307 * kT, 2615 * kT, 0, 192 * kGiB, 5300 * kG, 448 * kG, 8, 50 * kG, 750, 140, "AMD MI300X datasheet"},
    AcceleratorSpec{"MI325X", kCdna, 304, 1307 * kT, 2615 * kT, 0, 256 * kGiB, 6000 * kG, 448 * kG, 8, 50 * kG, 1000, 140, "AMD MI325X datasheet"},
    AcceleratorSpec{"MI355X", kCdna, 256, 2500 * kT, 5000 * kT, 10000 * kT, 288 * kGiB, 8000 * kG, 538 * kG, 8, 50 * kG, 1400, 150, "AMD MI355X datasheet"},
    AcceleratorSpec{"TPUv4", kTpu, 8, 275 * kT, 0, 0, 32 * kGiB, 1200 * kG, 150 * kG, 4096, 6.25 * kG, 192, 60, "Google Cloud TPU v4 page"},
    AcceleratorSpec{"TPUv5e", kTpu, 4, 197 * kT, 0, 0, 16 * kGiB, 819 * kG, 100 * kG, 256, 6.25 * kG, 170, 50, "Google Cloud TPU v5e page"},
    AcceleratorSpec{"TPUv5p", kTpu, 8, 459 * kT, 0, 0, 95 * kGiB, 2765 * kG, 300 * kG, 8960, 12.5 * kG, 350, 80, "Google Cloud TPU v5p page"},
};

bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }
bool is_letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }

// "TPU v5p", "tpu-v5p", "A100_80GB": only letters and digits count.
std::string plain(std::string_view name) {
  std::string text;
  for (const char c : name)
    if (is_digit(c) || is_letter(c)) text += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

// Letters and digits of `name` that `text` begins with, punctuation skipped in both; npos: it begins with something else, or goes on in the
// middle of a word or a number.
size_t end_of_name(std::string_view text, std::string_view name) {
  const std::string wanted = plain(name);
  size_t at = 0;
  for (const char c : wanted) {
    while (at < text.size() && !is_digit(text[at]) && !is_letter(text[at])) ++at;
    if (at == text.size() || std::tolower(static_cast<unsigned char>(text[at])) != c) return std::string_view::npos;
    ++at;
  }
  const bool goes_on = at < text.size() && ((is_digit(text[at]) && is_digit(wanted.back())) || (is_letter(text[at]) && is_letter(wanted.back())));
  return goes_on ? std::string_view::npos : at;
}

}  // namespace

std::span<const AcceleratorSpec> device_catalogue() { return kDevices; }

const AcceleratorSpec* find_device(std::string_view name) {
  const auto found = std::find_if(kDevices.begin(), kDevices.end(), [wanted = plain(name)](const AcceleratorSpec& device) { return plain(device.name) == wanted; });
  return found == kDevices.end() ? nullptr : &*found;
}

const AcceleratorSpec* find_device_in_text(std::string_view text) {
  const AcceleratorSpec* best = nullptr;
  for (const AcceleratorSpec& device : kDevices)
    if (end_of_name(text, device.name) != std::string_view::npos && (!best || plain(device.name).size() > plain(best->name).size())) best = &device;
  return best;
}

std::string device_names() {
  std::string names;
  for (const AcceleratorSpec& device : kDevices) names += (names.empty() ? "" : ", ") + std::string(device.name);
  return names;
}

std::string nearest_device_names(std::string_view name) {
  std::vector<std::string_view> names;
  for (const AcceleratorSpec& device : kDevices) names.push_back(device.name);
  const std::string_view word = name.substr(0, 64);
  std::stable_sort(names.begin(), names.end(), [&](std::string_view a, std::string_view b) { return edit_distance(word, a) < edit_distance(word, b); });
  return fmt::format("{}, {} or {}", names[0], names[1], names[2]);
}

std::string device_table() {
  std::string text = "| Device | bf16 TFLOP/s | fp8 | fp4 | Memory GiB | GB/s | Domain | Its link GB/s | Network GB/s | Watts | Source |\n|---|---|---|---|---|---|---|---|---|---|---|\n";
  const auto rate = [](double flops) { return flops > 0 ? fmt::format("{:g}", flops / kT) : std::string("-"); };
  for (const AcceleratorSpec& d : kDevices)
    text += fmt::format("| `{}` | {} | {} | {} | {:.4g} | {:g} | {} | {:g} | {:g} | {:g} | {} |\n", d.name, rate(d.bf16_flops), rate(d.fp8_flops), rate(d.fp4_flops), d.memory_bytes / kGiB,
                        d.memory_bytes_per_second / kG, d.domain_size, d.link_bytes_per_second / kG, d.network_bytes_per_second / kG, d.power_watts, d.source);
  return text;
}

}  // namespace orrery
