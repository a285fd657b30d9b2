#include "base/version.h"

namespace orrery {

std::string_view program_version() { return ORRERY_VERSION; }

}  // namespace orrery
