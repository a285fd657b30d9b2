#include "train/prepare_together.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>

#include "base/error.h"

namespace orrery {
namespace {

namespace fs = std::filesystem;

// "beta" has two values; all other names have one.
std::map<std::string, std::string> numerics_values(const std::string& key) {
  std::map<std::string, std::string> values;
  std::istringstream words(key);
  for (std::string name, value; words >> name >> value;) {
    if (name == "beta") {
      std::string second;
      words >> second;
      value += " " + second;
    }
    values[name] = value;
  }
  return values;
}

// Everything that could differ between the processes of a run and must not.
void check_alike(ProcessWorld& world, const RunSetup& setup) {
  const DataParallel& data = setup.plan_options.data;
  const std::string mine = fmt::format("{} zero_stage {} hybrid_shard_size {} reshard_after_forward {} prefetch {}", setup.numerics_key(), data.zero_stage, data.shard_group_size,
                                       data.reshard_after_forward, data.prefetch);
  const std::vector<std::string> all = world.gather_text(mine, "compare the settings");
  for (size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank] != all[0])
      throw Error(ErrorCode::kInvalidConfig, "rank {} is set up otherwise than rank 0 (\"there\" is rank 0):\n{}give all ranks the same program, run file and options", rank,
                  numerics_difference(all[0], all[rank]));
}

}  // namespace

// A key is names and values separated by blanks (run_setup.cpp).
std::string numerics_difference(const std::string& there, const std::string& here) {
  const std::map<std::string, std::string> old_values = numerics_values(there), new_values = numerics_values(here);
  std::string text;
  for (const auto& [name, value] : new_values) {
    const auto old = old_values.find(name);
    if (old == old_values.end() || old->second != value)
      text += fmt::format("  {}: {} there, {} here\n", name, old == old_values.end() ? "nothing" : old->second, value);
  }
  return text;
}

RunSetup prepare_together(const RunConfig& config, int num_threads, ProcessWorld& world, const SetupNote& note) {
  RunResources resources;
  resources.num_threads = world.share_threads(num_threads);
  resources.num_ranks = world.size();
  resources.num_local_ranks = world.environment().local_world_size;
  const std::string place = (fs::path(config.checkpoint.dir) / ".world").string();
  std::optional<RunSetup> setup;
  // The first to need shards and tokenizer makes them; the others find them.
  const std::string token = world.from_first_rank("prepare the run", world.deadlines().prepare_ms, [&] {
    setup.emplace(prepare_run(config, resources, note));
    const std::string text = fmt::format("{} {}", ::getpid(), std::chrono::steady_clock::now().time_since_epoch().count());
    std::ofstream(place, std::ios::binary) << text;
    return text;
  });
  world.together("read what rank 0 prepared", world.deadlines().prepare_ms, [&] {
    if (world.rank() == 0) return;
    std::ifstream file(place, std::ios::binary);
    if (std::string found{std::istreambuf_iterator<char>(file), {}}; found != token)
      throw Error(ErrorCode::kInvalidConfig, "{} is not the folder that rank 0 sees under this name; ranks on several machines need checkpoint.dir on a file system that they share", config.checkpoint.dir);
    setup.emplace(prepare_run(config, resources, [](std::string_view) {}));
  });
  if (world.rank() == 0) fs::remove(place);
  world.together("compare the settings", 0, [&] { check_alike(world, *setup); });
  // One budget for all, so that all choose the same plan.
  for (const int64_t budget : world.gather(setup->plan_options.memory_budget_bytes, "share the memory"))
    setup->plan_options.memory_budget_bytes = std::min(setup->plan_options.memory_budget_bytes, budget);
  return std::move(*setup);
}

}  // namespace orrery
