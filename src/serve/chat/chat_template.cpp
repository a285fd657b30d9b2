#include "serve/chat/chat_template.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "serve/chat/jinja_interpreter.h"

namespace orrery {

struct ChatTemplate::Impl {
  jinja::Body body;
};

ChatTemplate::ChatTemplate(std::string_view source) : impl_(std::make_unique<Impl>()) { impl_->body = jinja::parse_template(source); }
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;

RenderedText ChatTemplate::render(const nlohmann::ordered_json& variables, const TemplateLimits& limits) const {
  jinja::Dict values;
  for (const auto& [name, value] : variables.items()) values.emplace_back(name, jinja::from_json(value, !name.ends_with("_token")));
  jinja::Interpreter interpreter(limits, std::move(values));
  const jinja::Text text = interpreter.run(impl_->body);
  return {text.bytes(), text.from_input()};
}

std::string_view chatml_template() {
  return "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
}

nlohmann::ordered_json normalized_messages(const nlohmann::ordered_json& messages) {
  using Json = nlohmann::ordered_json;
  static const std::set<std::string> kRoles = {"system", "developer", "user", "assistant", "tool", "function"};
  if (!messages.is_array() || messages.empty()) throw Error(ErrorCode::kInvalidArgument, "messages: wanted a non-empty array");
  Json result = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    const auto fail = [&](const std::string& what) { throw Error(ErrorCode::kInvalidArgument, "messages[{}]: {}", i, what); };
    if (!messages[i].is_object()) fail("wanted an object");
    Json message = messages[i];
    if (!message.contains("role") || !message["role"].is_string()) fail("wanted a role");
    if (!kRoles.contains(message["role"].get<std::string>())) fail(fmt::format("unknown role '{:.40}'; use system, developer, user, assistant or tool", message["role"].get<std::string>()));
    const bool has_calls = message.contains("tool_calls") && message["tool_calls"].is_array() && !message["tool_calls"].empty();
    if (message.contains("tool_calls") && !has_calls) message.erase("tool_calls");
    if (!message.contains("content") || message["content"].is_null()) {
      if (!has_calls && message["role"] != "assistant") fail("wanted content");
      message["content"] = "";
    } else if (message["content"].is_array()) {
      std::string text;
      for (const Json& part : message["content"]) {
        if (!part.is_object() || !part.contains("text") || !part["text"].is_string()) fail("a content part that is no text; this model reads text");
        text += part["text"].get<std::string>();
      }
      message["content"] = text;
    } else if (!message["content"].is_string()) {
      fail("content is neither a string nor a list of parts");
    }
    if (has_calls) {
      for (Json& call : message["tool_calls"]) {
        if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) fail("a tool call without its function");
        Json& function = call["function"];
        if (!function.contains("name") || !function["name"].is_string()) fail("a tool call without a name");
        if (!function.contains("arguments")) function["arguments"] = Json::object();
        if (function["arguments"].is_string()) {
          Json parsed = Json::parse(function["arguments"].get<std::string>(), nullptr, false);
          if (parsed.is_object()) function["arguments"] = std::move(parsed);
        }
      }
    }
    result.push_back(std::move(message));
  }
  return result;
}

std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const RenderedText& prompt) {
  // Special tokens that the template wrote become their ids; the text between them is encoded as plain text, in one piece each, so that
  // merges across the edge of a message are those of the whole text.
  std::vector<AddedToken> specials = tokenizer.special_tokens();
  std::sort(specials.begin(), specials.end(), [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); });
  bool starts[256] = {};
  for (const AddedToken& token : specials) starts[static_cast<uint8_t>(token.content[0])] = true;
  EncodeScratch scratch;
  std::vector<int32_t> ids;
  const std::string_view text = prompt.text;
  size_t done = 0, range = 0;
  for (size_t at = 0; at < text.size();) {
    while (range < prompt.from_input.size() && prompt.from_input[range].end <= at) ++range;
    const size_t limit = range < prompt.from_input.size() ? prompt.from_input[range].begin : text.size();
    if (at >= limit) {
      at = prompt.from_input[range].end;
      continue;
    }
    const AddedToken* found = nullptr;
    if (starts[static_cast<uint8_t>(text[at])]) {
      for (const AddedToken& token : specials) {
        if (at + token.content.size() > limit || !text.substr(at).starts_with(token.content)) continue;
        found = &token;
        break;
      }
    }
    if (found == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + found->content.size();
    const auto is_space = [&](size_t i) { return text[i] == ' ' || text[i] == '\n' || text[i] == '\t' || text[i] == '\r'; };
    while (found->lstrip && begin > done && is_space(begin - 1)) --begin;
    while (found->rstrip && end < text.size() && is_space(end)) ++end;
    if (begin > done) tokenizer.encode(text.substr(done, begin - done), {.add_special = false, .allow_special = false}, &scratch, &ids);
    ids.push_back(found->id);
    at = done = end;
  }
  if (done < text.size()) tokenizer.encode(text.substr(done), {.add_special = false, .allow_special = false}, &scratch, &ids);
  return ids;
}

}  // namespace orrery
