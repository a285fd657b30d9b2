#include "train/launch_hosts.h"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/error.h"
#include "comm/discovery.h"
#include "train/process_world.h"

extern char** environ;

namespace orrery {
namespace {

namespace fs = std::filesystem;

std::atomic<pid_t> launcher{0};

// SIGUSR1 is what both launchers hand on to the ranks; at SIGINT and SIGTERM they would end them.
void pass_on(int) {
  const int saved_errno = errno;
  if (const pid_t child = launcher.load(); child > 0) ::kill(child, SIGUSR1);
  errno = saved_errno;
}

bool on_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  const std::string folders = path != nullptr ? path : "/usr/bin:/bin";
  for (size_t begin = 0; begin <= folders.size();) {
    const size_t end = std::min(folders.find(':', begin), folders.size());
    if (::access((folders.substr(begin, end - begin) + "/" + program).c_str(), X_OK) == 0) return true;
    begin = end + 1;
  }
  return false;
}

}  // namespace

std::vector<std::string> process_arguments() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> arguments;
  for (std::string argument; std::getline(file, argument, '\0');) arguments.push_back(argument);
  return arguments;
}

int launch_on_hosts(const std::string& hosts, const std::vector<std::string>& arguments, const std::string& folder) {
  std::vector<std::string> program = {fs::read_symlink("/proc/self/exe").string()};
  for (size_t i = 1; i < arguments.size(); ++i) {
    if (arguments[i] == "--hosts") ++i;
    else if (!arguments[i].starts_with("--hosts=")) program.push_back(arguments[i]);
  }
  std::vector<std::string> installed;
  for (const char* name : {"mpirun.openmpi", "mpiexec.mpich", "mpirun"})
    if (on_path(name)) installed.emplace_back(name);
  const std::vector<std::string> command = hosts_command(hosts, program, installed);
  // Open MPI asks root twice whether that is meant; whoever starts this program as root has said so.
  if (::geteuid() == 0)
    for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"}) ::setenv(name, "1", /*overwrite=*/0);
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  fmt::print(stderr, "start     {}\n", fmt::join(command, " "));
  // A process group of its own: a terminal's Ctrl-C comes to this process only, which asks for a checkpoint.
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  pid_t child = 0;
  const int refused = ::posix_spawnp(&child, words[0], nullptr, &attributes, words.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  if (refused != 0) throw_io_error(refused, "cannot start " + command[0]);
  launcher = child;
  struct sigaction action = {}, previous_interrupt, previous_terminate, previous_user;
  action.sa_handler = pass_on;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, &previous_interrupt);
  ::sigaction(SIGTERM, &action, &previous_terminate);
  ::sigaction(SIGUSR1, &action, &previous_user);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  launcher = 0;
  ::sigaction(SIGINT, &previous_interrupt, nullptr);
  ::sigaction(SIGTERM, &previous_terminate, nullptr);
  ::sigaction(SIGUSR1, &previous_user, nullptr);
  if (status != 0)
    if (const std::string report = take_post_mortem(folder); !report.empty()) fmt::print(stderr, "the ranks' records say: {}\n", report);
  return WIFEXITED(status) ? WEXITSTATUS(status) : exit_status(ErrorCode::kPeerLost);
}

}  // namespace orrery
