// The OpenAI-compatible API over one engine: routes, keys, JSON in and out, text from tokens, event streams. It runs on the HTTP
// threads; the engine's thread only hands tokens over. What a request may say and what is refused: request.h.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "serve/engine.h"
#include "serve/http/metrics.h"
#include "serve/http/server.h"
#include "tokenizer/tokenizer.h"

namespace orrery {

struct ApiOptions {
  std::string model_name;
  std::vector<std::string> api_keys;  // empty: everybody may ask
  bool any_model_name = true;         // answer to other names too: there is just one model
};

class Api final : public HttpHandler {
 public:
  explicit Api(ApiOptions options);
  ~Api() override;

  /// From now on requests are answered; before it, everything but /health says 503. `engine` outlives the server's threads.
  void attach(Engine& engine, const Tokenizer& tokenizer, std::vector<int32_t> end_ids, int64_t arena_bytes);
  /// /health says 503 and new requests are refused; what runs goes on.
  void drain();

  std::optional<HttpResponse> check_head(const HttpRequest& request) override;
  void handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) override;
  HttpResponse error(int status, const std::string& message) override;

  struct State;

 private:
  std::shared_ptr<State> state_;
};

}  // namespace orrery
