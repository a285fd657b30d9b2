// Any bytes as a run file: a value that reads back equal, or an Error.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "train/run_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace orrery;
  try {
    const RunConfig config = parse_run_config(std::string_view(reinterpret_cast<const char*>(data), size), "run.toml");
    if (!(parse_run_config(run_config_to_toml(config), "run.toml") == config)) std::abort();
  } catch (const Error&) {
  }
  return 0;
}
