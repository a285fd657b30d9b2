// Any bytes as a safetensors file: a typed Error, or a header whose tensors lie inside the file and cover it.
#include <cstdlib>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace orrery {

inline int fuzz_safetensors(const uint8_t* data, size_t size) {
  const MemorySource file("fuzz", std::as_bytes(std::span(data, size)));
  try {
    const SafetensorsHeader header = read_safetensors_header(file);
    uint64_t covered = header.data_begin;
    for (const SafetensorsEntry& tensor : header.tensors) {
      if (tensor.begin != covered) std::abort();
      covered += tensor.bytes;
      if (header.find(tensor.name) != &tensor) std::abort();
    }
    if (covered != size) std::abort();
  } catch (const Error&) {
  }
  return 0;
}

}  // namespace orrery

#ifndef ORRERY_FUZZ_IN_TEST
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return orrery::fuzz_safetensors(data, size); }
#endif
