// /v1/responses in terms of /v1/chat/completions: the request is rewritten, and a responder in between rewrites the answer or the events.
// Nothing is stored, so a conversation comes whole with each request: previous_response_id is refused.
#pragma once

#include <memory>
#include <string>

#include "serve/http/server.h"

namespace orrery {

/// The same request as a body of /v1/chat/completions; fields of sampling that both routes know stay as they are.
/// Errors: ApiError 400 naming the field.
std::string chat_body_of_responses(const std::string& body);

/// Takes the answer to that chat request and hands it on as a response object, or as its events. `body`: the request as it came.
std::shared_ptr<HttpResponder> responses_responder(const std::string& body, const std::string& request_id, std::shared_ptr<HttpResponder> next);

}  // namespace orrery
