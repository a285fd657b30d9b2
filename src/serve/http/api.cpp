#include "serve/http/api.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "runtime/arena.h"
#include "serve/http/api_state.h"
#include "serve/http/completion_job.h"
#include "serve/http/embedding_job.h"
#include "serve/http/page.h"
#include "serve/http/responses.h"

namespace orrery {

using json = nlohmann::ordered_json;  // members as they are written here: id, object, ..., usage

namespace {

// The time depends on the lengths alone, not on how many leading bytes are right.
bool equal_constant_time(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned>(static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b.empty() ? 0 : b[i % b.size()]));
  return difference == 0;
}

using State = Api::State;

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

json model_json(const State& state) {
  return {{"id", state.options.model_name}, {"object", "model"}, {"created", state.created}, {"owned_by", "orrery"}, {"max_model_len", state.engine->max_context()}};
}

json tokenize(const State& state, const std::string& body) {
  const TokenizeRequest request = parse_tokenize_request(body);
  const std::vector<int32_t> ids = request.is_chat ? state.encode_chat(request.messages_json, {}, {}, true) : state.encode(request.text, request.add_special);
  return {{"count", ids.size()}, {"max_model_len", state.engine->max_context()}, {"tokens", ids}};
}

json detokenize(const State& state, const std::string& body) {
  const std::string text = state.tokenizer->decode(parse_detokenize_request(body, state.tokenizer->vocab_size()).tokens);
  return {{"prompt", text}, {"content", text}};
}

json tokenizer_info(const State& state) {
  const auto name = [&](int32_t id) { return id >= 0 ? json(state.tokenizer->token_text(id)) : json(nullptr); };
  return {{"eos_token", name(state.tokenizer->eos_id())}, {"bos_token", name(state.tokenizer->bos_id())}, {"pad_token", name(state.tokenizer->pad_id())}, {"chat_template", state.tokenizer->chat_template()}, {"vocab_size", state.tokenizer->vocab_size()}};
}

// Paths are known with and without /v1.
std::string_view without_version(std::string_view path) { return path.starts_with("/v1/") ? path.substr(3) : path; }
bool is_health(std::string_view path) { return without_version(path) == "/health"; }

void route(const std::shared_ptr<State>& state, const HttpRequest& request, const std::shared_ptr<HttpResponder>& responder) {
  const std::string path(without_version(request.path));
  const bool get = request.method == "GET" || request.method == "HEAD", post = request.method == "POST";
  const auto answer = [&](HttpResponse response) {
    state->metrics.add_http(response.status);
    responder->send(std::move(response));
  };
  const auto only = [&](bool allowed, const char* method) {
    if (!allowed) throw ApiError(405, fmt::format("{} is for {}", request.path, method), {}, "invalid_request_error", "method_not_allowed");
  };
  if (path == "/") {
    only(get, "GET");
    return answer({200, std::string(page_html()), "text/html; charset=utf-8", {}, false});
  }
  if (path == "/health") {
    only(get, "GET");
    const bool ready = state->ready && !state->draining;
    return answer(json_response(json({{"status", ready ? "ok" : state->draining ? "draining" : "loading"}}).dump(), ready ? 200 : 503));
  }
  if (!state->ready) throw ApiError(503, "the model is being loaded", {}, "unavailable_error");
  if (path == "/models") {
    only(get, "GET");
    return answer(json_response(json({{"object", "list"}, {"data", json::array({model_json(*state)})}}).dump()));
  }
  if (path.starts_with("/models/")) {
    only(get, "GET");
    if (path.substr(8) != state->options.model_name) throw ApiError(404, fmt::format("there is no model \"{}\" here", path.substr(8)), "model", "not_found_error", "model_not_found");
    return answer(json_response(model_json(*state).dump()));
  }
  if (path == "/metrics") {
    only(get, "GET");
    return answer({200, state->metrics.text(state->options.model_name, state->engine->stats(), resident_memory_bytes(), state->arena_bytes), "text/plain; version=0.0.4", {}, false});
  }
  if (path == "/version") return answer(json_response(json({{"version", "orrery"}}).dump()));
  if (path == "/tokenizer_info") return answer(json_response(dump(tokenizer_info(*state))));
  if (path == "/tokenize" || path == "/detokenize") {
    only(post, "POST");
    return answer(json_response(dump(path == "/tokenize" ? tokenize(*state, request.body) : detokenize(*state, request.body))));
  }
  if (path == "/responses") {
    only(post, "POST");
    if (state->draining) throw ApiError(503, "the server is shutting down", {}, "unavailable_error");
    CompletionRequest parsed = parse_chat_request(chat_body_of_responses(request.body), state->vocab_size());
    return start_completion(state, std::move(parsed), request, responses_responder(request.body, request.request_id, responder));
  }
  if (path == "/chat/completions" || path == "/completions" || path == "/embeddings") {
    only(post, "POST");
    if (state->draining) throw ApiError(503, "the server is shutting down", {}, "unavailable_error");
    if (path == "/embeddings") return start_embedding(state, parse_embedding_request(request.body, state->vocab_size()), request, responder);
    CompletionRequest parsed = path == "/completions" ? parse_text_request(request.body, state->vocab_size()) : parse_chat_request(request.body, state->vocab_size());
    return start_completion(state, std::move(parsed), request, responder);
  }
  throw ApiError(404, fmt::format("there is no {}", request.path), {}, "not_found_error");
}

}  // namespace

