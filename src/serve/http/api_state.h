// What the routes of the API share: the engine and what stands around it, and the forms of answers. Private to serve/http.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "serve/chat/chat_template.h"
#include "serve/chat/tool_calls.h"
#include "serve/http/api.h"
#include "serve/http/request.h"

namespace orrery {

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

  /// A whole prompt, written by whoever knows the model's form: special tokens in it are their ids. A chat's messages are plain text (encode_prompt).
  std::vector<int32_t> encode(const std::string& text, bool add_special) const;
  /// JSON texts of messages, tools (or empty) and template arguments (or empty). Errors: ApiError; Error of the template.
  std::vector<int32_t> encode_chat(const std::string& messages, const std::string& tools, const std::string& arguments, bool add_generation_prompt) const;
  /// Errors: ApiError 404 when only the served name is answered to.
  void check_model(const std::string& name) const;
  /// The key's place in the list, never the key.
  std::string tenant(const HttpRequest& request) const;
  static std::string key_of(const HttpRequest& request);
};

/// Hands parts [*next, num_parts) of one request to the engine, in order, as far as they may go now; num_open: those that have not ended, the
/// ones from *next on included. One more of a request is with the engine than can run at a time: the others wait here, or a long list would be a
/// full queue for ever. Call it again when a part has ended. Errors: ApiError 429 when not even the first is let in, 503 while the server stops.
void submit_parts(const Engine& engine, size_t num_parts, size_t num_open, size_t* next, const std::function<Admission(size_t part)>& submit);

double now_seconds();
HttpResponse json_response(std::string body, int status = 200);
HttpResponse error_response(const ApiError& error);

}  // namespace orrery
