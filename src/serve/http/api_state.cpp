#include "serve/http/api_state.h"

#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>

namespace orrery {

double now_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

HttpResponse json_response(std::string body, int status) { return {status, std::move(body), "application/json", {}, false}; }

HttpResponse error_response(const ApiError& error) {
  HttpResponse response{error.status, error_body(error), "application/json", {}, false};
  if (error.status == 429 || error.status == 503) response.headers.emplace_back("Retry-After", "1");
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

void submit_parts(const Engine& engine, size_t num_parts, size_t num_open, size_t* next, const std::function<Admission(size_t)>& submit) {
  for (; *next < num_parts; ++*next) {
    const auto in_flight = static_cast<int64_t>(*next + num_open - num_parts);
    if (in_flight > engine.max_sequences()) return;
    const Admission admission = submit(*next);
    if (admission == Admission::kQueueFull && in_flight > 0) return;
    if (admission == Admission::kStopping) throw ApiError(503, "the server is shutting down", {}, "unavailable_error");
    if (admission == Admission::kQueueFull) throw ApiError(429, "the queue is full; try again later", {}, "rate_limit_error", "queue_full");
  }
}

std::vector<int32_t> Api::State::encode(const std::string& text, bool add_special) const {
  thread_local EncodeScratch scratch;
  std::vector<int32_t> ids;
  tokenizer->encode(text, {.add_special = add_special, .allow_special = true}, &scratch, &ids);
  return ids;
}

std::vector<int32_t> Api::State::encode_chat(const std::string& messages, const std::string& tools, const std::string& arguments, bool add_generation_prompt) const {
  if (!chat_template)
    throw ApiError(400, "this model cannot be asked by messages: " + template_problem + "; use /v1/completions", "messages", "invalid_request_error", "unsupported_parameter");
  using nlohmann::ordered_json;
  ordered_json variables = arguments.empty() ? ordered_json::object() : ordered_json::parse(arguments);
  const auto name = [this](int32_t id) { return id >= 0 ? tokenizer->token_text(id) : std::string(); };
  variables["messages"] = normalized_messages(ordered_json::parse(messages));
  variables["add_generation_prompt"] = add_generation_prompt;
  variables["bos_token"] = name(tokenizer->bos_id());
  variables["eos_token"] = name(tokenizer->eos_id());
  if (!tools.empty()) variables["tools"] = ordered_json::parse(tools);
  return encode_prompt(*tokenizer, chat_template->render(variables));
}

void Api::State::check_model(const std::string& name) const {
  if (options.any_model_name || name.empty() || name == options.model_name) return;
  throw ApiError(404, fmt::format("there is no model \"{}\" here; this server has \"{}\"", name, options.model_name), "model", "not_found_error", "model_not_found");
}

std::string Api::State::tenant(const HttpRequest& request) const {
  for (size_t i = 0; i < options.api_keys.size(); ++i)
    if (key_of(request) == options.api_keys[i]) return fmt::format("key{}", i);
  return {};
}
std::string Api::State::key_of(const HttpRequest& request) {
  constexpr std::string_view kBearer = "Bearer ";
  return request.authorization.starts_with(kBearer) ? request.authorization.substr(kBearer.size()) : request.api_key;
}

}  // namespace orrery
