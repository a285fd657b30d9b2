#include "serve/http/completion_job.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "base/error.h"
#include "serve/chat/stop_matcher.h"

namespace orrery {
namespace {

using json = nlohmann::ordered_json;  // members as they are written here: id, object, ..., usage

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

// One completion request being answered: its prompts times n choices, each a request of the engine. Everything runs on the
// connection's strand.
class CompletionJob : public std::enable_shared_from_this<CompletionJob> {
 public:
  CompletionJob(std::shared_ptr<Api::State> state, CompletionRequest request, const HttpRequest& http, std::shared_ptr<HttpResponder> responder)
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
    request_.sampling.end_ids.insert(request_.sampling.end_ids.end(), request_.stop_token_ids.begin(), request_.stop_token_ids.end());
    for (const auto& prompt : prompts) {
      prompt_tokens_ += static_cast<int64_t>(prompt.size());
      for (int64_t i = 0; i < request_.best_of; ++i) {
        choices_.push_back(std::make_unique<Choice>(tokenizer, request_));
        choices_.back()->counts_prompt = i == 0;
        if (!request_.callable.empty()) choices_.back()->parser.emplace(state_->tool_format, request_.tool_choice != CompletionRequest::ToolChoice::kAuto);
      }
    }
    open_ = choices_.size();
    responder_->on_disconnect([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->cancel_all("abort", 499);
    });
    if (request_.best_of > request_.n) request_.sampling.top_logprobs = std::max(0, request_.sampling.top_logprobs);
    if (request_.max_tokens == 0 && !scores_prompt()) return finish_without_tokens(prompts);
    prompts_ = std::move(prompts);
    try {
      submit_more();
    } catch (const ApiError&) {
      done_ = true;
      throw;
    }
  }

 private:
  struct ToolCall {
    std::string id, name, arguments;
  };
  struct Choice {
    Choice(const Tokenizer& tokenizer, const CompletionRequest& request) : decoder(tokenizer, {.skip_special = request.skip_special_tokens}), stop(request.stop, request.include_stop) {}
    std::optional<ToolCallParser> parser;  // when tools may be called
    std::vector<ToolCall> calls;
    std::optional<uint64_t> engine_id;  // none: not submitted yet
    StreamDecoder decoder;
    StopMatcher stop;
    std::string text, echoed;
    json logprobs = json::array();  // those not sent yet; all of them when not streaming
    int64_t num_tokens = 0, prompt_tokens = 0, cached_tokens = 0, text_offset = 0;
    double queue_seconds = 0, first_token = 0, last_token = 0;
    double logprob_sum = 0;     // of the answer's tokens, where they are known
    json stop_reason = nullptr;
    std::string finish_reason;  // empty: still going
    bool began = false;         // its first chunk was sent
    bool counts_prompt = true;  // the first of its prompt's choices
  };

  bool scores_prompt() const { return request_.echo && request_.tell_logprobs; }

