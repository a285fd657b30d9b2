// The body of a request as typed values: every field checked for type and range before anything runs, one message naming the field when
// it is not. Unknown fields are ignored; a known one that asks for what this server cannot do is refused, never silently dropped.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "serve/grammar/grammar.h"
#include "serve/sampling/sampler.h"

namespace orrery {

/// What the client is told: OpenAI's error object.
struct ApiError : std::runtime_error {
  ApiError(int status_in, const std::string& message, std::string param_in = {}, std::string type_in = "invalid_request_error", std::string code_in = {})
      : std::runtime_error(message), status(status_in), param(std::move(param_in)), type(std::move(type_in)), code(std::move(code_in)) {}
  int status;
  std::string param, type, code;
};

std::string error_body(const ApiError& error);

/// The body as a JSON object, its depth and the members of its objects bounded. Errors: ApiError 400.
nlohmann::ordered_json parse_request_object(const std::string& body);

/// What chat and text completions share, and what only one of them has.
struct CompletionRequest {
  bool chat = false;
  std::string model;
  std::string messages_json;                   // chat: the messages as they came, roles checked
  std::string template_arguments_json;         // chat: chat_template_kwargs, an object, or empty
  std::string tools_json;                      // chat: the tools that the template shows; empty: none
  std::vector<Grammar::Tool> callable;         // tools that may be called: none with tool_choice "none"
  enum class ToolChoice : uint8_t { kAuto, kRequired, kNamed } tool_choice = ToolChoice::kAuto;
  bool parallel_tool_calls = true;
  bool add_generation_prompt = true;
  std::optional<GrammarKind> grammar_kind;     // structured output
  std::string grammar_text;
  std::vector<std::string> prompts;            // text: strings, or
  std::vector<std::vector<int32_t>> prompt_ids;  // token ids; one of the two
  bool echo = false;
  std::optional<int64_t> max_tokens;
  int64_t n = 1, best_of = 1;                  // n of best_of choices are told: those with the largest mean log-probability
  bool stream = false, include_usage = false, continuous_usage = false;
  SamplingOptions sampling;                    // top_logprobs included
  bool tell_logprobs = false;
  bool has_seed = false;
  std::vector<std::string> stop;
  bool include_stop = false, ignore_eos = false, add_special_tokens = true, skip_special_tokens = true;
  std::vector<int32_t> stop_token_ids;
  int32_t priority = 0;
  std::string cache_salt;
};

/// Errors: ApiError 400. `vocab_size` bounds token ids.
CompletionRequest parse_chat_request(const std::string& body, int64_t vocab_size);
CompletionRequest parse_text_request(const std::string& body, int64_t vocab_size);

struct EmbeddingRequest {
  std::string model;
  std::vector<std::string> inputs;
  std::vector<std::vector<int32_t>> input_ids;
  bool base64 = false;
};
EmbeddingRequest parse_embedding_request(const std::string& body, int64_t vocab_size);

struct TokenizeRequest {
  std::string text;
  std::string messages_json;
  bool is_chat = false, add_special = true;
  std::vector<int32_t> tokens;  // detokenize
};
TokenizeRequest parse_tokenize_request(const std::string& body);
TokenizeRequest parse_detokenize_request(const std::string& body, int64_t vocab_size);

}  // namespace orrery
