#include "serve/http/responses.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "serve/http/request.h"

namespace orrery {
namespace {

using json = nlohmann::ordered_json;  // as in request.cpp

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

[[noreturn]] void bad(const char* param, const std::string& message) { throw ApiError(400, message, param); }

const json* member(const json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string text_of(const json& object, const char* name) {
  const json* value = member(object, name);
  return value && value->is_string() ? value->get<std::string>() : std::string();
}

// ---- the request ------------------------------------------------------------------------------------------------------------

/// An item of `input`: a message, a call that the model made, or what the call gave.
void add_item(const json& item, json* messages) {
  if (!item.is_object()) bad("input", "an item of input must be an object");
  const std::string type = text_of(item, "type");
  if (type == "function_call") {
    const json call = {{"id", text_of(item, "call_id")}, {"type", "function"}, {"function", {{"name", text_of(item, "name")}, {"arguments", text_of(item, "arguments")}}}};
    // Calls of one turn are one message.
    const bool joins = !messages->empty() && messages->back().contains("tool_calls");
    if (!joins) messages->push_back({{"role", "assistant"}, {"content", nullptr}, {"tool_calls", json::array()}});
    messages->back()["tool_calls"].push_back(call);
    return;
  }
  if (type == "function_call_output") {
    const json* output = member(item, "output");
    messages->push_back({{"role", "tool"}, {"tool_call_id", text_of(item, "call_id")}, {"content", output && output->is_string() ? *output : json(output ? dump(*output) : "")}});
    return;
  }
  if (type == "reasoning") return;  // another server's thoughts
  if (!type.empty() && type != "message") bad("input", fmt::format("an item of type \"{}\" is none of message, function_call, function_call_output", type));
  json message = {{"role", text_of(item, "role")}};
  const json* content = member(item, "content");
  if (content && content->is_array()) {
    json parts = json::array();
    for (const json& part : *content) {
      const std::string kind = part.is_object() ? text_of(part, "type") : std::string();
      if (kind != "input_text" && kind != "output_text" && kind != "text") bad("input", fmt::format("content of type \"{}\" is no text; this server reads text only", kind));
      parts.push_back({{"type", "text"}, {"text", text_of(part, "text")}});
    }
    message["content"] = std::move(parts);
  } else {
    message["content"] = content ? *content : json("");
  }
  messages->push_back(std::move(message));
}

json chat_messages(const json& object) {
  json messages = json::array();
  if (const std::string instructions = text_of(object, "instructions"); !instructions.empty()) messages.push_back({{"role", "system"}, {"content", instructions}});
  const json* input = member(object, "input");
  if (!input) bad("input", "input is missing");
  if (input->is_string())
    messages.push_back({{"role", "user"}, {"content", *input}});
  else if (input->is_array())
    for (const json& item : *input) add_item(item, &messages);
  else
    bad("input", "input must be a string or a list of items");
  return messages;
}

json chat_tools(const json& tools) {
  if (!tools.is_array()) bad("tools", "tools must be a list");
  json result = json::array();
  for (const json& tool : tools) {
    const std::string type = tool.is_object() ? text_of(tool, "type") : std::string();
    if (type != "function") bad("tools", fmt::format("a tool of type \"{}\" is not here; this server has functions only", type));
    json function = tool;
    function.erase("type");
    result.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return result;
}

// ---- the answer -------------------------------------------------------------------------------------------------------------

json message_item(const std::string& id, const char* status, const std::string& text) {
  return {{"id", id}, {"type", "message"}, {"status", status}, {"role", "assistant"}, {"content", json::array({{{"type", "output_text"}, {"text", text}, {"annotations", json::array()}}})}};
}

json call_item(const std::string& id, const char* status, const std::string& call_id, const std::string& name, const std::string& arguments) {
  return {{"id", id}, {"type", "function_call"}, {"status", status}, {"call_id", call_id}, {"name", name}, {"arguments", arguments}};
}

json usage_of(const json& usage) {
  return {{"input_tokens", usage["prompt_tokens"]}, {"input_tokens_details", {{"cached_tokens", usage["prompt_tokens_details"]["cached_tokens"]}}}, {"output_tokens", usage["completion_tokens"]},
          {"output_tokens_details", {{"reasoning_tokens", 0}}}, {"total_tokens", usage["total_tokens"]}};
}

class ResponsesResponder final : public HttpResponder {
 public:
  ResponsesResponder(const json& request, std::string request_id, std::shared_ptr<HttpResponder> next) : id_(std::move(request_id)), next_(std::move(next)) {
    response_ = {{"id", "resp_" + id_}, {"object", "response"}, {"created_at", static_cast<int64_t>(std::time(nullptr))}, {"status", "in_progress"}, {"error", nullptr}, {"incomplete_details", nullptr},
                 {"model", nullptr}, {"output", json::array()}, {"previous_response_id", nullptr}, {"store", false}, {"truncation", "disabled"}, {"usage", nullptr}, {"reasoning", {{"effort", nullptr}, {"summary", nullptr}}}};
    const std::pair<const char*, json> told[] = {{"instructions", nullptr}, {"max_output_tokens", nullptr}, {"parallel_tool_calls", true}, {"temperature", 1.0}, {"top_p", 1.0}, {"tools", json::array()},
                                                 {"tool_choice", "auto"}, {"text", {{"format", {{"type", "text"}}}}}, {"metadata", json::object()}, {"user", nullptr}};
    for (const auto& [name, fallback] : told) response_[name] = member(request, name) ? *member(request, name) : fallback;
  }

  void send(HttpResponse response) override {
    if (response.status != 200) return next_->send(std::move(response));
    const json chat = json::parse(response.body);
    const json& choice = chat["choices"][0];
    const json& message = choice["message"];
    begin(chat["model"]);
    if (message["content"].is_string() && (!message["content"].get_ref<const std::string&>().empty() || !message.contains("tool_calls")))
      response_["output"].push_back(message_item("msg_" + id_, status_of(choice["finish_reason"]), message["content"].get<std::string>()));
    for (const json& call : message.contains("tool_calls") ? message["tool_calls"] : json::array())
      response_["output"].push_back(call_item(fmt::format("fc_{}_{}", id_, response_["output"].size()), "completed", call["id"], call["function"]["name"], call["function"]["arguments"]));
    finish(choice["finish_reason"], chat["usage"]);
    response.body = dump(response_);
    next_->send(std::move(response));
  }

  void begin_stream() override {
    next_->begin_stream();
    tell("response.created", {{"response", response_}});
    tell("response.in_progress", {{"response", response_}});
  }

  void write_event(std::string_view data, std::string_view) override {
    if (data == "[DONE]") return;
    const json chunk = json::parse(data);
    if (chunk.contains("error")) return tell("error", {{"code", chunk["error"]["code"]}, {"message", chunk["error"]["message"]}, {"param", chunk["error"]["param"]}});
    begin(chunk["model"]);
    if (chunk["choices"].empty()) {
      finish(finish_reason_, chunk["usage"]);
      return tell(response_["status"] == "completed" ? "response.completed" : "response.incomplete", {{"response", response_}});
    }
    const json& choice = chunk["choices"][0];
    const json& delta = choice["delta"];
    if (delta.contains("content") && delta["content"].is_string() && !delta["content"].get_ref<const std::string&>().empty()) add_text(delta["content"].get<std::string>());
    if (delta.contains("tool_calls"))
      for (const json& call : delta["tool_calls"]) add_call(call);
    if (choice["finish_reason"].is_null()) return;
    finish_reason_ = choice["finish_reason"];
    // An answer without a word is a message still.
    if (!open_ && response_["output"].empty()) add_text("");
    close_item();
  }

  void end_stream() override { next_->end_stream(); }
  void post(std::function<void()> body) override { next_->post(std::move(body)); }
  void on_disconnect(std::function<void()> body) override { next_->on_disconnect(std::move(body)); }

 private:
  void begin(const json& model) { response_["model"] = model; }

  static const char* status_of(const json& finish_reason) { return finish_reason == "length" ? "incomplete" : "completed"; }

  void finish(const json& finish_reason, const json& usage) {
    response_["status"] = status_of(finish_reason);
    if (finish_reason == "length") response_["incomplete_details"] = {{"reason", "max_output_tokens"}};
    response_["usage"] = usage_of(usage);
  }

  void tell(const char* type, json event) {
    event["type"] = type;
    event["sequence_number"] = sequence_++;
    next_->write_event(dump(event), type);
  }

  // Where the item that is being written stands in the output.
  json place() const { return {{"item_id", item_id_}, {"output_index", response_["output"].size()}}; }
  json text_place() const {
    json event = place();
    event["content_index"] = 0;
    return event;
  }
  static json text_part(const std::string& text) { return {{"type", "output_text"}, {"text", text}, {"annotations", json::array()}}; }

  void open_item(bool is_call, std::string id) {
    close_item();
    open_ = true;
    is_call_ = is_call;
    item_id_ = std::move(id);
    text_.clear();
  }

  void add_text(const std::string& text) {
    if (!open_ || is_call_) {
      open_item(false, fmt::format("msg_{}_{}", id_, response_["output"].size()));
      json item = message_item(item_id_, "in_progress", "");
      item["content"] = json::array();
      tell("response.output_item.added", {{"output_index", response_["output"].size()}, {"item", std::move(item)}});
      json event = text_place();
      event["part"] = text_part("");
      tell("response.content_part.added", std::move(event));
    }
    text_ += text;
    if (text.empty()) return;
    json event = text_place();
    event["delta"] = text;
    event["logprobs"] = json::array();
    tell("response.output_text.delta", std::move(event));
  }

  void add_call(const json& call) {
    if (call.contains("id")) {
      open_item(true, fmt::format("fc_{}_{}", id_, response_["output"].size() + (open_ ? 1 : 0)));
      call_id_ = call["id"];
      name_ = call["function"]["name"];
      tell("response.output_item.added", {{"output_index", response_["output"].size()}, {"item", call_item(item_id_, "in_progress", call_id_, name_, "")}});
    }
    const std::string arguments = call["function"]["arguments"];
    text_ += arguments;
    if (arguments.empty()) return;
    json event = place();
    event["delta"] = arguments;
    tell("response.function_call_arguments.delta", std::move(event));
  }

  void close_item() {
    if (!std::exchange(open_, false)) return;
    json done = is_call_ ? place() : text_place(), item;
    if (is_call_) {
      done["arguments"] = text_;
      done["name"] = name_;
      tell("response.function_call_arguments.done", std::move(done));
      item = call_item(item_id_, "completed", call_id_, name_, text_);
    } else {
      done["text"] = text_;
      done["logprobs"] = json::array();
      tell("response.output_text.done", std::move(done));
      done = text_place();
      done["part"] = text_part(text_);
      tell("response.content_part.done", std::move(done));
      item = message_item(item_id_, status_of(finish_reason_), text_);
    }
    tell("response.output_item.done", {{"output_index", response_["output"].size()}, {"item", item}});
    response_["output"].push_back(std::move(item));
  }

  std::string id_;
  std::shared_ptr<HttpResponder> next_;
  json response_, finish_reason_ = nullptr;
  int64_t sequence_ = 0;
  bool open_ = false, is_call_ = false;  // an item is being written; it is a call
  std::string item_id_, text_, call_id_, name_;
};

}  // namespace

std::string chat_body_of_responses(const std::string& body) {
  const json object = parse_request_object(body);
  for (const char* name : {"previous_response_id", "conversation", "prompt", "background"})
    if (const json* value = member(object, name); value && *value != json(false)) throw ApiError(400, fmt::format("{} is not supported: this server stores no responses; send the whole conversation as input", name), name, "invalid_request_error", "unsupported_parameter");
  const json* include = member(object, "include");
  const bool asks_logprobs = include && include->is_array() && std::find(include->begin(), include->end(), "message.output_text.logprobs") != include->end();
  if (const json* top = member(object, "top_logprobs"); asks_logprobs || (top && *top != json(0)))
    throw ApiError(400, "log-probabilities are not told by /v1/responses; /v1/chat/completions tells them", asks_logprobs ? "include" : "top_logprobs", "invalid_request_error", "unsupported_parameter");
  json chat = object;
  for (const char* name : {"input", "instructions", "text", "max_output_tokens", "tools", "tool_choice", "reasoning", "include", "truncation", "n", "best_of", "stream_options", "max_tokens", "max_completion_tokens", "response_format"}) chat.erase(name);
  chat["messages"] = chat_messages(object);
  if (const json* most = member(object, "max_output_tokens")) chat["max_completion_tokens"] = *most;
  if (const json* tools = member(object, "tools"); tools && !(tools->is_array() && tools->empty())) chat["tools"] = chat_tools(*tools);
  if (const json* choice = member(object, "tool_choice"); choice && chat.contains("tools"))
    chat["tool_choice"] = choice->is_object() ? json{{"type", "function"}, {"function", {{"name", text_of(*choice, "name")}}}} : *choice;
  if (const json* settings = member(object, "text")) {
    const json* format = settings->is_object() ? member(*settings, "format") : nullptr;
    if (format && !format->is_object()) bad("text", "text.format must be an object");
    if (format && text_of(*format, "type") == "json_schema")
      chat["response_format"] = {{"type", "json_schema"}, {"json_schema", {{"name", text_of(*format, "name")}, {"schema", member(*format, "schema") ? *member(*format, "schema") : json(nullptr)}}}};
    else if (format)
      chat["response_format"] = *format;
  }
  if (chat.contains("stream") && chat["stream"] == true) chat["stream_options"] = {{"include_usage", true}};
  return chat.dump();
}

std::shared_ptr<HttpResponder> responses_responder(const std::string& body, const std::string& request_id, std::shared_ptr<HttpResponder> next) {
  return std::make_shared<ResponsesResponder>(parse_request_object(body), request_id, std::move(next));
}

}  // namespace orrery
