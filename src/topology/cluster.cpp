#include "topology/cluster.h"

#include <fstream>
#include <sstream>

namespace orrery {

const TomlSchema<Cluster>& cluster_schema() {
  static const TomlSchema<Cluster> kSchema = [] {
    TomlSchema<Cluster> schema;
    constexpr double kTiny = 1e-9;
    schema.section("devices", &Cluster::devices)
        .key("kind", &DevicesSection::kind, {.help = "the device, as the catalogue names it"})
        .key("count", &DevicesSection::count, {.help = "devices in the cluster", .number = KeyUnit::kCount, .min = 1})
        .key("per_node", &DevicesSection::per_node, {.help = "devices of one host", .min = 1})
        .key("bf16_tflops", &DevicesSection::bf16_tflops, {.help = "dense peak of one device", .min = kTiny, .default_text = "the catalogue's"})
        .key("memory_gib", &DevicesSection::memory_gib, {.help = "memory of one device", .unit = "GiB", .min = kTiny, .default_text = "the catalogue's"})
        .key("memory_gbytes_per_second", &DevicesSection::memory_gbytes_per_second, {.help = "memory bandwidth of one device", .min = kTiny, .default_text = "the catalogue's"})
        .key("power_watts", &DevicesSection::power_watts, {.help = "power limit of one device", .min = kTiny, .default_text = "the catalogue's"});
    schema.section("links", &Cluster::links)
        .key("domain_gbytes_per_second", &LinksSection::domain_gbytes_per_second, {.help = "fast link of one device, one direction", .min = kTiny, .default_text = "the catalogue's"})
        .key("domain_size", &LinksSection::domain_size, {.help = "devices joined by the fast link", .min = 1, .default_text = "the catalogue's"})
        .key("network_gbytes_per_second", &LinksSection::network_gbytes_per_second, {.help = "network of one device, one direction", .min = kTiny, .default_text = "the catalogue's"})
        .key("host_gbytes_per_second", &LinksSection::host_gbytes_per_second, {.help = "link of one device to its host's memory", .min = kTiny});
    schema.section("tiers", &Cluster::tiers)
        .key("host_gib_per_device", &TiersSection::host_gib_per_device, {.help = "host memory for one device", .unit = "GiB", .min = 0})
        .key("storage_gbytes_per_second", &TiersSection::storage_gbytes_per_second, {.help = "rate of the whole cluster to checkpoint storage", .min = kTiny});
    schema.section("prices", &Cluster::prices)
        .key("per_device_hour", &PricesSection::per_device_hour, {.help = "price of a device for an hour", .min = 0})
        .key("per_kwh", &PricesSection::per_kwh, {.help = "price of a kilowatt-hour", .min = 0})
        .key("pue", &PricesSection::pue, {.help = "energy at the meter over energy of the nodes", .min = 1, .max = 5})
        .key("node_overhead_watts", &PricesSection::node_overhead_watts, {.help = "processors, fans, adapters and losses of a host", .min = 0})
        .key("carbon_g_per_kwh", &PricesSection::carbon_g_per_kwh, {.help = "carbon dioxide of a kilowatt-hour; 0: not stated", .min = 0});
    schema.section("failures", &Cluster::failures)
        .key("device_mtbf_hours", &FailuresSection::device_mtbf_hours, {.help = "mean time between faults of one device that stop the job", .min = kTiny})
        .key("restart_seconds", &FailuresSection::restart_seconds, {.help = "from a fault to the next step", .min = 0});
    return schema;
  }();
  return kSchema;
}

AcceleratorSpec Cluster::device_spec() const {
  AcceleratorSpec spec = *find_device(devices.kind);
  constexpr double kG = 1e9, kGiB = 1073741824.0;
  if (devices.bf16_tflops) {
    const double ratio = *devices.bf16_tflops * 1e12 / spec.bf16_flops;
    spec.bf16_flops *= ratio, spec.fp8_flops *= ratio, spec.fp4_flops *= ratio;
  }
  if (devices.memory_gib) spec.memory_bytes = *devices.memory_gib * kGiB;
  if (devices.memory_gbytes_per_second) spec.memory_bytes_per_second = *devices.memory_gbytes_per_second * kG;
  if (devices.power_watts) spec.power_watts = *devices.power_watts;
  if (links.domain_gbytes_per_second) spec.link_bytes_per_second = *links.domain_gbytes_per_second * kG;
  if (links.network_gbytes_per_second) spec.network_bytes_per_second = *links.network_gbytes_per_second * kG;
  return spec;
}

int64_t Cluster::domain_size() const { return links.domain_size.value_or(find_device(devices.kind)->domain_size); }

Cluster parse_cluster(std::string_view toml_text, const std::string& file) {
  Cluster cluster;
  const ConfigText text = cluster_schema().read(cluster, toml_text, file);
  if (cluster.devices.kind.empty()) text.fail("devices.kind", fmt::format("{}: devices.kind is missing: one of {}", file, device_names()));
  if (!find_device(cluster.devices.kind))
    text.fail("devices.kind", fmt::format("`devices.kind` \"{}\" is not in the catalogue", cluster.devices.kind), "one of " + device_names());
  if (cluster.devices.count == 0) text.fail("devices.count", fmt::format("{}: devices.count is missing: how many devices", file));
  if (cluster.devices.count > cluster.devices.per_node && cluster.devices.count % cluster.devices.per_node != 0)
    text.fail("devices.count", fmt::format("`devices.count` = {} is not a multiple of devices.per_node = {}", cluster.devices.count, cluster.devices.per_node));
  const AcceleratorSpec spec = cluster.device_spec();
  if (cluster.domain_size() > 1 && spec.link_bytes_per_second < spec.network_bytes_per_second)
    text.fail(cluster.links.domain_gbytes_per_second ? "links.domain_gbytes_per_second" : "links.network_gbytes_per_second",
              fmt::format("the link inside a domain ({:g} GB/s) is slower than the network between domains ({:g} GB/s)", spec.link_bytes_per_second / 1e9, spec.network_bytes_per_second / 1e9),
              "set links.domain_size = 1 where there is no fast link");
  if (spec.idle_watts >= spec.power_watts)
    text.fail("devices.power_watts", fmt::format("`devices.power_watts` = {} is not above the device's idle power, {} W", spec.power_watts, spec.idle_watts));
  return cluster;
}

Cluster load_cluster(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error(ErrorCode::kInvalidArgument, "{}: cannot be read; wanted a cluster description (examples/clusters)", path);
  std::ostringstream text;
  text << in.rdbuf();
  return parse_cluster(text.str(), path);
}

}  // namespace orrery
