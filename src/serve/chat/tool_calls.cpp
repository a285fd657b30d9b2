#include "serve/chat/tool_calls.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace orrery {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

// The end of `text` that is a proper beginning of `mark`.
size_t partial_mark(std::string_view text, std::string_view mark) {
  size_t length = std::min(text.size(), mark.size() - 1);
  while (length > 0 && !mark.starts_with(text.substr(text.size() - length))) --length;
  return length;
}

}  // namespace

ToolCallFormat tool_call_format(std::string_view source) {
  if (source.find("[TOOL_CALLS]") != std::string_view::npos) return ToolCallFormat::kMistral;
  if (source.find("<tool_call>") == std::string_view::npos && source.find("<|start_header_id|>") != std::string_view::npos) return ToolCallFormat::kLlama3Json;
  return ToolCallFormat::kHermes;
}

ToolCallParser::ToolCallParser(ToolCallFormat format, bool inside) : format_(format) {
  if (!inside) return;
  state_ = State::kBeforeObject;
  list_ = format == ToolCallFormat::kMistral;
}

std::string_view ToolCallParser::open_mark() const {
  return format_ == ToolCallFormat::kHermes ? "<tool_call>" : format_ == ToolCallFormat::kMistral ? "[TOOL_CALLS]" : "{";
}

ToolCallDelta ToolCallParser::push(std::string_view text) {
  held_ += text;
  ToolCallDelta delta;
  advance(&delta);
  return delta;
}

ToolCallDelta ToolCallParser::finish() {
  ToolCallDelta delta;
  advance(&delta);
  // White space between and after calls belongs to their form.
  const bool blank = held_.find_first_not_of(kBlanks) == std::string::npos;
  if (state_ == State::kContent ? num_calls_ == 0 || !blank : state_ == State::kInHeader || (state_ == State::kBeforeObject && !mark_.empty())) delta.content += mark_ + held_;
  held_.clear();
  mark_.clear();
  return delta;
}

void ToolCallParser::advance(ToolCallDelta* delta) {
  while (true) {
    switch (state_) {
      case State::kContent: {
        if (format_ == ToolCallFormat::kLlama3Json) {
          // The whole answer is the call, or several after one another.
          const size_t first = held_.find_first_not_of(" \t\r\n;");
          if (first == std::string::npos) return;
          if (held_[first] == '{' && nothing_yet_) {
            mark_ = held_.substr(0, first);
            held_.erase(0, first);
            state_ = State::kInHeader;
            break;
          }
          nothing_yet_ = false;
          delta->content += held_;
          held_.clear();
          return;
        }
        const size_t found = held_.find(open_mark());
        const size_t certain = found != std::string::npos ? found : held_.size() - partial_mark(held_, open_mark());
        std::string text = held_.substr(0, certain);
        // Between calls stands white space alone.
        if (num_calls_ > 0 && text.find_first_not_of(kBlanks) == std::string::npos) {
          if (found == std::string::npos) return;
          text.clear();
        }
        delta->content += text;
        held_.erase(0, certain);
        if (found == std::string::npos) return;
        mark_ = open_mark();
        held_.erase(0, open_mark().size());
        state_ = State::kBeforeObject;
        break;
      }
      case State::kBeforeObject: {
        const size_t first = held_.find_first_not_of(kBlanks);
        if (first == std::string::npos) return;
        const char c = held_[first];
        if (c == '{') {
          mark_ += held_.substr(0, first);
          held_.erase(0, first);
          state_ = State::kInHeader;
        } else if (format_ == ToolCallFormat::kMistral && (c == '[' || c == ',')) {
          list_ = true;
          mark_ += held_.substr(0, first + 1);
          held_.erase(0, first + 1);
        } else if (format_ == ToolCallFormat::kMistral && c == ']') {
          held_.erase(0, first + 1);
          list_ = false;
          mark_.clear();
          state_ = State::kContent;
        } else if (const std::string_view mark = open_mark(); format_ == ToolCallFormat::kHermes && std::string_view(held_).substr(first, mark.size()) == mark.substr(0, held_.size() - first)) {
          // A forced answer writes the mark itself.
          if (held_.size() - first < mark.size()) return;
          mark_ += held_.substr(0, first + mark.size());
          held_.erase(0, first + mark.size());
        } else {
          held_ = mark_ + held_;
          delta->content += held_;
          held_.clear();
          mark_.clear();
          nothing_yet_ = false;
          state_ = State::kContent;
          return;
        }
        break;
      }
      case State::kInHeader:
        if (!advance_header(delta)) return;
        break;
      case State::kInArguments: {
        size_t end = 0;
        bool done = false;
        for (; end < held_.size() && !done; ++end) {
          const char c = held_[end];
          if (in_string_) {
            in_string_ = escaped_ || c != '"';
            escaped_ = !escaped_ && c == '\\';
          } else if (c == '"') {
            in_string_ = true;
          } else if (c == '{' || c == '[') {
            ++depth_;
          } else if (c == '}' || c == ']') {
            done = --depth_ == 0;
          }
        }
        if (end > 0) delta->pieces.push_back({num_calls_ - 1, "", held_.substr(0, end)});
        held_.erase(0, end);
        if (!done) return;
        state_ = State::kAfterArguments;
        break;
      }
      case State::kAfterArguments: {
        // What is left of the call's object (an id, the closing brace), then the closing mark.
        const std::string close = format_ == ToolCallFormat::kHermes ? "</tool_call>" : "}";
        const size_t found = held_.find(close);
        if (found == std::string::npos) return;
        held_.erase(0, found + close.size());
        mark_.clear();
        state_ = list_ ? State::kBeforeObject : State::kContent;
        break;
      }
    }
  }
}

// Reads {"name": "...", "arguments": up to the arguments' opening brace. False: more text is needed.
bool ToolCallParser::advance_header(ToolCallDelta* delta) {
  size_t at = 1;
  std::string name, key;
  const auto blanks = [&] { at = std::min(held_.find_first_not_of(kBlanks, at), held_.size()); };
  const auto string = [&](std::string* value) {
    size_t end = at + 1;
    while (end < held_.size() && held_[end] != '"') end += held_[end] == '\\' ? 2 : 1;
    if (end >= held_.size()) return false;
    const nlohmann::json parsed = nlohmann::json::parse(held_.substr(at, end + 1 - at), nullptr, false);
    *value = parsed.is_string() ? parsed.get<std::string>() : std::string();
    at = end + 1;
    return true;
  };
  const auto give_up = [&] {
    // An object of another kind: content from its opening mark on.
    delta->content += mark_ + held_;
    held_.clear();
    mark_.clear();
    nothing_yet_ = false;
    list_ = false;
    state_ = State::kContent;
    return true;
  };
  while (true) {
    blanks();
    if (at >= held_.size()) return false;
    if (held_[at] == ',') {
      ++at;
      continue;
    }
    if (held_[at] != '"') return give_up();
    if (!string(&key)) return false;
    blanks();
    if (at >= held_.size()) return false;
    if (held_[at] != ':') return give_up();
    ++at;
    blanks();
    if (at >= held_.size()) return false;
    if (held_[at] == '"') {
      std::string value;
      if (!string(&value)) return false;
      if (key == "name") name = value;
      continue;
    }
    if ((key == "arguments" || key == "parameters") && held_[at] == '{' && !name.empty()) {
      held_.erase(0, at);
      delta->pieces.push_back({num_calls_++, name, ""});
      depth_ = 0;
      in_string_ = escaped_ = false;
      mark_.clear();
      state_ = State::kInArguments;
      return true;
    }
    return give_up();
  }
}

}  // namespace orrery
