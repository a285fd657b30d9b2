#include "serve/http/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "runtime/arena.h"
#include "serve/chat/chat_template.h"
#include "serve/chat/stop_matcher.h"
#include "serve/chat/tool_calls.h"
#include "serve/http/page.h"
#include "serve/http/request.h"

namespace orrery {

using nlohmann::json;

namespace {

double now_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

// The time depends on the lengths alone, not on how many leading bytes are right.
bool equal_constant_time(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned>(static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b.empty() ? 0 : b[i % b.size()]));
  return difference == 0;
}

std::string base64(const void* data, size_t size) {
  constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const auto* bytes = static_cast<const unsigned char*>(data);
  std::string out;
  for (size_t i = 0; i < size; i += 3) {
    const unsigned word = static_cast<unsigned>(bytes[i]) << 16 | (i + 1 < size ? bytes[i + 1] : 0u) << 8 | (i + 2 < size ? bytes[i + 2] : 0u);
    out += kAlphabet[word >> 18];
    out += kAlphabet[word >> 12 & 63];
    out += i + 1 < size ? kAlphabet[word >> 6 & 63] : '=';
    out += i + 2 < size ? kAlphabet[word & 63] : '=';
  }
  return out;
}

}  // namespace

struct Api::State {
  ApiOptions options;
  Metrics metrics;
  std::atomic<bool> ready{false}, draining{false};
  Engine* engine = nullptr;
  std::optional<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;
  std::string template_problem;  // why there is none
  ToolCallFormat tool_format = ToolCallFormat::kHermes;
  std::shared_ptr<const GrammarVocabulary> vocabulary;
  std::vector<int32_t> end_ids;
  int64_t arena_bytes = 0;
  int64_t created = static_cast<int64_t>(std::time(nullptr));

  int64_t vocab_size() const { return engine->config().vocab_size; }

  std::vector<int32_t> encode(const std::string& text, bool add_special) const {
    thread_local EncodeScratch scratch;
    std::vector<int32_t> ids;
    tokenizer->encode(text, {.add_special = add_special}, &scratch, &ids);
    return ids;
  }

