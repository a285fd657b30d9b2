// Chat templates: the Jinja that models ship, run with the settings of transformers' apply_chat_template (trim_blocks, lstrip_blocks,
// loop controls, its tojson, raise_exception, strftime_now). A careful subset: what is not supported is an error naming the line, and
// steps, output and nesting are bounded, because templates come with models from anywhere.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace orrery {

struct TemplateLimits {
  int64_t steps_max = 2'000'000;
  size_t output_bytes_max = size_t{16} << 20;
  int depth_max = 100;
  int64_t unix_time = -1;  // what strftime_now tells (UTC); -1: the clock
};

/// Text that knows which bytes came from a request and which the template wrote.
struct RenderedText {
  std::string text;
  struct Range {
    size_t begin, end;
  };
  std::vector<Range> from_input;  // ascending, disjoint: special tokens written there are plain text
};

class ChatTemplate {
 public:
  /// Errors: kUnsupported or kInvalidArgument with the line.
  explicit ChatTemplate(std::string_view source);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;

  /// `variables`: an object with messages, tools, add_generation_prompt, ... Strings in it count as input, except in those
  /// whose name ends in "_token" (bos_token, eos_token).
  /// Errors: kInvalidArgument with the template's own message (raise_exception) or what went wrong and the line.
  RenderedText render(const nlohmann::ordered_json& variables, const TemplateLimits& limits = {}) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The template of models that bring none.
std::string_view chatml_template();

/// Messages as templates expect them: content parts joined to a string, null content to "", a tool call's arguments parsed from their JSON
/// text. Errors: kInvalidArgument naming the message: no array, an unknown role, content that is not text.
nlohmann::ordered_json normalized_messages(const nlohmann::ordered_json& messages);

/// The ids of a rendered prompt: special tokens count where the template wrote them, and not where a message did.
std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const RenderedText& prompt);

}  // namespace orrery
