// Tool calls in a model's text: which form a template's model writes, the parser of the answer, whole or streamed, and the grammar's form for
// answers that must be a call.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orrery {

enum class ToolCallFormat {
  kHermes,     // <tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen 2.5 and 3
  kLlama3Json, // {"name": ..., "parameters": {...}} as the whole answer: Llama 3.1 and later
  kMistral,    // [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]
};

/// By the marks in the template; Hermes' form where it shows none.
ToolCallFormat tool_call_format(std::string_view template_source);

/// What became certain with some text: either content, or pieces of calls in order.
struct ToolCallDelta {
  std::string content;
  struct Piece {
    int index = 0;
    std::string name;       // not empty in a call's first piece
    std::string arguments;  // a fragment of its JSON text
  };
  std::vector<Piece> pieces;
};

/// Splits a growing answer into content and calls. Text that begins like a call and turns out to be none is content: nothing is lost.
class ToolCallParser {
 public:
  /// `inside`: the answer was forced by a grammar and begins with a call, without the format's opening mark.
  explicit ToolCallParser(ToolCallFormat format, bool inside = false);
  ToolCallDelta push(std::string_view text);
  /// What was held back: an unfinished mark or an object that never became a call is content.
  ToolCallDelta finish();
  int num_calls() const { return num_calls_; }

 private:
  enum class State { kContent, kBeforeObject, kInHeader, kInArguments, kAfterArguments };
  void advance(ToolCallDelta* delta);
  bool advance_header(ToolCallDelta* delta);
  std::string_view open_mark() const;

  ToolCallFormat format_;
  State state_ = State::kContent;
  bool list_ = false;         // between [ and ] of Mistral's
  bool nothing_yet_ = true;   // no content was handed out
  std::string held_;
  std::string mark_;          // what was taken as the call's opening, given back when no call follows
  int num_calls_ = 0;
  int depth_ = 0;             // of brackets in the arguments
  bool in_string_ = false, escaped_ = false;
};

}  // namespace orrery
