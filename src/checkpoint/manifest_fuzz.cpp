// Any bytes as a manifest or a state.json: a typed Error, or a value whose text reads back equal. The self checksum would stop nearly
// every mutation at the door, so a second try repairs it.
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/digest.h"

namespace orrery {

inline int fuzz_manifest(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto parse = [](const std::string& input) {
    try {
      const Manifest manifest = manifest_from_text(input, "fuzz");
      if (manifest_from_text(manifest_to_text(manifest), "again") != manifest) std::abort();
    } catch (const Error&) {
    }
  };
  parse(text);
  if (const size_t self = text.rfind(",\n\"self\": \""); self != std::string::npos) {
    Hash128 hash;
    hash.update(std::string_view(text).substr(0, self));
    parse(text.substr(0, self) + ",\n\"self\": \"" + hash.hex() + "\"\n}\n");
  }
  try {
    const TrainingState state = training_state_from_text(text, "fuzz");
    (void)training_state_to_text(state);
  } catch (const Error&) {
  }
  return 0;
}

}  // namespace orrery

#ifndef ORRERY_FUZZ_IN_TEST
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return orrery::fuzz_manifest(data, size); }
#endif
