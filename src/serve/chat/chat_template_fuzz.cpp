// Any bytes as a chat template, rendered: only Error may escape, within the limits.
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "serve/chat/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const nlohmann::ordered_json kVariables = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}, {"add_generation_prompt", true}, {"bos_token", "<s>"}};
  try {
    const orrery::ChatTemplate chat(std::string_view(reinterpret_cast<const char*>(data), size));
    chat.render(kVariables, {.steps_max = 20000, .output_bytes_max = 1 << 20});
  } catch (const orrery::Error&) {
  }
  return 0;
}
