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
  EXPECT_EQ(cluster.devices.count, 16384);
  EXPECT_EQ(cluster.device_spec().network_bytes_per_second, 25e9);
  EXPECT_EQ(cluster.device_spec().bf16_flops, find_device("H100")->bf16_flops);
  EXPECT_EQ(cluster.domain_size(), 8);
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
