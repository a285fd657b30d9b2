#include "comm/discovery.h"

#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/error.h"

namespace orrery {

EnvironmentLookup process_environment() {
  return [](const char* name) -> const char* { return std::getenv(name); };
}

namespace {

std::optional<int> parse_count(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

// The variables of one launcher. A source is there when its rank variable is.
struct Source {
  const char* name;
  const char* rank;
  const char* world_size;
  const char* local_rank;
  const char* local_world_size;
  std::optional<MpiLibrary> mpi;
};

constexpr Source kOpenMpi = {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", MpiLibrary::kOpenMpi};
// PMIx says no size in the environment; srun, which starts ranks by it, does.
constexpr Source kPmix = {"PMIx", "PMIX_RANK", "SLURM_NTASKS", "SLURM_LOCALID", nullptr, MpiLibrary::kOpenMpi};
constexpr Source kPmi = {"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", MpiLibrary::kMpich};
constexpr Source kSlurm = {"Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", nullptr, std::nullopt};
constexpr Source kTorchrun = {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", std::nullopt};

int required(const Source& source, const char* variable, const EnvironmentLookup& environment) {
  const char* text = environment(variable);
  if (text == nullptr)
    throw Error(ErrorCode::kInvalidConfig, "{} is set and {} is not: {} sets both; start again with a launcher, or unset {}", source.rank, variable, source.name, source.rank);
  if (const auto value = parse_count(text)) return *value;
  throw Error(ErrorCode::kInvalidConfig, "{}=\"{}\": {} sets a count there", variable, text, source.name);
}

std::optional<RankEnvironment> read(const Source& source, const EnvironmentLookup& environment) {
  if (environment(source.rank) == nullptr) return std::nullopt;
  RankEnvironment ranks;
  ranks.kind = RankKind::kProcess;
  ranks.rank = required(source, source.rank, environment);
  ranks.world_size = required(source, source.world_size, environment);
  ranks.local_rank = ranks.rank;
  ranks.local_world_size = ranks.world_size;
  if (environment(source.local_rank) != nullptr) ranks.local_rank = required(source, source.local_rank, environment);
  if (source.local_world_size != nullptr && environment(source.local_world_size) != nullptr)
    ranks.local_world_size = required(source, source.local_world_size, environment);
  ranks.mpi = source.mpi;
  ranks.source = source.name;
  if (ranks.rank >= ranks.world_size)
    throw Error(ErrorCode::kInvalidConfig, "{}={} is no rank of {}={}", source.rank, ranks.rank, source.world_size, ranks.world_size);
  return ranks;
}

}  // namespace

RankEnvironment discover_ranks(int ranks_option, const EnvironmentLookup& environment) {
  std::optional<RankEnvironment> found;
  const auto consider = [&](const Source& source) {
    const auto other = read(source, environment);
    if (!other) return;
    if (found && (found->rank != other->rank || found->world_size != other->world_size))
      throw Error(ErrorCode::kInvalidConfig, "{} says rank {} of {} and {} says rank {} of {}; unset the variables of the one that did not start this process",
                  found->source, found->rank, found->world_size, other->source, other->rank, other->world_size);
    if (!found) found = other;
  };
  consider(kOpenMpi);
  // Open MPI's ranks find PMIX_RANK too; only where srun started them it stands alone.
  if (!found && environment("SLURM_NTASKS") != nullptr) consider(kPmix);
  consider(kPmi);
  // Inside a batch script, before any srun, Slurm has set a rank as well: a step says that this process is one.
  if (!found && environment("SLURM_STEP_ID") != nullptr) consider(kSlurm);
  consider(kTorchrun);
  if (ranks_option > 0) {
    if (found && found->world_size > 1 && found->world_size != ranks_option)
      throw Error(ErrorCode::kInvalidConfig, "--ranks says {} and {} says {} ranks; leave --ranks out under a launcher", ranks_option, found->source, found->world_size);
    if (!found || found->world_size == 1) return {.world_size = ranks_option, .local_world_size = ranks_option, .source = "--ranks"};
  }
  if (found) return *found;
  return {.source = "no launcher"};
}

bool first_rank_of_host(const EnvironmentLookup& environment) {
  for (const Source& source : {kOpenMpi, kPmix, kPmi, kSlurm, kTorchrun}) {
    const char* local_rank = environment(source.rank) != nullptr ? environment(source.local_rank) : nullptr;
    if (local_rank != nullptr && parse_count(local_rank).value_or(0) > 0) return false;
  }
  return true;
}

void let_first_rank_speak() { std::this_thread::sleep_for(std::chrono::seconds(5)); }

std::unique_ptr<Transport> make_process_transport(const RankEnvironment& ranks) {
  if (!ranks.mpi)
    throw Error(ErrorCode::kUnsupported, "{} says rank {} of {} but brings no MPI to meet through; start with mpirun, mpiexec or srun --mpi=pmi2, or use --ranks {} for threads",
                ranks.source, ranks.rank, ranks.world_size, ranks.world_size);
  auto transport = make_mpi_transport(*ranks.mpi);
  if (transport->rank() != ranks.rank || transport->size() != ranks.world_size)
    throw Error(ErrorCode::kInvalidConfig, "{} says rank {} of {} and {} says rank {} of {}: the launcher is another library's", ranks.source, ranks.rank, ranks.world_size,
                transport->name(), transport->rank(), transport->size());
  return transport;
}

std::vector<std::string> hosts_command(const std::string& hosts, const std::vector<std::string>& program_and_arguments,
                                       const std::vector<std::string>& installed) {
  int num_ranks = 0;
  std::string host_list;
  for (size_t begin = 0; begin <= hosts.size();) {
    const size_t end = std::min(hosts.find(',', begin), hosts.size());
    const std::string entry = hosts.substr(begin, end - begin);
    const size_t colon = std::min(entry.find(':'), entry.size());
    const auto slots = colon == entry.size() ? std::optional<int>(1) : parse_count(std::string_view(entry).substr(colon + 1));
    // A leading '-' would reach ssh as an option.
    if (colon == 0 || entry[0] == '-' || !slots || *slots == 0)
      throw Error(ErrorCode::kInvalidArgument, "--hosts {}: \"{}\" is no host; write name or name:ranks, separated by commas", hosts, entry);
    num_ranks += *slots;
    host_list += fmt::format("{}{}:{}", host_list.empty() ? "" : ",", entry.substr(0, colon), *slots);
    begin = end + 1;
  }
  const auto has = [&](std::string_view name) { return std::find(installed.begin(), installed.end(), name) != installed.end(); };
  std::vector<std::string> command;
  if (has("mpirun.openmpi") || (has("mpirun") && !has("mpiexec.mpich")))
    command = {has("mpirun.openmpi") ? "mpirun.openmpi" : "mpirun", "--host", host_list, "-n", std::to_string(num_ranks)};
  else if (has("mpiexec.mpich"))
    command = {"mpiexec.mpich", "-hosts", host_list, "-n", std::to_string(num_ranks)};
  else
    throw Error(ErrorCode::kUnsupported, "--hosts needs mpirun on this machine; install openmpi-bin or mpich");
  command.insert(command.end(), program_and_arguments.begin(), program_and_arguments.end());
  return command;
}

}  // namespace orrery
