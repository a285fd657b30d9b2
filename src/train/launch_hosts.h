// `orrery train --hosts a,b`: the same command again, as ranks on other machines, by the MPI launcher that is installed here.
#pragma once

#include <string>
#include <vector>

namespace orrery {

/// This process's command line.
std::vector<std::string> process_arguments();

/// Starts `arguments` without their --hosts on `hosts` (comm/discovery.h), every rank in this working directory, and waits. Stop signals go
/// on to the ranks, which have until their step ends. Returns the launcher's exit status; prints what flight records say that a
/// failure left in `folder`: some launchers end the survivors of a death before they can speak.
/// Errors: hosts_command's; kIo when the launcher cannot be started.
int launch_on_hosts(const std::string& hosts, const std::vector<std::string>& arguments, const std::string& folder);

}  // namespace orrery
