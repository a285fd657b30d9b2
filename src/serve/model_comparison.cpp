#include "serve/model_comparison.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/philox.h"
#include "serve/generator.h"
#include "serve/serving_model.h"

namespace orrery {
namespace {

// Logits of a piece of rows exist at a time: with a vocabulary of 262,144, 64 rows are 64 MiB.
constexpr int64_t kPieceTokens = 64;

class Reader {
 public:
  Reader(const ModelSource& source, int64_t window_tokens, const ComparisonOptions& options)
      : model_(source, {.num_threads = options.num_threads, .max_context = window_tokens, .max_tokens = kPieceTokens, .max_rows = kPieceTokens}) {
    int32_t* table = model_.field<int32_t>(BatchField::kBlockTable);
    for (int64_t block = 0; block < model_.plan().blocks_per_sequence; ++block) table[block] = static_cast<int32_t>(block);
  }
  /// Tokens [position, position + ids.size()) of the window; the logits after each are logits(0...).
  void read(std::span<const int32_t> ids, int64_t position) {
    const auto count = static_cast<int64_t>(ids.size());
    for (int64_t i = 0; i < count; ++i) {
      model_.field<int32_t>(BatchField::kIds)[i] = ids[static_cast<size_t>(i)];
      model_.field<int32_t>(BatchField::kPositions)[i] = static_cast<int32_t>(position + i);
      model_.field<int32_t>(BatchField::kSlots)[i] = static_cast<int32_t>(position + i);
      model_.field<int32_t>(BatchField::kRows)[i] = static_cast<int32_t>(i);
    }
    model_.field<int32_t>(BatchField::kCuSeqlens)[0] = 0;
    model_.field<int32_t>(BatchField::kCuSeqlens)[1] = static_cast<int32_t>(count);
    model_.field<int32_t>(BatchField::kContextLens)[0] = static_cast<int32_t>(position + count);
    model_.forward(count, 1, count);
  }
  std::span<const float> logits(int64_t row) const { return model_.logits(row); }

 private:
  ServingModel model_;
};

/// log of the sum of exp, in f64.
double log_total(std::span<const float> logits, float top) {
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit - top));
  return top + std::log(total);
}

void add_position(std::span<const float> p, std::span<const float> q, int32_t next, ModelComparison& sums) {
  const auto p_top = std::max_element(p.begin(), p.end()), q_top = std::max_element(q.begin(), q.end());
  const double p_log = log_total(p, *p_top), q_log = log_total(q, *q_top);
  for (size_t i = 0; i < p.size(); ++i) {
    const double log_p = p[i] - p_log;
    sums.divergence += std::exp(log_p) * (log_p - (q[i] - q_log));
  }
  sums.reference_loss -= p[static_cast<size_t>(next)] - p_log;
  sums.candidate_loss -= q[static_cast<size_t>(next)] - q_log;
  sums.same_top += p_top - p.begin() == q_top - q.begin();
  ++sums.num_tokens;
}

int64_t window_of(const ModelSource& source, const ComparisonOptions& options) { return std::min(options.window_tokens, source.config().max_seq_len); }

}  // namespace

ModelComparison compare_models(const ModelSource& reference, const ModelSource& candidate, std::span<const int32_t> ids, int32_t bos, const ComparisonOptions& options) {
  if (reference.config().vocab_size != candidate.config().vocab_size)
    throw Error(ErrorCode::kInvalidArgument, "{} has a vocabulary of {}, {} one of {}; only forms of one model are compared", reference.path(), reference.config().vocab_size,
                candidate.path(), candidate.config().vocab_size);
  const int64_t window = window_of(reference, options);
  if (static_cast<int64_t>(ids.size()) < window)
    throw Error(ErrorCode::kInvalidArgument, "a text of {} tokens is shorter than one window of {}; give a longer one", ids.size(), window);
  Reader p(reference, window, options), q(candidate, window, options);
  ModelComparison sums;
  std::vector<int32_t> part(static_cast<size_t>(window));
  for (int64_t begin = 0; begin + window <= static_cast<int64_t>(ids.size()); begin += window) {
    std::copy_n(ids.begin() + begin, window, part.begin());
    if (bos >= 0) part[0] = bos;
    for (int64_t at = 0; at < window; at += kPieceTokens) {
      const auto piece = std::span(part).subspan(static_cast<size_t>(at), static_cast<size_t>(std::min(kPieceTokens, window - at)));
      p.read(piece, at);
      q.read(piece, at);
      for (int64_t i = at; i < at + static_cast<int64_t>(piece.size()); ++i)
        if (i >= window / 2 && i + 1 < window) add_position(p.logits(i - at), q.logits(i - at), part[static_cast<size_t>(i + 1)], sums);
    }
  }
  const auto count = static_cast<double>(sums.num_tokens);
  for (double* sum : {&sums.reference_loss, &sums.candidate_loss, &sums.divergence, &sums.same_top}) *sum /= count;
  return sums;
}

std::vector<int32_t> sample_own_text(const ModelSource& source, int32_t start, int64_t count, uint64_t seed, const ComparisonOptions& options) {
  const int64_t window = window_of(source, options);
  Generator generator(source, {.num_threads = options.num_threads, .max_context = window});
  const PhiloxStream stream(seed, RandomPurpose::kSample, 2, 0);
  std::vector<int32_t> ids;
  while (static_cast<int64_t>(ids.size()) < count) {
    generator.clear();
    int32_t next = start;
    for (int64_t position = 0; position < window; ++position) {
      ids.push_back(next);
      if (position + 1 == window) break;
      const std::span<const float> logits = generator.append(std::span(&next, 1));
      const float top = *std::max_element(logits.begin(), logits.end());
      // The token at which the running sum of probabilities passes the draw.
      double left = static_cast<double>(stream.uniform(ids.size())) * std::exp(log_total(logits, top) - top);
      next = 0;
      for (size_t i = 0; i < logits.size(); ++i) {
        left -= std::exp(static_cast<double>(logits[i] - top));
        if (left > 0) continue;
        next = static_cast<int32_t>(i);
        break;
      }
    }
  }
  return ids;
}

}  // namespace orrery
