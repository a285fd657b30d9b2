// The accelerators that plans can be priced for without having one: dense peak rates, memory, power, and where each figure comes
// from. A figure is the vendor's datasheet; what a program reaches of it is the cost model's business (planner/cost_constants.h).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace orrery {

/// Devices of one generation share the constants of the cost model.
enum class DeviceGeneration : uint8_t { kVolta, kAmpere, kHopper, kBlackwell, kCdna, kTpu, kCpu };

struct AcceleratorSpec {
  std::string_view name;
  DeviceGeneration generation{};
  int num_units = 0;               // streaming multiprocessors, compute units, cores: what tiles are dealt to
  double bf16_flops = 0;           // dense, per second (fp16 where the device has no bf16)
  double fp8_flops = 0, fp4_flops = 0;  // 0: none, bf16 is used
  double memory_bytes = 0, memory_bytes_per_second = 0;
  double link_bytes_per_second = 0;     // one direction, to the other devices of its domain
  int domain_size = 8;                  // devices that this link joins
  double network_bytes_per_second = 0;  // one direction, the usual adapter per device
  double power_watts = 0, idle_watts = 0;
  std::string_view source;
};

std::span<const AcceleratorSpec> device_catalogue();

/// By its name; letters' case, spaces and punctuation do not count ("tpu v5p"). nullptr: not in the catalogue.
const AcceleratorSpec* find_device(std::string_view name);

/// The device that a table of other people's runs means: the longest name with which the text begins and that ends where a word or a number
/// does ("H100-80GB", "A100 SXM4", not "H1000"). nullptr: none.
const AcceleratorSpec* find_device_in_text(std::string_view text);

/// "A100, H100, ...", for messages.
std::string device_names();
/// Those most like a name that the catalogue lacks, nearest first: "H100, H800 or H200".
std::string nearest_device_names(std::string_view name);

/// A Markdown table of all devices and where their figures come from.
std::string device_table();

}  // namespace orrery
