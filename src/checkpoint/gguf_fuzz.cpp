// Any bytes as a GGUF file: a typed Error, or a file whose views all lie inside the bytes and whose values decode.
#include <cstdlib>

#include "base/error.h"
#include "checkpoint/gguf.h"

namespace orrery {

inline int fuzz_gguf(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  try {
    const GgufFile file = parse_gguf(bytes, "fuzz");
    for (const GgufTensor& tensor : file.tensors) {
      if (tensor.data.data() < bytes.data() || tensor.data.data() + tensor.data.size() > bytes.data() + size) std::abort();
      if (block_type_info(tensor.type).decode == nullptr) continue;
      std::vector<float> out(static_cast<size_t>(tensor.num_elements()));
      decode_blocks(tensor.type, tensor.data.data(), tensor.num_elements(), out.data());
    }
    for (const auto& [key, value] : file.metadata) {
      if (value.raw.data() != nullptr && value.raw.data() + value.raw.size() > bytes.data() + size) std::abort();
    }
  } catch (const Error&) {
  }
  return 0;
}

}  // namespace orrery

#ifndef ORRERY_FUZZ_IN_TEST
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return orrery::fuzz_gguf(data, size); }
#endif