  std::vector<int32_t> encode_chat(const std::string& messages, const std::string& tools, const std::string& arguments, bool add_generation_prompt) const {
    if (!chat_template)
      throw ApiError(400, "this model's chat template cannot be rendered: " + template_problem + "; use /v1/completions", "messages", "invalid_request_error", "unsupported_parameter");
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

  void check_model(const std::string& name) const {
    if (options.any_model_name || name.empty() || name == options.model_name) return;
    throw ApiError(404, fmt::format("there is no model \"{}\" here; this server has \"{}\"", name, options.model_name), "model", "not_found_error", "model_not_found");
  }

  std::string tenant(const HttpRequest& request) const {
    // The key's place in the list, never the key.
    for (size_t i = 0; i < options.api_keys.size(); ++i)
      if (key_of(request) == options.api_keys[i]) return fmt::format("key{}", i);
    return {};
  }
  static std::string key_of(const HttpRequest& request) {
    constexpr std::string_view kBearer = "Bearer ";
    return request.authorization.starts_with(kBearer) ? request.authorization.substr(kBearer.size()) : request.api_key;
  }
};

namespace {

using State = Api::State;

HttpResponse json_response(const json& body, int status = 200) { return {status, dump(body), "application/json", {}, false}; }

HttpResponse error_response(const ApiError& error) {
  HttpResponse response{error.status, error_body(error), "application/json", {}, false};
  if (error.status == 429 || error.status == 503) response.headers.emplace_back("Retry-After", "1");
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

// One completion request being answered: its prompts times n choices, each a request of the engine. Everything runs on the
// connection's strand.
class CompletionJob : public std::enable_shared_from_this<CompletionJob> {
 public:
  CompletionJob(std::shared_ptr<State> state, CompletionRequest request, const HttpRequest& http, std::shared_ptr<HttpResponder> responder)
      : state_(std::move(state)), request_(std::move(request)), request_id_(http.request_id), tenant_(state_->tenant(http)), responder_(std::move(responder)) {}

  /// Errors: ApiError, before anything was sent.
  void start() {
    started_ = now_seconds();
    state_->check_model(request_.model);
    std::vector<std::vector<int32_t>> prompts = std::move(request_.prompt_ids);
    if (request_.chat) prompts.push_back(state_->encode_chat(request_.messages_json, request_.tools_json, request_.template_arguments_json, request_.add_generation_prompt));
    for (const std::string& text : request_.prompts) prompts.push_back(state_->encode(text, request_.add_special_tokens));
    const Tokenizer& tokenizer = *state_->tokenizer;
    for (std::vector<int32_t>& prompt : prompts)
      if (prompt.empty()) prompt.push_back(tokenizer.bos_id() >= 0 ? tokenizer.bos_id() : std::max(0, tokenizer.eos_id()));
    check_lengths(prompts);
    if (request_.sampling.min_tokens > request_.max_tokens.value_or(INT64_MAX)) throw ApiError(400, "min_tokens is above max_tokens", "min_tokens");
    grammar_ = compile_grammar();
    if (!request_.has_seed) request_.sampling.seed = std::random_device{}() | static_cast<uint64_t>(std::random_device{}()) << 32;
    request_.sampling.end_ids = state_->end_ids;
    for (const auto& prompt : prompts) {
      prompt_tokens_ += static_cast<int64_t>(prompt.size());
      for (int64_t i = 0; i < request_.n; ++i) {
        choices_.push_back(std::make_unique<Choice>(tokenizer, request_));
        choices_.back()->counts_prompt = i == 0;
        if (!request_.callable.empty()) choices_.back()->parser.emplace(state_->tool_format, request_.tool_choice != CompletionRequest::ToolChoice::kAuto);
      }
    }
    open_ = choices_.size();
    responder_->on_disconnect([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->cancel_all("abort");
    });
    if (request_.max_tokens == 0) return finish_without_tokens(prompts);
    submit(prompts);
  }

 private:
  struct ToolCall {
    std::string id, name, arguments;
  };
  struct Choice {
    Choice(const Tokenizer& tokenizer, const CompletionRequest& request) : decoder(tokenizer, {.skip_special = true}), stop(request.stop, request.include_stop) {}
    std::optional<ToolCallParser> parser;  // when tools may be called
    std::vector<ToolCall> calls;
    uint64_t engine_id = 0;
    StreamDecoder decoder;
    StopMatcher stop;
    std::string text, echoed;
    json logprobs = json::array();  // those not sent yet; all of them when not streaming
    int64_t num_tokens = 0, prompt_tokens = 0, cached_tokens = 0, text_offset = 0;
    double queue_seconds = 0, first_token = 0, last_token = 0;
    json stop_reason = nullptr;
    std::string finish_reason;  // empty: still going
    bool began = false;         // its first chunk was sent
    bool counts_prompt = true;  // the first of its prompt's choices
  };

  // An answer that must be a call begins with the call's object, without the format's marks.
  std::shared_ptr<const Grammar> compile_grammar() const {
    using ToolChoice = CompletionRequest::ToolChoice;
    if (!request_.callable.empty() && request_.tool_choice != ToolChoice::kAuto) {
      Grammar::ToolForm form;
      if (state_->tool_format == ToolCallFormat::kLlama3Json) form.arguments_key = "parameters";
      return Grammar::compile_tool_calls(request_.callable, form, state_->vocabulary);
    }
    return request_.grammar_kind ? Grammar::compile(*request_.grammar_kind, request_.grammar_text, state_->vocabulary) : nullptr;
  }

  void check_lengths(const std::vector<std::vector<int32_t>>& prompts) {
    const int64_t context = state_->engine->max_context();
    for (const auto& prompt : prompts) {
      const auto size = static_cast<int64_t>(prompt.size());
      const int64_t answer = request_.max_tokens.value_or(1);
      if (answer > context || size + answer > context)
        throw ApiError(400, fmt::format("this model's context is {} tokens; the prompt has {} and {} were asked for; shorten the prompt or lower max_tokens", context, size, answer), request_.chat ? "messages" : "prompt", "invalid_request_error", "context_length_exceeded");
      for (const int32_t id : prompt) ORRERY_CHECK(id >= 0 && id < state_->vocab_size(), "token {}", id);
    }
  }

  void submit(const std::vector<std::vector<int32_t>>& prompts) {
    for (size_t index = 0; index < choices_.size(); ++index) {
      const auto& prompt = prompts[index / static_cast<size_t>(request_.n)];
      Choice& choice = *choices_[index];
      choice.prompt_tokens = static_cast<int64_t>(prompt.size());
      if (request_.echo) choice.echoed = state_->tokenizer->decode(prompt, {.skip_special = true});
      GenerationRequest generation;
      generation.request_id = request_id_;
      generation.prompt = prompt;
      generation.max_tokens = request_.max_tokens.value_or(state_->engine->max_context() - static_cast<int64_t>(prompt.size()));
      generation.sampling = request_.sampling;
      generation.sampling.seed = choice_seed(request_.sampling.seed, static_cast<int64_t>(index) % request_.n);
      generation.stop_token_ids = request_.stop_token_ids;
      generation.grammar = grammar_;
      // A grammar says itself where the answer may end.
      if (!request_.ignore_eos || grammar_) generation.stop_token_ids.insert(generation.stop_token_ids.end(), state_->end_ids.begin(), state_->end_ids.end());
      generation.priority = request_.priority;
      generation.tenant = tenant_;
      generation.cache_salt = request_.cache_salt;
      generation.sink = [self = shared_from_this(), index](TokenEvent&& event) {
        self->responder_->post([self, index, event = std::move(event)]() mutable { self->on_event(index, std::move(event)); });
      };
      const Admission admission = state_->engine->submit(std::move(generation), &choice.engine_id);
      if (admission == Admission::kAccepted) continue;
      for (size_t i = 0; i < index; ++i) state_->engine->cancel(choices_[i]->engine_id);
      done_ = true;
      if (admission == Admission::kStopping) throw ApiError(503, "the server is shutting down", {}, "unavailable_error");
      throw ApiError(429, "the queue is full; try again later", {}, "rate_limit_error", "queue_full");
    }
  }

  void finish_without_tokens(const std::vector<std::vector<int32_t>>& prompts) {
    for (size_t index = 0; index < choices_.size(); ++index) {
      if (request_.echo) choices_[index]->echoed = state_->tokenizer->decode(prompts[index / static_cast<size_t>(request_.n)], {.skip_special = true});
      choices_[index]->prompt_tokens = static_cast<int64_t>(prompts[index / static_cast<size_t>(request_.n)].size());
      choices_[index]->first_token = now_seconds();
      finish_choice(index, "length", {});
    }
  }

  void cancel_all(const char* reason) {
    if (done_) return;
    done_ = true;
    for (const auto& choice : choices_)
      if (choice->finish_reason.empty()) {
        state_->engine->cancel(choice->engine_id);
        record(*choice, reason);
      }
    log(499);
  }

  void on_event(size_t index, TokenEvent event) {
    Choice& choice = *choices_[index];
    if (done_ || !choice.finish_reason.empty()) return;
    const double now = now_seconds();
    if (choice.num_tokens == 0) {
      choice.first_token = now;
      choice.queue_seconds = event.queue_seconds;
      choice.cached_tokens = event.cached_tokens;
    }
    std::string piece;
    for (size_t i = 0; i < event.tokens.size(); ++i) {
      const GeneratedToken& token = event.tokens[i];
      if (choice.num_tokens++ > 0) state_->metrics.add_token_gap(i == 0 ? now - choice.last_token : 0);
      const bool is_end = event.finish == FinishReason::kStop && i + 1 == event.tokens.size();
      if (is_end) {
        const bool by_eos = std::find(state_->end_ids.begin(), state_->end_ids.end(), token.id) != state_->end_ids.end();
        if (!by_eos) choice.stop_reason = token.id;
        break;  // an end token is no part of the text
      }
      if (request_.sampling.top_logprobs >= 0) add_logprobs(choice, token);
      piece += choice.stop.push(choice.decoder.push(token.id));
      if (choice.stop.stopped()) break;
    }
    choice.last_token = now;
    if (choice.stop.stopped()) {
      choice.stop_reason = request_.stop[static_cast<size_t>(choice.stop.stop_index())];
      if (!event.finish) state_->engine->cancel(choice.engine_id);
      return finish_choice(index, "stop", piece);
    }
    if (!event.finish) return emit(index, piece);
    if (*event.finish == FinishReason::kCancelled || *event.finish == FinishReason::kError)
      return fail(ApiError(*event.finish == FinishReason::kError ? 500 : 503, *event.finish == FinishReason::kError ? "the model gave no finite logit" : "the server is shutting down", {}, "server_error"));
    piece += choice.stop.push(choice.decoder.finish());
    if (!choice.stop.stopped()) piece += choice.stop.finish();
    finish_choice(index, *event.finish == FinishReason::kLength && !choice.stop.stopped() ? "length" : "stop", piece);
  }

  json token_json(int32_t id, float logprob) const {
    const std::string_view bytes = state_->tokenizer->token_bytes(id);
    json list = json::array();
    for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
    return {{"token", std::string(bytes)}, {"logprob", std::isfinite(logprob) ? logprob : -9999.0f}, {"bytes", std::move(list)}};
  }

  void add_logprobs(Choice& choice, const GeneratedToken& token) const {
    json entry = token_json(token.id, token.logprob);
    json top = json::array();
    for (const TokenLogprob& other : token.top_logprobs) top.push_back(token_json(other.id, other.logprob));
    entry["top_logprobs"] = std::move(top);
    choice.logprobs.push_back(std::move(entry));
  }

  // The choice's pending log-probabilities in the shape of its route.
  json take_logprobs(Choice& choice) const {
    if (request_.sampling.top_logprobs < 0) return nullptr;
    json entries = std::exchange(choice.logprobs, json::array());
    if (request_.chat) return {{"content", std::move(entries)}, {"refusal", nullptr}};
    json tokens = json::array(), values = json::array(), tops = json::array(), offsets = json::array();
    for (const json& entry : entries) {
      tokens.push_back(entry["token"]);
      values.push_back(entry["logprob"]);
      json top = json::object();
      for (const json& other : entry["top_logprobs"]) top[other["token"].get<std::string>()] = other["logprob"];
      tops.push_back(std::move(top));
      offsets.push_back(choice.text_offset);
      choice.text_offset += static_cast<int64_t>(entry["bytes"].size());
    }
    return {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}};
  }

  json envelope(bool chunk) const {
    return {{"id", fmt::format("{}-{}", request_.chat ? "chatcmpl" : "cmpl", request_id_)},
            {"object", request_.chat ? (chunk ? "chat.completion.chunk" : "chat.completion") : "text_completion"},
            {"created", created_}, {"model", state_->options.model_name}, {"system_fingerprint", "borrery"}};
  }

  json usage() const {
    int64_t completion = 0, cached = 0;
    for (const auto& choice : choices_) {
      completion += choice->num_tokens;
      cached += choice->cached_tokens;
    }
    return {{"prompt_tokens", prompt_tokens_}, {"completion_tokens", completion}, {"total_tokens", prompt_tokens_ + completion}, {"prompt_tokens_details", {{"cached_tokens", std::min(cached, prompt_tokens_)}}}};
  }

  void send_chunk(json choices) {
    if (!streaming_) {
      streaming_ = true;
      responder_->begin_stream();
    }
    const bool last = choices.empty();
    json chunk = envelope(true);
    chunk["choices"] = std::move(choices);
    if (request_.include_usage) chunk["usage"] = last || request_.continuous_usage ? usage() : json(nullptr);
    responder_->write_event(dump(chunk));
  }

  json chunk_choice(size_t index, json delta_or_text, const json& logprobs, const json& finish_reason, const json& stop_reason) const {
    json choice = {{"index", index}, {"logprobs", logprobs}, {"finish_reason", finish_reason}};
    choice[request_.chat ? "delta" : "text"] = std::move(delta_or_text);
    if (!finish_reason.is_null()) choice["stop_reason"] = stop_reason;
    return choice;
  }

  // Content and calls in a piece of text; the calls are kept, and are the events' deltas when streaming.
  json take_calls(Choice& choice, const ToolCallDelta& delta) const {
    json events = json::array();
    for (const ToolCallDelta::Piece& piece : delta.pieces) {
      const auto place = static_cast<size_t>(piece.index);
      const bool first = place >= choice.calls.size();
      if (first) {
        choice.calls.resize(place + 1);
        choice.calls[place] = {fmt::format("call_{}_{}", request_id_, place), piece.name, {}};
      }
      choice.calls[place].arguments += piece.arguments;
      json event = {{"index", piece.index}, {"function", {{"arguments", piece.arguments}}}};
      if (first) {
        event["id"] = choice.calls[place].id;
        event["type"] = "function";
        event["function"]["name"] = piece.name;
      }
      events.push_back(std::move(event));
    }
    return events;
  }

  void emit(size_t index, std::string piece, bool last = false) {
    Choice& choice = *choices_[index];
    json calls = json::array();
    if (choice.parser) {
      ToolCallDelta delta = choice.parser->push(piece);
      piece = delta.content;
      calls = take_calls(choice, delta);
      if (last) {
        delta = choice.parser->finish();
        piece += delta.content;
        for (json& call : take_calls(choice, delta)) calls.push_back(std::move(call));
      }
    }
    if (!request_.stream) {
      choice.text += piece;
      return;
    }
    if (!choice.began) {
      choice.began = true;
      // Sent with the first token and not before, so that a client's time to first token is one.
      if (request_.chat)
        send_chunk(json::array({chunk_choice(index, {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr, nullptr)}));
      else if (!choice.echoed.empty())
        send_chunk(json::array({chunk_choice(index, choice.echoed, nullptr, nullptr, nullptr)}));
    }
    for (json& call : calls) send_chunk(json::array({chunk_choice(index, {{"tool_calls", json::array({std::move(call)})}}, nullptr, nullptr, nullptr)}));
    if (piece.empty() && choice.logprobs.empty()) return;
    const json logprobs = take_logprobs(choice);
    send_chunk(json::array({request_.chat ? chunk_choice(index, {{"content", piece}}, logprobs, nullptr, nullptr) : chunk_choice(index, piece, logprobs, nullptr, nullptr)}));
  }

  void record(const Choice& choice, const char* reason) {
    const double now = now_seconds();
    state_->metrics.add_request({reason, choice.prompt_tokens, choice.num_tokens, choice.counts_prompt, choice.queue_seconds, (choice.first_token > 0 ? choice.first_token : now) - started_, now - started_});
  }

  void finish_choice(size_t index, const char* reason, const std::string& piece) {
    Choice& choice = *choices_[index];
    emit(index, piece, true);
    // As OpenAI: a named tool ends with "stop", a chosen one with "tool_calls", a call cut short with "length".
    if (!choice.calls.empty() && reason == std::string_view("stop") && request_.tool_choice != CompletionRequest::ToolChoice::kNamed) reason = "tool_calls";
    choice.finish_reason = reason;
    if (request_.stream) send_chunk(json::array({chunk_choice(index, request_.chat ? json::object() : json(""), nullptr, reason, choice.stop_reason)}));
    record(choice, reason == std::string_view("tool_calls") ? "stop" : reason);
    if (--open_ > 0) return;
    done_ = true;
    if (request_.stream) {
      if (request_.include_usage) send_chunk(json::array());
      responder_->write_event("[DONE]");
      responder_->end_stream();
      log(200);
      return;
    }
    json body = envelope(false), choices = json::array();
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& each = *choices_[i];
      json out = {{"index", i}, {"logprobs", take_logprobs(each)}, {"finish_reason", each.finish_reason}, {"stop_reason", each.stop_reason}};
      if (request_.chat)
        out["message"] = {{"role", "assistant"}, {"content", each.text}, {"refusal", nullptr}};
      if (request_.chat && !each.calls.empty()) {
        json calls = json::array();
        for (const ToolCall& call : each.calls) calls.push_back({{"id", call.id}, {"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
        out["message"]["tool_calls"] = std::move(calls);
        if (each.text.empty()) out["message"]["content"] = nullptr;
      }
      if (!request_.chat) out["text"] = each.echoed + each.text;
      choices.push_back(std::move(out));
    }
    body["choices"] = std::move(choices);
    body["usage"] = usage();
    responder_->send(json_response(body));
    log(200);
  }

  void fail(const ApiError& error) {
    cancel_all("error");
    if (!streaming_) return responder_->send(error_response(error));
    responder_->write_event(error_body(error));
    responder_->write_event("[DONE]");
    responder_->end_stream();
  }

  void log(int status) {
    state_->metrics.add_http(status);
    int64_t tokens = 0;
    for (const auto& choice : choices_) tokens += choice->num_tokens;
    fmt::print(stderr, "request {} {} {} prompt {} answer {} tokens {:.3f}s\n", request_id_, request_.chat ? "chat" : "completion", status, prompt_tokens_, tokens, now_seconds() - started_);
  }

  std::shared_ptr<State> state_;
  CompletionRequest request_;
  std::string request_id_, tenant_;
  std::shared_ptr<HttpResponder> responder_;
  std::shared_ptr<const Grammar> grammar_;
  std::vector<std::unique_ptr<Choice>> choices_;
  size_t open_ = 0;
  int64_t prompt_tokens_ = 0;
  int64_t created_ = static_cast<int64_t>(std::time(nullptr));
  double started_ = 0;
  bool streaming_ = false, done_ = false;
};

// The last token's final hidden state of each input, of length 1.
class EmbeddingJob : public std::enable_shared_from_this<EmbeddingJob> {
 public:
  EmbeddingJob(std::shared_ptr<State> state, EmbeddingRequest request, const HttpRequest& http, std::shared_ptr<HttpResponder> responder)
      : state_(std::move(state)), request_(std::move(request)), request_id_(http.request_id), tenant_(state_->tenant(http)), responder_(std::move(responder)) {}

  void start() {
    state_->check_model(request_.model);
    std::vector<std::vector<int32_t>> inputs = std::move(request_.input_ids);
    for (const std::string& text : request_.inputs) inputs.push_back(state_->encode(text, true));
    for (const auto& input : inputs) {
      if (input.empty()) throw ApiError(400, "an input is empty", "input");
      if (static_cast<int64_t>(input.size()) > state_->engine->max_context())
        throw ApiError(400, fmt::format("this model's context is {} tokens, an input has {}", state_->engine->max_context(), input.size()), "input", "invalid_request_error", "context_length_exceeded");
      num_tokens_ += static_cast<int64_t>(input.size());
    }
    results_.resize(inputs.size());
    ids_.resize(inputs.size());
    open_ = inputs.size();
    responder_->on_disconnect([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->cancel();
    });
    for (size_t i = 0; i < inputs.size(); ++i) {
      GenerationRequest generation;
      generation.request_id = request_id_;
      generation.prompt = std::move(inputs[i]);
      generation.embed = true;
      generation.tenant = tenant_;
      generation.sink = [self = shared_from_this(), i](TokenEvent&& event) {
        self->responder_->post([self, i, event = std::move(event)]() mutable { self->on_event(i, std::move(event)); });
      };
      const Admission admission = state_->engine->submit(std::move(generation), &ids_[i]);
      if (admission == Admission::kAccepted) continue;
      ids_.resize(i);
      cancel();
      if (admission == Admission::kStopping) throw ApiError(503, "the server is shutting down", {}, "unavailable_error");
      throw ApiError(429, "the queue is full; try again later, or with fewer inputs", {}, "rate_limit_error", "queue_full");
    }
  }

 private:
  void cancel() {
    done_ = true;
    for (const uint64_t id : ids_) state_->engine->cancel(id);
  }
  void on_event(size_t index, TokenEvent event) {
    if (done_) return;
    if (event.finish != FinishReason::kStop) {
      cancel();
      return responder_->send(error_response(ApiError(503, "the server is shutting down", {}, "unavailable_error")));
    }
    double norm = 0;
    for (const float x : event.embedding) norm += static_cast<double>(x) * x;
    const double scale = norm > 0 ? 1 / std::sqrt(norm) : 0;
    for (float& x : event.embedding) x = static_cast<float>(x * scale);
    results_[index] = std::move(event.embedding);
    if (--open_ > 0) return;
    done_ = true;
    json data = json::array();
    for (size_t i = 0; i < results_.size(); ++i)
      data.push_back({{"object", "embedding"}, {"index", i}, {"embedding", request_.base64 ? json(base64(results_[i].data(), results_[i].size() * sizeof(float))) : json(results_[i])}});
    responder_->send(json_response({{"object", "list"}, {"data", data}, {"model", state_->options.model_name}, {"usage", {{"prompt_tokens", num_tokens_}, {"total_tokens", num_tokens_}}}}));
    state_->metrics.add_http(200);
  }

  std::shared_ptr<State> state_;
  EmbeddingRequest request_;
  std::string request_id_, tenant_;
  std::shared_ptr<HttpResponder> responder_;
  std::vector<std::vector<float>> results_;
  std::vector<uint64_t> ids_;
  size_t open_ = 0;
  int64_t num_tokens_ = 0;
  bool done_ = false;
};

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
    return answer(json_response({{"status", ready ? "ok" : state->draining ? "draining" : "loading"}}, ready ? 200 : 503));
  }
  if (!state->ready) throw ApiError(503, "the model is being loaded", {}, "unavailable_error");
  if (path == "/models") {
    only(get, "GET");
    return answer(json_response({{"object", "list"}, {"data", json::array({model_json(*state)})}}));
  }
  if (path.starts_with("/models/")) {
    only(get, "GET");
    if (path.substr(8) != state->options.model_name) throw ApiError(404, fmt::format("there is no model \"{}\" here", path.substr(8)), "model", "not_found_error", "model_not_found");
    return answer(json_response(model_json(*state)));
  }
  if (path == "/metrics") {
    only(get, "GET");
    return answer({200, state->metrics.text(state->options.model_name, state->engine->stats(), resident_memory_bytes(), state->arena_bytes), "text/plain; version=0.0.4", {}, false});
  }
  if (path == "/version") return answer(json_response({{"version", "orrery"}}));
  if (path == "/tokenizer_info") return answer(json_response(tokenizer_info(*state)));
  if (path == "/tokenize" || path == "/detokenize") {
    only(post, "POST");
    return answer(json_response(path == "/tokenize" ? tokenize(*state, request.body) : detokenize(*state, request.body)));
  }
  if (path == "/chat/completions" || path == "/completions" || path == "/embeddings") {
    only(post, "POST");
    if (state->draining) throw ApiError(503, "the server is shutting down", {}, "unavailable_error");
    if (path == "/embeddings") return std::make_shared<EmbeddingJob>(state, parse_embedding_request(request.body, state->vocab_size()), request, responder)->start();
    CompletionRequest parsed = path == "/completions" ? parse_text_request(request.body, state->vocab_size()) : parse_chat_request(request.body, state->vocab_size());
    return std::make_shared<CompletionJob>(state, std::move(parsed), request, responder)->start();
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
    if (!request.origin.empty()) response.headers = {{"Access-Control-Allow-Origin", request.origin}, {"Access-Control-Allow-Credentials", "true"}, {"Access-Control-Allow-Methods", "GET, POST"}, {"Access-Control-Allow-Headers", "*"}};
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
