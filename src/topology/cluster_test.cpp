// A cluster description: what is read, what comes from the catalogue, and that contradictions are refused with a place.
#include "topology/cluster.h"

#include <gtest/gtest.h>

namespace orrery {
namespace {

std::string message_of(std::string_view text) {
  try {
    parse_cluster(text, "c.toml");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Cluster, FromTheCatalogueAndTheFile) {
  const Cluster cluster = parse_cluster("[devices]\nkind = \"H100\"\ncount = \"16Ki\"\n[links]\nnetwork_gbytes_per_second = 25\n", "c.toml");
  ASSERT_EQ(cluster.devices.size(), 1u);
  EXPECT_EQ(cluster.num_devices(), 16384);
  EXPECT_EQ(cluster.device_spec(0).network_bytes_per_second, 25e9);
  EXPECT_EQ(cluster.device_spec(0).bf16_flops, find_device("H100")->bf16_flops);
  EXPECT_EQ(cluster.domain_size(0), 8);
}

// One kind written either way is the same cluster; of several, each has its own keys, then [links]' and [prices]', then the catalogue's.
TEST(Cluster, SeveralKinds) {
  const std::string one = "kind = \"H100\"\ncount = 16\n";
  EXPECT_EQ(parse_cluster("[devices]\n" + one, "c.toml"), parse_cluster("[[devices]]\n" + one, "c.toml"));
  const std::string text = "[[devices]]\n" + one + "network_gbytes_per_second = 40\nper_device_hour = 3\n[[devices]]\nkind = \"a100 40gb\"\ncount = 8\ndomain_size = 4\n";
  const Cluster own = parse_cluster(text, "c.toml");
  EXPECT_EQ(devices_text(own), "16 H100 + 8 A100-40GB");
  EXPECT_EQ(own.num_devices(), 24);
  EXPECT_EQ(own.device_spec(0).network_bytes_per_second, 40e9);
  EXPECT_EQ(own.device_spec(1).network_bytes_per_second, find_device("A100-40GB")->network_bytes_per_second);
  EXPECT_EQ(own.domain_size(0), 8);
  EXPECT_EQ(own.domain_size(1), 4);
  const Cluster all = parse_cluster(text + "[links]\nnetwork_gbytes_per_second = 20\ndomain_size = 2\n[prices]\nper_device_hour = 1\n", "c.toml");
  EXPECT_EQ(all.device_spec(0).network_bytes_per_second, 40e9);
  EXPECT_EQ(all.device_spec(1).network_bytes_per_second, 20e9);
  EXPECT_EQ(all.domain_size(0), 2);
  EXPECT_EQ(all.domain_size(1), 4);
  EXPECT_EQ(all.per_device_hour(0), 3);
  EXPECT_EQ(all.per_device_hour(1), 1);
  EXPECT_EQ(parse_cluster(cluster_schema().write(all), "c.toml"), all);
}

// The place is that of the kind at fault, not of the first.
TEST(Cluster, MistakesInSeveralKinds) {
  const std::string first = "[[devices]]\nkind = \"H100\"\ncount = 16\n";
  EXPECT_NE(message_of(first + "[[devices]]\nkind = \"A100\"\ncount = 12\n").find("c.toml:6:"), std::string::npos);
  EXPECT_NE(message_of(first + "[[devices]]\nkind = \"A100\"\n").find("c.toml:4:"), std::string::npos);
  EXPECT_NE(message_of(first + "[[devices]]\ncount = 8\n").find("devices.kind is missing"), std::string::npos);
  const std::string twice = message_of(first + "[[devices]]\nkind = \"h100\"\ncount = 8\n");
  EXPECT_NE(twice.find("c.toml:5:"), std::string::npos) << twice;
  EXPECT_NE(twice.find("described twice"), std::string::npos);
  EXPECT_NE(message_of(first + "[[devices]]\nkind = \"A100\"\ncount = 8\nspeed = 2\n").find("c.toml:7:"), std::string::npos);
  EXPECT_NE(message_of("devices = 3\n").find("[[devices]]"), std::string::npos);
  std::string many;
  for (const char* kind : {"V100", "A100", "H100", "H200", "B200"}) many += fmt::format("[[devices]]\nkind = \"{}\"\ncount = 8\n", kind);
  EXPECT_NE(message_of(many).find("at most 4"), std::string::npos);
}

// A name that merely begins with one of the catalogue is no device, and the message has the names that were probably meant.
TEST(Cluster, OnlyNamesOfTheCatalogue) {
  for (const char* name : {"H1000", "H100-40GB", "A100-80GB", "A", "H", "B2000", "GB200-NVL72", "H100 SXM", ""})
    EXPECT_EQ(find_device(name), nullptr) << name;
  EXPECT_EQ(find_device("tpu v5p")->name, "TPUv5p");
  EXPECT_EQ(find_device("h100")->name, "H100");
  const std::string message = message_of("[devices]\ncount = 8\nkind = \"H1000\"\n");
  EXPECT_NE(message.find("c.toml:3:8"), std::string::npos) << message;
  EXPECT_NE(message.find("did you mean H100, "), std::string::npos) << message;
  EXPECT_NE(message.find("TPUv5p"), std::string::npos) << message;
  EXPECT_NE(message.find("docs/cluster_toml.md"), std::string::npos) << message;
}

// Tables of other people's runs say more than a name, but a longer number or word is another device.
TEST(DeviceCatalogue, NamesInTexts) {
  const std::pair<const char*, const char*> known[] = {{"H100-80GB", "H100"}, {"A100-40GB", "A100-40GB"}, {"A100_40GB SXM", "A100-40GB"}, {"A100 80GB", "A100"}, {"a100-sxm4", "A100"}, {"B200-180GB", "B200"}, {"TPU v5p-256", "TPUv5p"}};
  for (const auto& [text, name] : known) {
    ASSERT_NE(find_device_in_text(text), nullptr) << text;
    EXPECT_EQ(find_device_in_text(text)->name, name) << text;
  }
  for (const char* text : {"H1000", "Cerebras", "", "B2", "TPUv5pro"}) EXPECT_EQ(find_device_in_text(text), nullptr) << text;
}

TEST(Cluster, ADomainSlowerThanTheNetworkIsRefused) {
  const std::string head = "[devices]\nkind = \"H100\"\ncount = 16\n[links]\n";
  EXPECT_THROW(parse_cluster(head + "domain_gbytes_per_second = 10\n", "c.toml"), Error);
  EXPECT_THROW(parse_cluster(head + "network_gbytes_per_second = 500\n", "c.toml"), Error);
  EXPECT_NO_THROW(parse_cluster(head + "network_gbytes_per_second = 500\ndomain_size = 1\n", "c.toml"));
}

TEST(Cluster, ContradictionsAreRefused) {
  EXPECT_NE(message_of("[devices]\ncount = 8\n").find("devices.kind"), std::string::npos);
  EXPECT_NE(message_of("[devices]\nkind = \"Abacus\"\ncount = 8\n").find("H100"), std::string::npos);
  EXPECT_NE(message_of("[devices]\nkind = \"H100\"\n").find("devices.count"), std::string::npos);
  EXPECT_NE(message_of("[devices]\nkind = \"H100\"\ncount = 12\n").find("multiple"), std::string::npos);
  EXPECT_NE(message_of("[devices]\nkind = \"H100\"\ncount = 8\n[links]\nnetwork_gbytes_per_second = 0\n").find("below"), std::string::npos);
  EXPECT_NE(message_of("[devices]\nkind = \"H100\"\ncount = 8\npower_watts = 50\n").find("idle"), std::string::npos);
  EXPECT_NE(message_of("[devices]\nkind = \"H100\"\ncount = 8\nspeed = 1\n"), "");
}

}  // namespace
}  // namespace orrery
