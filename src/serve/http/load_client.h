// Load on an OpenAI-compatible server, ours or another: streamed completions at a rate or from a number of clients, and when each token came.
// Plain HTTP only. Everything runs on the caller's thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace orrery {

struct LoadOptions {
  std::string url = "http://127.0.0.1:8080";  // with a path, that path; else /v1/completions or, for chat, /v1/chat/completions
  std::string model;                          // empty: the first of /v1/models
  std::string api_key;
  bool chat = false;
  double rate = 0;               // requests a second, as a Poisson process; 0: `clients` that each send the next request when one ends
  int64_t clients = 1;
  int64_t requests = 100;        // to be sent in all
  int64_t prompt_words = 128, max_tokens = 64;
  double temperature = 0.8;
  uint64_t seed = 1;             // of arrivals, prompts and answers
  double timeout_seconds = 300;  // of a request
};

struct LoadResult {
  int64_t completed = 0, prompt_tokens = 0, generated_tokens = 0;  // tokens by the server's usage; its events where it tells none
  std::map<std::string, int64_t> failures;                         // "429", "timeout", ...
  double seconds = 0;
  std::vector<double> first_token, between_tokens, whole;  // seconds: to the first event with a token, between events, to the end
  std::vector<double> refused;                             // seconds until a 429 or 503 was there whole
};

/// Errors: kInvalidArgument: the URL. kIo: nobody listens there, or it has no model.
LoadResult run_load(const LoadOptions& options);

}  // namespace orrery
