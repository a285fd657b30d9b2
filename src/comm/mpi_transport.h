// Ranks as processes under mpirun or srun. The MPI library is opened at run time through a plugin (mpi_api.h), so that the program
// starts where no MPI is. MPI makes progress inside the waiting loop here, never blocks, and is called by one thread at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/transport.h"

namespace orrery {

enum class MpiLibrary { kOpenMpi, kMpich };
std::string_view mpi_library_name(MpiLibrary library);
/// Names of the libraries whose plugin opens here; nothing is initialized.
std::vector<std::string> usable_mpi();

/// Initializes MPI, once in a process; blocks until all ranks have. The plugin is searched in $ORRERY_MPI_PLUGIN_DIR, beside the
/// program, and in ../lib/orrery. A wait looks at its peer's process now and then, where it runs on the same host: a dead one fails
/// the world at once. At a clean end MPI is finalized; after a failure it is left alone, because it would wait for the dead.
/// Errors: kUnsupported, naming the plugin and the package.
std::unique_ptr<Transport> make_mpi_transport(MpiLibrary library);

}  // namespace orrery
