// Any bytes as a JSON line end in a document or in an Error.
#include <cstdint>

#include "base/error.h"
#include "data/document.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static orrery::JsonDocumentParser parser;
  try {
    parser.parse({reinterpret_cast<const char*>(data), size}, {});
  } catch (const orrery::Error&) {
  }
  return 0;
}
