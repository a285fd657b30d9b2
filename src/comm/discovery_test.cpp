// Proves which launcher's variables win, that two that disagree are an error naming both, and what --hosts starts.
#include "comm/discovery.h"

#include <gtest/gtest.h>

#include <map>

#include "base/error.h"

namespace orrery {
namespace {

using Variables = std::map<std::string, std::string>;

RankEnvironment discover(int option, const Variables& variables) {
  return discover_ranks(option, [&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}
std::string error_of(int option, const Variables& variables) {
  try {
    discover(option, variables);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidConfig);
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

const Variables kUnderOpenMpi = {{"OMPI_COMM_WORLD_RANK", "2"}, {"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                 {"PMIX_RANK", "2"}};

TEST(Discovery, EachSource) {
  EXPECT_EQ(discover(0, {}).world_size, 1);
  const RankEnvironment threads = discover(4, {});
  EXPECT_EQ(threads.kind, RankKind::kThreads);
  EXPECT_EQ(threads.world_size, 4);
  const RankEnvironment open_mpi = discover(0, kUnderOpenMpi);
  EXPECT_EQ(open_mpi.kind, RankKind::kProcess);
  EXPECT_EQ(open_mpi.rank, 2);
  EXPECT_EQ(open_mpi.local_rank, 0);
  EXPECT_EQ(open_mpi.local_world_size, 2);
  EXPECT_EQ(open_mpi.mpi, MpiLibrary::kOpenMpi);
  EXPECT_EQ(discover(0, {{"PMI_RANK", "1"}, {"PMI_SIZE", "3"}}).mpi, MpiLibrary::kMpich);
  EXPECT_EQ(discover(0, {{"PMIX_RANK", "1"}, {"SLURM_NTASKS", "3"}, {"SLURM_PROCID", "1"}, {"SLURM_STEP_ID", "0"}}).mpi, MpiLibrary::kOpenMpi);
  const RankEnvironment torchrun = discover(0, {{"RANK", "1"}, {"WORLD_SIZE", "2"}});
  EXPECT_EQ(torchrun.source, "torchrun");
  EXPECT_THROW(make_process_transport(torchrun), Error);
}

// The first of a host speaks before the ranks have met, and so does everybody of whom no launcher says where it is.
TEST(Discovery, FirstRankOfHost) {
  const auto first = [](const Variables& variables) {
    return first_rank_of_host([&](const char* name) -> const char* {
      const auto found = variables.find(name);
      return found == variables.end() ? nullptr : found->second.c_str();
    });
  };
  EXPECT_TRUE(first({}));
  EXPECT_TRUE(first(kUnderOpenMpi)) << "rank 2 is the first of the second host";
  Variables second = kUnderOpenMpi;
  second["OMPI_COMM_WORLD_LOCAL_RANK"] = "1";
  EXPECT_FALSE(first(second));
  EXPECT_FALSE(first({{"PMI_RANK", "1"}, {"MPI_LOCALRANKID", "1"}}));
  EXPECT_TRUE(first({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}));
  EXPECT_TRUE(first({{"LOCAL_RANK", "1"}})) << "left over: nothing says that this is a rank";
}

TEST(Discovery, SlurmCountsOnlyInAStepWithoutMpi) {
  const Variables batch = {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}};
  EXPECT_EQ(discover(0, batch).world_size, 1);
  Variables step = batch;
  step["SLURM_STEP_ID"] = "0";
  EXPECT_EQ(discover(0, step).world_size, 8);
  Variables both = kUnderOpenMpi;
  both.insert(step.begin(), step.end());
  EXPECT_EQ(discover(0, both).rank, 2);
}

TEST(Discovery, TwoThatDisagreeAreNamed) {
  Variables both = kUnderOpenMpi;
  both["RANK"] = "3";
  both["WORLD_SIZE"] = "4";
  const std::string message = error_of(0, both);
  EXPECT_NE(message.find("Open MPI says rank 2 of 4"), std::string::npos) << message;
  EXPECT_NE(message.find("torchrun says rank 3 of 4"), std::string::npos) << message;
  EXPECT_NE(error_of(8, kUnderOpenMpi).find("--ranks says 8 and Open MPI says 4"), std::string::npos);
  EXPECT_EQ(discover(4, kUnderOpenMpi).kind, RankKind::kProcess);
  EXPECT_NE(error_of(0, {{"RANK", "1"}}).find("WORLD_SIZE"), std::string::npos);
  EXPECT_NE(error_of(0, {{"RANK", "one"}, {"WORLD_SIZE", "2"}}).find("RANK=\"one\""), std::string::npos);
  EXPECT_NE(error_of(0, {{"RANK", "2"}, {"WORLD_SIZE", "2"}}).find("no rank of"), std::string::npos);
}

TEST(Discovery, HostsCommand) {
  const std::vector<std::string> program = {"/usr/bin/orrery", "train", "run.toml"};
  EXPECT_EQ(fmt::format("{}", fmt::join(hosts_command("a,b:4", program, {"mpirun.openmpi", "mpiexec.mpich"}), " ")),
            "mpirun.openmpi --host a:1,b:4 -n 5 /usr/bin/orrery train run.toml");
  EXPECT_EQ(fmt::format("{}", fmt::join(hosts_command("a,b", program, {"mpiexec.mpich"}), " ")), "mpiexec.mpich -hosts a:1,b:1 -n 2 /usr/bin/orrery train run.toml");
  for (const char* hosts : {"", "a,,b", "a:0", "a:x", "-oProxyCommand=x", "a,"}) EXPECT_THROW(hosts_command(hosts, program, {"mpirun"}), Error) << hosts;
  EXPECT_THROW(hosts_command("a", program, {}), Error);
}

}  // namespace
}  // namespace orrery
