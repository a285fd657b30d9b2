// One /v1/embeddings request being answered.
#pragma once

#include <memory>

#include "serve/http/api_state.h"

namespace orrery {

/// Errors: ApiError, before anything was sent.
void start_embedding(std::shared_ptr<Api::State> state, EmbeddingRequest request, const HttpRequest& http, std::shared_ptr<HttpResponder> responder);

}  // namespace orrery
