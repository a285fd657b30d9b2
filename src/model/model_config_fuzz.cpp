// Any bytes as config.json: a typed Error or a valid configuration, whose JSON form reads back equal.
#include <cstdlib>

#include "base/error.h"
#include "model/model_config.h"

namespace orrery {

inline int fuzz_model_config(const uint8_t* data, size_t size) {
  try {
    const ModelConfig config = model_config_from_json({reinterpret_cast<const char*>(data), size}, "fuzz");
    if (config.num_layers <= 64) (void)logical_tensors(config);
    if (model_config_from_json(model_config_to_json(config, DType::kBF16), "again") != config) std::abort();
  } catch (const Error&) {
  }
  return 0;
}

}  // namespace orrery

#ifndef ORRERY_FUZZ_IN_TEST
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return orrery::fuzz_model_config(data, size); }
#endif