Api::Api(ApiOptions options) : state_(std::make_shared<State>()) { state_->options = std::move(options); }
Api::~Api() = default;

void Api::attach(Engine& engine, const Tokenizer& tokenizer, std::vector<int32_t> end_ids, int64_t arena_bytes) {
  state_->engine = &engine;
  state_->tokenizer = tokenizer;
  state_->end_ids = std::move(end_ids);
  state_->arena_bytes = arena_bytes;
  const std::string_view source = tokenizer.chat_template().empty() ? chatml_template() : std::string_view(tokenizer.chat_template());
  try {
    if (tokenizer.chat_template().empty() && tokenizer.token_id("<|im_start|>") < 0)
      throw Error(ErrorCode::kUnsupported, "it brings no template and has no ChatML tokens (<|im_start|>, <|im_end|>), so it was not trained to chat");
    state_->chat_template.emplace(source);
  } catch (const Error& problem) {
    // Completions still work; chat requests are told why they do not.
    state_->template_problem = problem.what();
  }
  state_->tool_format = tool_call_format(source);
  state_->vocabulary = std::make_shared<GrammarVocabulary>(tokenizer, state_->end_ids);
  state_->ready = true;
}

void Api::drain() { state_->draining = true; }

HttpResponse Api::error(int status, const std::string& message) {
  state_->metrics.add_http(status);
  return error_response(ApiError(status, message));
}

std::optional<HttpResponse> Api::check_head(const HttpRequest& request) {
  if (request.method == "OPTIONS") {
    HttpResponse response{204, {}, "text/plain", {}, false};
    if (!request.origin.empty()) response.headers = {{"Access-Control-Allow-Credentials", "true"}, {"Access-Control-Allow-Methods", "GET, POST"}, {"Access-Control-Allow-Headers", "*"}};
    return response;
  }
  // The page holds no secret and asks for the key itself.
  if (state_->options.api_keys.empty() || is_health(request.path) || request.path == "/") return std::nullopt;
  bool known = false;
  for (const std::string& key : state_->options.api_keys) known |= equal_constant_time(key, State::key_of(request));
  if (known) return std::nullopt;
  state_->metrics.add_http(401);
  return error_response(ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", {}, "authentication_error", "invalid_api_key"));
}

void Api::handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) {
  std::optional<ApiError> failure;
  try {
    return route(state_, request, responder);
  } catch (const ApiError& error) {
    failure = error;
  } catch (const Error& error) {
    const bool theirs = error.code() == ErrorCode::kInvalidArgument || error.code() == ErrorCode::kUnsupported;
    failure = ApiError(theirs ? 400 : 500, error.what(), {}, theirs ? "invalid_request_error" : "server_error");
  } catch (const std::exception& error) {
    failure = ApiError(500, error.what(), {}, "server_error");
  }
  state_->metrics.add_http(failure->status);
  fmt::print(stderr, "request {} {} {} {}: {}\n", request.request_id, request.method, request.path.substr(0, 100), failure->status, std::string(failure->what()).substr(0, 200));
  responder->send(error_response(*failure));
}

}  // namespace orrery
