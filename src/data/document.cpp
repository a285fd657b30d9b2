#include "data/document.h"

#include <simdjson.h>

#include "base/error.h"

namespace orrery {

std::vector<TextSegment> render_chatml(const std::vector<ChatMessage>& messages) {
  std::vector<TextSegment> segments;
  for (const ChatMessage& message : messages) {
    const bool learned = message.role == "assistant";
    segments.push_back({"<|im_start|>", false, true});
    segments.push_back({message.role + "\n", false, false});
    segments.push_back({message.content, learned, false});
    segments.push_back({"<|im_end|>", learned, true});
    segments.push_back({"\n", false, false});
  }
  return segments;
}

namespace {

namespace dom = simdjson::dom;

[[noreturn]] void malformed(const std::string& what) { throw Error(ErrorCode::kCorruptData, what); }

bool has(const dom::object& object, std::string_view key) { return object[key].error() == simdjson::SUCCESS; }

std::string text_of(const dom::element& element, std::string_view what) {
  std::string_view text;
  if (element.get(text) == simdjson::SUCCESS) return std::string(text);
  dom::array parts;
  if (element.get(parts) != simdjson::SUCCESS) malformed(fmt::format("{} is neither a string nor a list of text parts", what));
  std::string joined;
  for (dom::element part : parts) {
    std::string_view type, piece;
    if (part["type"].get(type) != simdjson::SUCCESS || type != "text" || part["text"].get(piece) != simdjson::SUCCESS)
      malformed(fmt::format("{} has a part that is not {{\"type\": \"text\", \"text\": ...}}", what));
    joined += piece;
  }
  return joined;
}

std::string text_at(const dom::object& object, std::string_view key) {
  return text_of(object[key].value_unsafe(), fmt::format("\"{}\"", key));
}

void append_messages(const dom::element& list, std::string_view key, std::vector<ChatMessage>& messages) {
  dom::array array;
  if (list.get(array) != simdjson::SUCCESS) malformed(fmt::format("\"{}\" is not a list of messages", key));
  for (dom::element element : array) {
    const size_t number = messages.size() + 1;
    dom::object message;
    if (element.get(message) != simdjson::SUCCESS) malformed(fmt::format("\"{}\": message {} is not an object", key, number));
    const bool share_gpt = has(message, "from") && has(message, "value");
    if (!share_gpt && !(has(message, "role") && has(message, "content")))
      malformed(fmt::format("\"{}\": message {} has no \"role\" and \"content\"", key, number));
    ChatMessage out;
    std::string_view role;
    if (message[share_gpt ? "from" : "role"].get(role) != simdjson::SUCCESS)
      malformed(fmt::format("\"{}\": message {}'s role is not a string", key, number));
    out.role = role;
    if (share_gpt && role == "human") out.role = "user";
    if (share_gpt && role == "gpt") out.role = "assistant";
    out.content = text_of(message[share_gpt ? "value" : "content"].value_unsafe(),
                          fmt::format("\"{}\": message {}'s content", key, number));
    messages.push_back(std::move(out));
  }
}

JsonDocumentParser::Result chat(const std::vector<ChatMessage>& messages, const ChatRenderer& renderer) {
  if (messages.empty()) malformed("a chat without messages");
  return {renderer ? renderer(messages) : render_chatml(messages), true};
}

JsonDocumentParser::Result prompt_and(const dom::object& object, std::string_view answer_key, const ChatRenderer& renderer) {
  const dom::element prompt = object["prompt"].value_unsafe(), answer = object[answer_key].value_unsafe();
  if (prompt.is_array() && answer.is_array()) {
    std::vector<ChatMessage> messages;
    append_messages(prompt, "prompt", messages);
    append_messages(answer, answer_key, messages);
    return chat(messages, renderer);
  }
  return {{{text_at(object, "prompt"), false, false}, {text_at(object, answer_key), true, false}}, false};
}

JsonDocumentParser::Result read_object(const dom::object& object, const ChatRenderer& renderer) {
  std::vector<ChatMessage> messages;
  if (has(object, "text")) return {{{text_at(object, "text"), true, false}}, false};
  for (std::string_view key : {"messages", "conversations"})
    if (has(object, key)) {
      append_messages(object[key].value_unsafe(), key, messages);
      return chat(messages, renderer);
    }
  if (has(object, "instruction") && has(object, "output")) {
    std::string question = text_at(object, "instruction");
    if (has(object, "input"))
      if (const std::string input = text_at(object, "input"); !input.empty()) question += "\n\n" + input;
    messages = {{"user", std::move(question)}, {"assistant", text_at(object, "output")}};
    return chat(messages, renderer);
  }
  for (std::string_view key : {"completion", "response"})
    if (has(object, "prompt") && has(object, key)) return prompt_and(object, key, renderer);
  std::string keys;
  int count = 0;
  for (const dom::key_value_pair field : object)
    if (++count <= 8) keys += fmt::format("{}\"{}\"", count == 1 ? "" : ", ", field.key.substr(0, 40));
  malformed(fmt::format(
      "found the keys {}{}; wanted \"text\", \"messages\", \"instruction\" and \"output\", or \"prompt\" and \"completion\"",
      keys.empty() ? "(none)" : keys, count > 8 ? ", ..." : ""));
}

}  // namespace

struct JsonDocumentParser::Impl {
  dom::parser parser;
};

JsonDocumentParser::JsonDocumentParser() : impl_(std::make_unique<Impl>()) {}
JsonDocumentParser::~JsonDocumentParser() = default;

JsonDocumentParser::Result JsonDocumentParser::parse(std::string_view line, const ChatRenderer& renderer) {
  dom::element root;
  if (const auto error = impl_->parser.parse(line.data(), line.size()).get(root); error != simdjson::SUCCESS)
    malformed(fmt::format("not valid JSON: {}", simdjson::error_message(error)));
  dom::object object;
  if (root.get(object) != simdjson::SUCCESS) malformed("not a JSON object");
  return read_object(object, renderer);
}

}  // namespace orrery
