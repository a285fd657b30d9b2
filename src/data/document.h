// What one document says: text pieces, each with a flag for whether it is learned from. Plain text is one piece; a JSON line is
// read by its keys; chat messages are rendered by a template.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace orrery {

struct ChatMessage {
  std::string role;  // system, user, assistant, tool, ...
  std::string content;
};

struct TextSegment {
  std::string text;
  bool loss = true;            // its tokens are targets
  bool allow_special = false;  // special tokens in it are the template's own, not a user's text
};

/// Renders a conversation; called from several threads at once. Throws Error for messages it cannot take.
using ChatRenderer = std::function<std::vector<TextSegment>(const std::vector<ChatMessage>&)>;

/// ChatML, for tokenizers without a template: "<|im_start|>ROLE\nCONTENT<|im_end|>\n" for each message, with the loss on the
/// assistant's CONTENT and its "<|im_end|>".
std::vector<TextSegment> render_chatml(const std::vector<ChatMessage>& messages);

/// Parses JSON lines:
///   {"text": T}                                        plain text, all of it learned from
///   {"messages": [{"role", "content"}, ...]}           a chat; also {"conversations": [{"from", "value"}, ...]}
///   {"instruction", "input" (optional), "output"}      a chat of one user message and one answer
///   {"prompt", "completion"} (or "response")           strings: no template, loss on the completion; lists of messages: a chat
/// Content is a string or a list of {"type": "text", "text"}. Other keys are ignored. One parser per thread.
class JsonDocumentParser {
 public:
  JsonDocumentParser();
  ~JsonDocumentParser();
  struct Result {
    std::vector<TextSegment> segments;
    bool is_chat = false;  // rendered by the template, which brings its own begin and end tokens
  };
  /// Errors  kCorruptData: not JSON (UTF-8 is checked), or none of the forms above; the caller adds file and line.
  Result parse(std::string_view line, const ChatRenderer& renderer);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace orrery
