// Which rank this process is, or that its ranks are threads: from --ranks and from what launchers leave in the environment. A pure
// function of both; opening the transport that it names is make_process_transport.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/mpi_transport.h"
#include "comm/transport.h"

namespace orrery {

enum class RankKind { kThreads, kProcess };

struct RankEnvironment {
  RankKind kind = RankKind::kThreads;
  int rank = 0, world_size = 1;
  int local_rank = 0, local_world_size = 1;  // on this host
  std::optional<MpiLibrary> mpi;             // of a process; none: the launcher brings no way to meet
  std::string source;                        // "--ranks", "Open MPI", ...: printed at the start
};

/// The value of an environment variable, or null.
using EnvironmentLookup = std::function<const char*(const char*)>;
EnvironmentLookup process_environment();

/// The first of: --ranks (`ranks_option`, 0 when it was not given), Open MPI (OMPI_COMM_WORLD_*), PMIx, PMI (MPICH's Hydra, srun --mpi=pmi2),
/// Slurm, RANK / WORLD_SIZE as torchrun sets them; else one rank. Slurm's variables count only where no MPI launcher is seen: under
/// mpirun inside a job they describe its daemon. Errors: kInvalidConfig when two sources disagree, naming both; when one is half there
/// or no number.
RankEnvironment discover_ranks(int ranks_option, const EnvironmentLookup& environment = process_environment());

/// False where a launcher says that this host has a rank of a lower number: what goes wrong before the ranks can meet is told by the first of each
/// host, because it depends on the host at most (a library, a version of this program).
bool first_rank_of_host(const EnvironmentLookup& environment = process_environment());
/// For the other ranks of the host, before they leave without a word: a launcher ends the job when the first rank has left with a status, which must not
/// be before the one that speaks has spoken. Returns after a few seconds where nobody ends it.
void let_first_rank_speak();

/// Meets the other processes. Errors: kUnsupported without a library to meet through; kInvalidConfig when MPI counts otherwise.
std::unique_ptr<Transport> make_process_transport(const RankEnvironment& ranks);

/// `--hosts a,b:4`: the command that starts `program_and_arguments` there over ssh, one rank a host or as many as stand behind the colon,
/// with the first launcher of `installed` ("mpirun.openmpi", "mpiexec.mpich", "mpirun"). Errors: kInvalidArgument, kUnsupported.
std::vector<std::string> hosts_command(const std::string& hosts, const std::vector<std::string>& program_and_arguments,
                                       const std::vector<std::string>& installed);

}  // namespace orrery
