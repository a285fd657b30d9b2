#include "topology/cluster.h"

#include <fstream>
#include <sstream>

namespace orrery {

const TomlSchema<Cluster>& cluster_schema() {
  static const TomlSchema<Cluster> kSchema = [] {
    TomlSchema<Cluster> schema;
    constexpr double kTiny = 1e-9;
    schema.repeated_section("devices", &Cluster::devices)
        .key("kind", &DevicesSection::kind, {.help = "the device, as the catalogue below names it", .default_text = "required"})
        .key("count", &DevicesSection::count, {.help = "devices of this kind in the cluster", .number = KeyUnit::kCount, .min = 1, .default_text = "required"})
        .key("per_node", &DevicesSection::per_node, {.help = "devices of one host", .min = 1})
        .key("bf16_tflops", &DevicesSection::bf16_tflops, {.help = "dense peak of one device", .min = kTiny, .default_text = "the catalogue's"})
        .key("memory_gib", &DevicesSection::memory_gib, {.help = "memory of one device", .unit = "GiB", .min = kTiny, .default_text = "the catalogue's"})
        .key("memory_gbytes_per_second", &DevicesSection::memory_gbytes_per_second, {.help = "memory bandwidth of one device", .min = kTiny, .default_text = "the catalogue's"})
        .key("power_watts", &DevicesSection::power_watts, {.help = "power limit of one device", .min = kTiny, .default_text = "the catalogue's"})
        .key("domain_gbytes_per_second", &DevicesSection::domain_gbytes_per_second, {.help = "as in [links], of this kind alone", .min = kTiny, .default_text = "that of [links]"})
        .key("domain_size", &DevicesSection::domain_size, {.help = "as in [links], of this kind alone", .min = 1, .default_text = "that of [links]"})
        .key("network_gbytes_per_second", &DevicesSection::network_gbytes_per_second, {.help = "as in [links], of this kind alone", .min = kTiny, .default_text = "that of [links]"})
        .key("per_device_hour", &DevicesSection::per_device_hour, {.help = "as in [prices], of this kind alone", .min = 0, .default_text = "that of [prices]"});
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

AcceleratorSpec Cluster::device_spec(size_t group) const {
  const DevicesSection& hosts = devices[group];
  AcceleratorSpec spec = *find_device(hosts.kind);
  constexpr double kG = 1e9, kGiB = 1073741824.0;
  if (hosts.bf16_tflops) {
    const double ratio = *hosts.bf16_tflops * 1e12 / spec.bf16_flops;
    spec.bf16_flops *= ratio, spec.fp8_flops *= ratio, spec.fp4_flops *= ratio;
  }
  if (hosts.memory_gib) spec.memory_bytes = *hosts.memory_gib * kGiB;
  if (hosts.memory_gbytes_per_second) spec.memory_bytes_per_second = *hosts.memory_gbytes_per_second * kG;
  if (hosts.power_watts) spec.power_watts = *hosts.power_watts;
  const auto given = [](const std::optional<double>& own, const std::optional<double>& all, double& rate) {
    if (own || all) rate = (own ? *own : *all) * kG;
  };
  given(hosts.domain_gbytes_per_second, links.domain_gbytes_per_second, spec.link_bytes_per_second);
  given(hosts.network_gbytes_per_second, links.network_gbytes_per_second, spec.network_bytes_per_second);
  return spec;
}

int64_t Cluster::domain_size(size_t group) const {
  const DevicesSection& hosts = devices[group];
  return hosts.domain_size ? *hosts.domain_size : links.domain_size.value_or(find_device(hosts.kind)->domain_size);
}

bool Cluster::has_prices() const {
  bool has = prices.per_kwh > 0;
  for (size_t group = 0; group < devices.size(); ++group) has = has || per_device_hour(group) > 0;
  return has;
}

int64_t Cluster::num_devices() const {
  int64_t sum = 0;
  for (const DevicesSection& hosts : devices) sum += hosts.count;
  return sum;
}

std::string devices_text(const Cluster& cluster) {
  std::string text;
  for (const DevicesSection& hosts : cluster.devices)
    if (hosts.count > 0) text += fmt::format("{}{} {}", text.empty() ? "" : " + ", hosts.count, find_device(hosts.kind)->name);
  return text;
}

namespace {

void check_group(const Cluster& cluster, size_t group, const ConfigText& text) {
  const DevicesSection& hosts = cluster.devices[group];
  const std::string here = element_path("devices", group);
  const auto own = [&](std::string_view key) { return here + "." + std::string(key); };
  if (hosts.kind.empty()) text.fail(here, "devices.kind is missing", "one of " + device_names());
  if (!find_device(hosts.kind))
    text.fail(own("kind"), fmt::format("`devices.kind` \"{}\" is not in the catalogue", hosts.kind),
              fmt::format("did you mean {}?\nthe catalogue has {}\ndocs/cluster_toml.md lists them; keys of [devices] change what a device of yours has otherwise", nearest_device_names(hosts.kind), device_names()));
  for (size_t other = 0; other < group; ++other)
    if (find_device(hosts.kind) == find_device(cluster.devices[other].kind))
      text.fail(own("kind"), fmt::format("`devices.kind` \"{}\" is described twice", hosts.kind), "one [[devices]] holds all hosts of a kind: give it the sum as its count");
  if (hosts.count == 0) text.fail(here, "devices.count is missing", fmt::format("how many {} there are", hosts.kind));
  if (hosts.count > hosts.per_node && hosts.count % hosts.per_node != 0)
    text.fail(own("count"), fmt::format("`devices.count` = {} is not a multiple of devices.per_node = {}", hosts.count, hosts.per_node));
  const AcceleratorSpec spec = cluster.device_spec(group);
  if (cluster.domain_size(group) > 1 && spec.link_bytes_per_second < spec.network_bytes_per_second) {
    std::string place = here;
    for (const std::string& key : {std::string("links.network_gbytes_per_second"), std::string("links.domain_gbytes_per_second"), own("network_gbytes_per_second"), own("domain_gbytes_per_second")})
      if (text.given(key)) place = key;
    text.fail(place, fmt::format("the link inside a domain of {} ({:g} GB/s) is slower than the network between domains ({:g} GB/s)", hosts.kind, spec.link_bytes_per_second / 1e9, spec.network_bytes_per_second / 1e9),
              "set domain_size = 1 where there is no fast link");
  }
  if (spec.idle_watts >= spec.power_watts)
    text.fail(own("power_watts"), fmt::format("`devices.power_watts` = {} is not above the device's idle power, {} W", spec.power_watts, spec.idle_watts));
}

}  // namespace

Cluster parse_cluster(std::string_view toml_text, const std::string& file) {
  Cluster cluster;
  const ConfigText text = cluster_schema().read(cluster, toml_text, file);
  if (cluster.devices.empty())
    throw Error(ErrorCode::kInvalidConfig, "{}: no [devices]: wanted devices.kind and devices.count; kinds are {}", file, device_names());
  if (cluster.devices.size() > kMaxDeviceGroups)
    text.fail(element_path("devices", kMaxDeviceGroups), fmt::format("{} kinds of devices; at most {} are planned for together", cluster.devices.size(), kMaxDeviceGroups), "leave out the kinds that add least");
  for (size_t group = 0; group < cluster.devices.size(); ++group) check_group(cluster, group, text);
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
