#include "serve/http/metrics.h"

#include <fmt/format.h>

#include <algorithm>

namespace orrery {

void Histogram::add(double value) {
  ++counts_[static_cast<size_t>(std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin())];
  sum_ += value;
}

std::string Histogram::text(const std::string& name, const std::string& labels) const {
  std::string out = fmt::format("# TYPE {} histogram\n", name);
  int64_t total = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    total += counts_[i];
    out += fmt::format("{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, i < bounds_.size() ? fmt::format("{}", bounds_[i]) : "+Inf", total);
  }
  return out + fmt::format("{0}_sum{{{1}}} {2}\n{0}_count{{{1}}} {3}\n", name, labels, sum_, total);
}

void Metrics::add_token_gap(double seconds) {
  const std::lock_guard lock(mutex_);
  gap_.add(seconds);
}

void Metrics::add_request(const RequestRecord& record) {
  const std::lock_guard lock(mutex_);
  if (record.counts_prompt) prompt_tokens_ += record.prompt_tokens;
  generation_tokens_ += record.completion_tokens;
  ++finished_[record.finish_reason];
  first_token_.add(record.first_token_seconds);
  total_.add(record.total_seconds);
  queue_.add(record.queue_seconds);
  prefill_.add(std::max(0.0, record.first_token_seconds - record.queue_seconds));
  decode_.add(record.total_seconds - record.first_token_seconds);
  inference_.add(std::max(0.0, record.total_seconds - record.queue_seconds));
  if (record.completion_tokens > 1) per_token_.add((record.total_seconds - record.first_token_seconds) / static_cast<double>(record.completion_tokens - 1));
  request_prompt_.add(static_cast<double>(record.prompt_tokens));
  request_generation_.add(static_cast<double>(record.completion_tokens));
}

void Metrics::add_answer(int64_t n, std::optional<int64_t> max_tokens, int64_t longest_tokens) {
  const std::lock_guard lock(mutex_);
  n_.add(static_cast<double>(n));
  if (max_tokens) max_tokens_.add(static_cast<double>(*max_tokens));
  longest_.add(static_cast<double>(longest_tokens));
}

void Metrics::add_http(int status) {
  const std::lock_guard lock(mutex_);
  ++http_[status];
}

std::string Metrics::text(const std::string& model, const EngineStats& stats, int64_t resident_bytes, int64_t arena_bytes) const {
  std::string escaped;
  for (const char c : model) {
    if (c == '"' || c == '\\') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  const std::string labels = fmt::format("model_name=\"{}\",engine=\"0\"", escaped);
  std::string out;
  const auto value = [&](const char* type, const char* name, auto number, const std::string& more = {}) {
    out += fmt::format("# TYPE vllm:{0} {1}\nvllm:{0}{{{2}{3}}} {4}\n", name, type, labels, more, number);
  };
  const std::lock_guard lock(mutex_);
  value("gauge", "num_requests_running", stats.running);
  value("gauge", "num_requests_waiting", stats.waiting);
  value("gauge", "kv_cache_usage_perc", stats.kv_blocks > 0 ? static_cast<double>(stats.kv_blocks_used) / static_cast<double>(stats.kv_blocks) : 0.0);
  value("counter", "prompt_tokens_total", prompt_tokens_);
  value("counter", "generation_tokens_total", generation_tokens_);
  value("counter", "num_preemptions_total", stats.counters.preemptions);
  value("counter", "prefix_cache_queries_total", stats.counters.prefix_queried_tokens);
  value("counter", "prefix_cache_hits_total", stats.counters.prefix_hit_tokens);
  // The names of before, which older boards read.
  value("counter", "gpu_prefix_cache_queries_total", stats.counters.prefix_queried_tokens);
  value("counter", "gpu_prefix_cache_hits_total", stats.counters.prefix_hit_tokens);
  value("counter", "spec_decode_num_drafts_total", stats.counters.drafts);
  value("counter", "spec_decode_num_draft_tokens_total", stats.counters.draft_tokens);
  value("counter", "spec_decode_num_accepted_tokens_total", stats.counters.accepted_tokens);
  out += "# TYPE vllm:request_success_total counter\n";
  for (const char* reason : {"stop", "length", "abort", "error"}) {
    const auto found = finished_.find(reason);
    out += fmt::format("vllm:request_success_total{{{},finished_reason=\"{}\"}} {}\n", labels, reason, found == finished_.end() ? 0 : found->second);
  }
  out += first_token_.text("vllm:time_to_first_token_seconds", labels) + gap_.text("vllm:inter_token_latency_seconds", labels) +
         per_token_.text("vllm:request_time_per_output_token_seconds", labels) + total_.text("vllm:e2e_request_latency_seconds", labels) +
         queue_.text("vllm:request_queue_time_seconds", labels) + prefill_.text("vllm:request_prefill_time_seconds", labels) +
         decode_.text("vllm:request_decode_time_seconds", labels) + inference_.text("vllm:request_inference_time_seconds", labels) +
         request_prompt_.text("vllm:request_prompt_tokens", labels) + request_generation_.text("vllm:request_generation_tokens", labels) +
         longest_.text("vllm:request_max_num_generation_tokens", labels) + max_tokens_.text("vllm:request_params_max_tokens", labels) + n_.text("vllm:request_params_n", labels);
  out += "# TYPE http_requests_total counter\n";
  for (const auto& [status, count] : http_) out += fmt::format("http_requests_total{{status=\"{}\"}} {}\n", status, count);
  out += fmt::format("# TYPE orrery_engine_steps_total counter\norrery_engine_steps_total {}\n# TYPE orrery_engine_step_tokens_total counter\norrery_engine_step_tokens_total {}\n# TYPE orrery_engine_busy_seconds_total counter\norrery_engine_busy_seconds_total {}\n", stats.steps, stats.step_tokens, stats.busy_seconds);
  out += fmt::format("# TYPE orrery_arena_bytes gauge\norrery_arena_bytes {}\n# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {}\n", arena_bytes, resident_bytes);
  return out;
}

}  // namespace orrery
