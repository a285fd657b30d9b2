// A cluster as a file describes it (cluster.toml): how many devices of which kinds, the links as a hierarchy, slower memory tiers,
// prices, energy and failures. What the file leaves out comes from the device catalogue. Pure data; planner/search.h plans for it;
// docs/cluster_toml.md explains every key.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/toml_schema.h"
#include "topology/device_catalogue.h"

namespace orrery {

/// Hosts of one kind: [devices], or an element of [[devices]] where there are several kinds. What is not given is [links]' or [prices]',
/// else the catalogue's.
struct DevicesSection {
  std::string kind;  // a name of the catalogue
  int64_t count = 0;
  int64_t per_node = 8;
  std::optional<double> bf16_tflops, memory_gib, memory_gbytes_per_second, power_watts;
  std::optional<double> domain_gbytes_per_second, network_gbytes_per_second, per_device_hour;
  std::optional<int64_t> domain_size;
  bool operator==(const DevicesSection&) const = default;
};
struct LinksSection {
  std::optional<double> domain_gbytes_per_second, network_gbytes_per_second;  // per device and direction
  std::optional<int64_t> domain_size;
  double host_gbytes_per_second = 25;  // per device, to its host's memory (PCIe, CXL)
  bool operator==(const LinksSection&) const = default;
};
struct TiersSection {
  double host_gib_per_device = 128;
  double storage_gbytes_per_second = 100;  // of the whole cluster, to where checkpoints go
  bool operator==(const TiersSection&) const = default;
};
struct PricesSection {
  double per_device_hour = 0;      // money
  double per_kwh = 0;              // money
  double pue = 1.2;                // energy at the meter over energy of the nodes
  double node_overhead_watts = 1900;
  double carbon_g_per_kwh = 0;     // 0: not stated
  bool operator==(const PricesSection&) const = default;
};
struct FailuresSection {
  double device_mtbf_hours = 50000;   // of one device, anything that stops the job
  double restart_seconds = 300;       // from the fault to the first new step, the load included
  bool operator==(const FailuresSection&) const = default;
};

/// As many kinds of hosts at most: the search tries them in every order.
inline constexpr size_t kMaxDeviceGroups = 4;

struct Cluster {
  std::vector<DevicesSection> devices;  // groups of hosts, at least one
  LinksSection links;
  TiersSection tiers;
  PricesSection prices;
  FailuresSection failures;
  bool operator==(const Cluster&) const = default;

  /// The catalogue's entry of a group's device with what the file changes.
  AcceleratorSpec device_spec(size_t group) const;
  int64_t domain_size(size_t group) const;
  double per_device_hour(size_t group) const { return devices[group].per_device_hour.value_or(prices.per_device_hour); }
  bool has_prices() const;
  int64_t num_devices() const;
};

/// "64 H100 + 64 A100"; kinds of which none is left are left out.
std::string devices_text(const Cluster& cluster);

const TomlSchema<Cluster>& cluster_schema();

/// Errors: kInvalidConfig with file:line:col for unknown keys, devices that the catalogue lacks (with the names nearest to it), a kind that is
/// described twice, counts that do not fit together, rates that are not positive; kInvalidArgument when a file cannot be read.
Cluster parse_cluster(std::string_view toml_text, const std::string& file);
Cluster load_cluster(const std::string& path);

}  // namespace orrery
