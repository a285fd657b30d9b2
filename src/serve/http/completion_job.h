// One /v1/chat/completions or /v1/completions request being answered.
#pragma once

#include <memory>

#include "serve/http/api_state.h"

namespace orrery {

/// Submits the request's prompts times choices to the engine; the answer, or the events of it, come through `responder`.
/// Errors: ApiError (and Error, of a grammar or template), before anything was sent.
void start_completion(std::shared_ptr<Api::State> state, CompletionRequest request, const HttpRequest& http, std::shared_ptr<HttpResponder> responder);

}  // namespace orrery
