#include "serve/http/embedding_job.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace orrery {
namespace {

using json = nlohmann::ordered_json;  // members as they are written here: id, object, ..., usage

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

// The last token's final hidden state of each input, of length 1.
class EmbeddingJob : public std::enable_shared_from_this<EmbeddingJob> {
 public:
  EmbeddingJob(std::shared_ptr<Api::State> state, EmbeddingRequest request, const HttpRequest& http, std::shared_ptr<HttpResponder> responder)
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
    inputs_ = std::move(inputs);
    results_.resize(inputs_.size());
    open_ = inputs_.size();
    responder_->on_disconnect([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->cancel();
    });
    try {
      submit_more();
    } catch (const ApiError&) {
      cancel();
      throw;
    }
  }

 private:
  void submit_more() {
    submit_parts(*state_->engine, inputs_.size(), open_, &next_, [this](size_t index) { return submit(index); });
  }

  Admission submit(size_t index) {
    GenerationRequest generation;
    generation.request_id = request_id_;
    generation.prompt = inputs_[index];
    generation.embed = true;
    generation.continues = index > 0;
    generation.tenant = tenant_;
    generation.sink = [self = shared_from_this(), index](TokenEvent&& event) {
      self->responder_->post([self, index, event = std::move(event)]() mutable { self->on_event(index, std::move(event)); });
    };
    uint64_t id = 0;
    const Admission admission = state_->engine->submit(std::move(generation), &id);
    if (admission == Admission::kAccepted) ids_.push_back(id);
    return admission;
  }

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
    if (--open_ > 0) {
      try {
        return submit_more();
      } catch (const ApiError& error) {
        cancel();
        return responder_->send(error_response(error));
      }
    }
    done_ = true;
    json data = json::array();
    for (size_t i = 0; i < results_.size(); ++i)
      data.push_back({{"object", "embedding"}, {"index", i}, {"embedding", request_.base64 ? json(base64(results_[i].data(), results_[i].size() * sizeof(float))) : json(results_[i])}});
    responder_->send(json_response(json({{"object", "list"}, {"data", data}, {"model", state_->options.model_name}, {"usage", {{"prompt_tokens", num_tokens_}, {"total_tokens", num_tokens_}}}}).dump()));
    state_->metrics.add_http(200);
  }

  std::shared_ptr<Api::State> state_;
  EmbeddingRequest request_;
  std::string request_id_, tenant_;
  std::shared_ptr<HttpResponder> responder_;
  std::vector<std::vector<int32_t>> inputs_;
  std::vector<std::vector<float>> results_;
  std::vector<uint64_t> ids_;  // of the inputs that were submitted
  size_t next_ = 0;            // the first input that was not
  size_t open_ = 0;            // inputs without a result
  int64_t num_tokens_ = 0;
  bool done_ = false;
};

}  // namespace

void start_embedding(std::shared_ptr<Api::State> state, EmbeddingRequest request, const HttpRequest& http, std::shared_ptr<HttpResponder> responder) {
  std::make_shared<EmbeddingJob>(std::move(state), std::move(request), http, std::move(responder))->start();
}

}  // namespace orrery
