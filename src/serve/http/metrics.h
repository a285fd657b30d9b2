// What /metrics shows, under vLLM's names so that its dashboards work. Counters are counted where a client sees them: a request's
// tokens when its usage is reported.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "serve/engine.h"

namespace orrery {

class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void add(double value);
  std::string text(const std::string& name, const std::string& labels) const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;  // by bucket, the last beyond every bound
  double sum_ = 0;
};

/// One finished request: a choice of it counts once.
struct RequestRecord {
  std::string finish_reason;
  int64_t prompt_tokens = 0, completion_tokens = 0;
  bool counts_prompt = true;  // false for the further choices of a prompt, whose usage counts it once
  double queue_seconds = 0, first_token_seconds = 0, total_seconds = 0;
};

class Metrics {
 public:
  void add_token_gap(double seconds);
  void add_request(const RequestRecord& record);
  /// One finished request with all its choices: how many of a prompt, tokens asked for at most (where that was said), tokens of the longest choice.
  void add_answer(int64_t n, std::optional<int64_t> max_tokens, int64_t longest_tokens);
  void add_http(int status);
  /// Prometheus text format 0.0.4.
  std::string text(const std::string& model, const EngineStats& stats, int64_t resident_bytes, int64_t arena_bytes) const;

 private:
  mutable std::mutex mutex_;
  int64_t prompt_tokens_ = 0, generation_tokens_ = 0;
  std::map<std::string, int64_t> finished_;
  std::map<int, int64_t> http_;
  static std::vector<double> request_bounds() { return {.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}; }
  static std::vector<double> gap_bounds() { return {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}; }
  static std::vector<double> token_bounds() { return {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000}; }
  Histogram first_token_{{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}};
  Histogram gap_{gap_bounds()}, per_token_{gap_bounds()};
  Histogram total_{request_bounds()}, queue_{request_bounds()}, prefill_{request_bounds()}, decode_{request_bounds()}, inference_{request_bounds()};
  Histogram request_prompt_{token_bounds()}, request_generation_{token_bounds()}, longest_{token_bounds()}, max_tokens_{token_bounds()}, n_{{1, 2, 5, 10, 20}};
};

}  // namespace orrery