  // An answer that must be one call begins with the call's object, without the format's marks; several are written as the format has them.
  std::shared_ptr<const Grammar> compile_grammar() const {
    using ToolChoice = CompletionRequest::ToolChoice;
    if (!request_.callable.empty() && request_.tool_choice != ToolChoice::kAuto) {
      Grammar::ToolForm form;
      if (state_->tool_format == ToolCallFormat::kLlama3Json) form.arguments_key = "parameters";
      if (request_.tool_choice == ToolChoice::kRequired && request_.parallel_tool_calls) {
        form.parallel = true;
        switch (state_->tool_format) {
          case ToolCallFormat::kHermes: form.begin = "<tool_call>\n", form.end = "\n</tool_call>", form.separator = "\n"; break;
          case ToolCallFormat::kLlama3Json: form.separator = "; "; break;
          case ToolCallFormat::kMistral: form.open = "[", form.separator = ", ", form.close = "]"; break;
        }
      }
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

  void submit_more() {
    submit_parts(*state_->engine, choices_.size(), open_, &next_, [this](size_t index) { return submit(index); });
  }

  Admission submit(size_t index) {
    const auto& prompt = prompts_[prompt_index(index)];
    Choice& choice = *choices_[index];
    choice.prompt_tokens = static_cast<int64_t>(prompt.size());
    if (request_.echo) choice.echoed = state_->tokenizer->decode(prompt, {.skip_special = request_.skip_special_tokens});
    GenerationRequest generation;
    generation.request_id = request_id_;
    generation.prompt = prompt;
    // Where only the prompt's log-probabilities are wanted, one token is drawn and not told.
    generation.max_tokens = std::max<int64_t>(1, request_.max_tokens.value_or(state_->engine->max_context() - static_cast<int64_t>(prompt.size())));
    generation.prompt_logprobs = scores_prompt();
    generation.continues = index > 0;
    generation.sampling = request_.sampling;
    generation.sampling.seed = choice_seed(request_.sampling.seed, static_cast<int64_t>(index) % request_.best_of);
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
    uint64_t id = 0;
    const Admission admission = state_->engine->submit(std::move(generation), &id);
    if (admission != Admission::kAccepted) return admission;
    choice.engine_id = id;
    if (scores_prompt()) add_prompt_token(choice, prompt.front(), nullptr);
    return admission;
  }

  size_t prompt_index(size_t index) const { return index / static_cast<size_t>(request_.best_of); }

  void finish_without_tokens(const std::vector<std::vector<int32_t>>& prompts) {
    next_ = choices_.size();
    for (size_t index = 0; index < choices_.size(); ++index) {
      const auto& prompt = prompts[prompt_index(index)];
      if (request_.echo) choices_[index]->echoed = state_->tokenizer->decode(prompt, {.skip_special = request_.skip_special_tokens});
      choices_[index]->prompt_tokens = static_cast<int64_t>(prompt.size());
      choices_[index]->first_token = now_seconds();
      finish_choice(index, "length", {});
    }
  }

  // `status`: what the client was told; 499 where nobody is there any more.
  void cancel_all(const char* reason, int status) {
    if (done_) return;
    done_ = true;
    for (const auto& choice : choices_)
      if (choice->finish_reason.empty()) {
        if (choice->engine_id) state_->engine->cancel(*choice->engine_id);
        record(*choice, reason);
      }
    log(status);
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
    for (const GeneratedToken& token : event.prompt) add_prompt_token(choice, token.id, &token);
    if (request_.max_tokens == 0 && event.finish && *event.finish != FinishReason::kCancelled && *event.finish != FinishReason::kError) return finish_choice(index, "length", {});
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
      choice.logprob_sum += token.logprob;
      if (request_.tell_logprobs) add_logprobs(choice, token);
      piece += choice.stop.push(choice.decoder.push(token.id));
      if (choice.stop.stopped()) break;
    }
    choice.last_token = now;
    if (choice.stop.stopped()) {
      choice.stop_reason = request_.stop[static_cast<size_t>(choice.stop.stop_index())];
      if (!event.finish) state_->engine->cancel(*choice.engine_id);
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

  // A token of an echoed prompt; the first has no log-probability.
  void add_prompt_token(Choice& choice, int32_t id, const GeneratedToken* scored) const {
    if (scored) return add_logprobs(choice, *scored);
    json entry = token_json(id, 0);
    entry["logprob"] = nullptr;
    entry["top_logprobs"] = nullptr;
    choice.logprobs.push_back(std::move(entry));
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
    if (!request_.tell_logprobs) return nullptr;
    json entries = std::exchange(choice.logprobs, json::array());
    if (request_.chat) return {{"content", std::move(entries)}, {"refusal", nullptr}};
    json tokens = json::array(), values = json::array(), tops = json::array(), offsets = json::array();
    for (const json& entry : entries) {
      tokens.push_back(entry["token"]);
      values.push_back(entry["logprob"]);
      json top = entry["top_logprobs"].is_null() ? json(nullptr) : json::object();
      for (const json& other : entry["top_logprobs"]) top[other["token"].get<std::string>()] = other["logprob"];
      // The token itself is always among them, so there may be one more than was asked for.
      if (const std::string token = entry["token"].get<std::string>(); !top.is_null() && !top.contains(token)) top[token] = entry["logprob"];
      tops.push_back(std::move(top));
      // In characters: a byte that goes on with one begins none.
      offsets.push_back(choice.text_offset);
      choice.text_offset += std::count_if(entry["bytes"].begin(), entry["bytes"].end(), [](const json& byte) { return (byte.get<int>() & 0xC0) != 0x80; });
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
    json choice = {{"index", index}};
    choice[request_.chat ? "delta" : "text"] = std::move(delta_or_text);
    choice["logprobs"] = logprobs, choice["finish_reason"] = finish_reason;
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
      json event = {{"index", piece.index}};
      if (first) event["id"] = choice.calls[place].id, event["type"] = "function", event["function"]["name"] = piece.name;
      event["function"]["arguments"] = piece.arguments;
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
    if (--open_ > 0) {
      try {
        return submit_more();
      } catch (const ApiError& error) {
        return fail(error);
      }
    }
    done_ = true;
    if (request_.stream) {
      if (request_.include_usage) send_chunk(json::array());
      responder_->write_event("[DONE]");
      responder_->end_stream();
      log(200);
      return;
    }
    json body = envelope(false), choices = json::array();
    const std::vector<size_t> told = told_choices();
    for (size_t i = 0; i < told.size(); ++i) {
      Choice& each = *choices_[told[i]];
      json out = {{"index", i}};
      if (request_.chat)
        out["message"] = {{"role", "assistant"}, {"content", each.text}, {"refusal", nullptr}};
      if (request_.chat && !each.calls.empty()) {
        json calls = json::array();
        for (const ToolCall& call : each.calls) calls.push_back({{"id", call.id}, {"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
        out["message"]["tool_calls"] = std::move(calls);
        if (each.text.empty()) out["message"]["content"] = nullptr;
      }
      if (!request_.chat) out["text"] = each.echoed + each.text;
      out["logprobs"] = take_logprobs(each), out["finish_reason"] = each.finish_reason, out["stop_reason"] = each.stop_reason;
      choices.push_back(std::move(out));
    }
    body["choices"] = std::move(choices);
    body["usage"] = usage();
    responder_->send(json_response(dump(body)));
    log(200);
  }

  // With best_of, of each prompt the n with the largest mean log-probability, the best first.
  std::vector<size_t> told_choices() const {
    std::vector<size_t> told;
    const auto group = static_cast<size_t>(request_.best_of);
    const auto mean = [this](size_t i) { return choices_[i]->logprob_sum / static_cast<double>(std::max<int64_t>(1, choices_[i]->num_tokens)); };
    for (size_t first = 0; first < choices_.size(); first += group) {
      std::vector<size_t> order(group);
      std::iota(order.begin(), order.end(), first);
      if (request_.best_of > request_.n) std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return mean(a) > mean(b); });
      told.insert(told.end(), order.begin(), order.begin() + request_.n);
    }
    return told;
  }

  void fail(const ApiError& error) {
    cancel_all("error", streaming_ ? 200 : error.status);
    if (!streaming_) return responder_->send(error_response(error));
    responder_->write_event(error_body(error));
    responder_->write_event("[DONE]");
    responder_->end_stream();
  }

  void log(int status) {
    state_->metrics.add_http(status);
    int64_t tokens = 0, longest = 0;
    for (const auto& choice : choices_) {
      tokens += choice->num_tokens;
      longest = std::max(longest, choice->num_tokens);
    }
    state_->metrics.add_answer(request_.n, request_.max_tokens, longest);
    fmt::print(stderr, "request {} {} {} prompt {} answer {} tokens {:.3f}s\n", request_id_, request_.chat ? "chat" : "completion", status, prompt_tokens_, tokens, now_seconds() - started_);
  }

  std::shared_ptr<Api::State> state_;
  CompletionRequest request_;
  std::string request_id_, tenant_;
  std::shared_ptr<HttpResponder> responder_;
  std::shared_ptr<const Grammar> grammar_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<std::unique_ptr<Choice>> choices_;
  size_t next_ = 0;  // the first choice that was not submitted yet
  size_t open_ = 0;  // choices that have not ended
  int64_t prompt_tokens_ = 0;
  int64_t created_ = static_cast<int64_t>(std::time(nullptr));
  double started_ = 0;
  bool streaming_ = false, done_ = false;
};

}  // namespace

void start_completion(std::shared_ptr<Api::State> state, CompletionRequest request, const HttpRequest& http, std::shared_ptr<HttpResponder> responder) {
  std::make_shared<CompletionJob>(std::move(state), std::move(request), http, std::move(responder))->start();
}

}  // namespace orrery
