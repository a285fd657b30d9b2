#include "serve/sampling/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "backend/cpu/math_arrays.h"
#include "base/error.h"
#include "base/philox.h"
#include "base/portable_math.h"

namespace orrery {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
// Ids are looked at in blocks: the maxima of blocks tell which blocks cannot matter.
constexpr size_t kBlock = 64;
// u = (w + 1/2) / 2^32, so -log(-log(u)) lies in (-3.14, 22.88).
constexpr double kGumbelMax = 22.88;

const MathArrays& vector_math() { return math_arrays(cpu_features().best_isa()); }

double gumbel(uint32_t word) { return -portable_log(-portable_log((static_cast<double>(word) + 0.5) * 0x1p-32)); }

// exp(x) for x <= 0, and 0 where it would be denormal.
double small_exp(double x) { return x < -700 ? 0.0 : portable_exp(x); }

std::array<uint32_t, 4> noise(const PhiloxStream& stream, int64_t position, size_t id) {
  return stream.group(static_cast<uint64_t>(position) << 32 | static_cast<uint64_t>(id) >> 2);
}

}  // namespace

void SamplerScratch::resize(size_t vocab_size) {
  if (logits_.size() == vocab_size) return;
  logits_.resize(vocab_size);
  weights_.resize(vocab_size);
  block_max_.resize((vocab_size + kBlock - 1) / kBlock);
  candidates_.reserve(vocab_size);
}

Sampler::Sampler(SamplingOptions options, int64_t tokens_max) : options_(std::move(options)) {
  counts_tokens_ = options_.presence_penalty != 0 || options_.frequency_penalty != 0 || options_.repetition_penalty != 1;
  if (!counts_tokens_) return;
  size_t size = 64;
  while (size < 2 * static_cast<size_t>(std::max<int64_t>(0, tokens_max))) size *= 2;
  counts_.resize(size);
}

void Sampler::rehash(size_t size) {
  std::vector<Count> old(size);
  old.swap(counts_);
  num_counts_ = 0;
  for (const Count& count : old)
    if (count.id >= 0) count_of(count.id) = count;
}

Sampler::Count& Sampler::count_of(int32_t id) {
  if (2 * (num_counts_ + 1) > counts_.size()) rehash(2 * counts_.size());
  size_t slot = (static_cast<uint32_t>(id) * uint64_t{0x9E3779B97F4A7C15}) >> 20 & (counts_.size() - 1);
  while (counts_[slot].id >= 0 && counts_[slot].id != id) slot = (slot + 1) & (counts_.size() - 1);
  if (counts_[slot].id < 0) {
    counts_[slot].id = id;
    ++num_counts_;
  }
  return counts_[slot];
}

void Sampler::add_prompt(std::span<const int32_t> ids) {
  if (options_.repetition_penalty == 1) return;
  for (const int32_t id : ids)
    if (id >= 0) count_of(id).in_prompt = true;
}

void Sampler::accept(int32_t id) {
  ++num_accepted_;
  if (counts_tokens_ && id >= 0) ++count_of(id).answer;
}

void Sampler::forget(int32_t id) {
  ORRERY_CHECK(num_accepted_ > 0, "nothing was accepted");
  --num_accepted_;
  if (counts_tokens_ && id >= 0) --count_of(id).answer;
}

// Mask, then bias, then penalties, as vLLM orders them.
void Sampler::adjust(std::span<float> logits, TokenMask mask, bool may_end) const {
  for (float& logit : logits) logit = std::isnan(logit) ? kNever : std::min(logit, kLargest);
  if (!mask.empty()) {
    for (size_t first = 0; first < logits.size(); first += 64) {
      const uint64_t word = first / 64 < mask.size() ? mask[first / 64] : 0;
      if (word == ~uint64_t{0}) continue;
      const size_t count = std::min<size_t>(64, logits.size() - first);
      for (size_t i = 0; i < count; ++i)
        if (!(word >> i & 1)) logits[first + i] = kNever;
    }
  }
  const auto inside = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits.size(); };
  for (const auto& [id, bias] : options_.logit_bias)
    if (inside(id)) logits[static_cast<size_t>(id)] += static_cast<float>(bias);
  if (counts_tokens_) {
    for (const Count& count : counts_) {
      if (!inside(count.id) || (count.answer == 0 && !count.in_prompt)) continue;
      double logit = logits[static_cast<size_t>(count.id)];
      if (logit == kNever) continue;
      if (options_.repetition_penalty != 1) logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
      if (count.answer > 0) logit -= options_.presence_penalty + count.answer * options_.frequency_penalty;
      logits[static_cast<size_t>(count.id)] = static_cast<float>(std::clamp<double>(logit, -kLargest, kLargest));
    }
  }
  if (!may_end) {
    for (const int32_t id : options_.end_ids)
      if (inside(id)) logits[static_cast<size_t>(id)] = kNever;
  }
}

namespace {

bool more_likely(float logit_a, int32_t id_a, float logit_b, int32_t id_b) { return logit_a > logit_b || (logit_a == logit_b && id_a < id_b); }

// The `count` most likely ids into `candidates`, in order. The count-th largest block maximum is a lower bound of the count-th largest
// logit, so what lies below it is never looked at twice.
template <typename Candidate>
void most_likely(std::span<const float> logits, std::span<const float> block_max, size_t count, std::vector<float>* bounds, std::vector<Candidate>* candidates) {
  candidates->clear();
  float bound = kNever;
  if (count < block_max.size()) {
    bounds->assign(block_max.begin(), block_max.end());
    std::nth_element(bounds->begin(), bounds->begin() + static_cast<int64_t>(count) - 1, bounds->end(), std::greater<>());
    bound = (*bounds)[count - 1];
  }
  for (size_t block = 0; block < block_max.size(); ++block) {
    if (block_max[block] < bound || block_max[block] == kNever) continue;
    const size_t end = std::min(logits.size(), (block + 1) * kBlock);
    for (size_t i = block * kBlock; i < end; ++i)
      if (logits[i] >= bound && logits[i] != kNever) candidates->push_back({logits[i], static_cast<int32_t>(i)});
  }
  const auto before = [](const Candidate& a, const Candidate& b) { return more_likely(a.logit, a.id, b.logit, b.id); };
  if (candidates->size() > count) {
    std::nth_element(candidates->begin(), candidates->begin() + static_cast<int64_t>(count) - 1, candidates->end(), before);
    candidates->resize(count);
  }
  std::sort(candidates->begin(), candidates->end(), before);
}

}  // namespace

// Fills candidates_ with what the filters keep, most likely first.
void Sampler::keep_likely(SamplerScratch* scratch, float top) const {
  auto& kept = scratch->candidates_;
  const std::span<const float> logits = scratch->logits_;
  const size_t vocab_size = logits.size();
  const auto weight = [&](float logit) { return small_exp((static_cast<double>(logit) - top) / options_.temperature); };
  const bool cut_by_k = options_.top_k > 0 && static_cast<size_t>(options_.top_k) < vocab_size;
  const bool reads_tail = options_.typical_p < 1 || options_.min_p > 0 || cut_by_k;
  if (reads_tail) {
    most_likely(logits, scratch->block_max_, cut_by_k ? static_cast<size_t>(options_.top_k) : vocab_size, &scratch->weights_, &kept);
    if (options_.min_p > 0) {
      const double least = options_.min_p;
      const auto end = std::partition_point(kept.begin(), kept.end(), [&](const auto& candidate) { return weight(candidate.logit) >= least; });
      kept.resize(std::max<size_t>(1, static_cast<size_t>(end - kept.begin())));
    }
  }
  if (options_.typical_p < 1) {
    // Sorted by |surprise - entropy|; the fewest that hold typical_p stay.
    double total = 0, weighted = 0;
    for (const auto& candidate : kept) {
      const double w = weight(candidate.logit);
      total += w;
      weighted += w * (static_cast<double>(candidate.logit) - top) / options_.temperature;
    }
    // surprise - entropy = mean exponent - exponent: the logarithm of the total cancels.
    const double mean = weighted / total;
    const auto distance = [&](const auto& c) { return std::abs((static_cast<double>(c.logit) - top) / options_.temperature - mean); };
    std::sort(kept.begin(), kept.end(), [&](const auto& a, const auto& b) {
      const double da = distance(a), db = distance(b);
      return da < db || (da == db && more_likely(a.logit, a.id, b.logit, b.id));
    });
    double held = 0;
    size_t needed = 0;
    while (needed < kept.size() && held < options_.typical_p * total) held += weight(kept[needed++].logit);
    kept.resize(std::max<size_t>(1, needed));
    std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) { return more_likely(a.logit, a.id, b.logit, b.id); });
  }
  if (options_.top_p >= 1) return;
  double total = 0;
  if (reads_tail) {
    for (const auto& candidate : kept) total += weight(candidate.logit);
  } else {
    // The total over the vocabulary, block by block in f64: one order on every machine.
    const auto inverse = static_cast<float>(1 / options_.temperature);
    for (size_t i = 0; i < vocab_size; ++i) scratch->weights_[i] = std::max(-1e4f, (logits[i] - top) * inverse);
    const MathArrays& math = vector_math();
    math.exp_nonpositive(scratch->weights_.data(), scratch->weights_.data(), static_cast<int64_t>(vocab_size));
    for (size_t first = 0; first < vocab_size; first += 4096)
      total += math.sum(scratch->weights_.data() + first, static_cast<int64_t>(std::min<size_t>(4096, vocab_size - first)));
  }
  for (size_t count = reads_tail ? kept.size() : 64;; count *= 8) {
    count = std::min(count, vocab_size);
    if (!reads_tail) most_likely(logits, scratch->block_max_, count, &scratch->weights_, &kept);
    double held = 0;
    size_t needed = 0;
    while (needed < kept.size() && held < options_.top_p * total) held += weight(kept[needed++].logit);
    if (held < options_.top_p * total && kept.size() == count && count < vocab_size && !reads_tail) continue;
    kept.resize(std::max<size_t>(1, needed));
    return;
  }
}

int32_t Sampler::draw(int64_t position, SamplerScratch* scratch) const {
  const std::span<const float> logits = scratch->logits_;
  const MathArrays& math = vector_math();
  float top = kNever;
  for (size_t block = 0; block < scratch->block_max_.size(); ++block) {
    const size_t first = block * kBlock;
    scratch->block_max_[block] = math.max(logits.data() + first, static_cast<int64_t>(std::min(kBlock, logits.size() - first)));
    top = std::max(top, scratch->block_max_[block]);
  }
  if (top == kNever) return -1;
  if (options_.temperature <= 0) {
    const auto block = static_cast<size_t>(std::find(scratch->block_max_.begin(), scratch->block_max_.end(), top) - scratch->block_max_.begin());
    size_t id = block * kBlock;
    while (logits[id] != top) ++id;
    return static_cast<int32_t>(id);
  }
  const PhiloxStream stream(options_.seed, RandomPurpose::kSample, 0, 0);
  const double inverse = 1 / options_.temperature;
  double best = -std::numeric_limits<double>::infinity();
  int32_t best_id = -1;
  const auto offer = [&](float logit, int32_t id, uint32_t word) {
    const double score = (static_cast<double>(logit) - top) * inverse + gumbel(word);
    if (score > best || (score == best && id < best_id)) {
      best = score;
      best_id = id;
    }
  };
  const bool filters = (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < logits.size()) || options_.top_p < 1 || options_.min_p > 0 || options_.typical_p < 1;
  if (filters) {
    keep_likely(scratch, top);
    for (const auto& kept : scratch->candidates_) {
      if ((static_cast<double>(kept.logit) - top) * inverse + kGumbelMax < best) break;  // they descend
      offer(kept.logit, kept.id, noise(stream, position, static_cast<size_t>(kept.id))[static_cast<size_t>(kept.id) & 3]);
    }
    return best_id;
  }
  // The most likely block first: a good score early leaves the most to skip. The order does not change the answer.
  const auto first_block = static_cast<size_t>(std::find(scratch->block_max_.begin(), scratch->block_max_.end(), top) - scratch->block_max_.begin());
  const auto offer_block = [&](size_t block) {
    const double highest = (static_cast<double>(scratch->block_max_[block]) - top) * inverse;
    if (highest + kGumbelMax < best) return;
    // A word below this cannot win for any id of the block; a little less, because this exp is not the exact one.
    const double least = std::max(0.0, std::exp(-std::exp(highest - best)) * 0x1p32 - 16);
    const size_t end = std::min(logits.size(), (block + 1) * kBlock);
    for (size_t id = block * kBlock; id < end; id += 4) {
      const auto words = noise(stream, position, id);
      for (size_t i = id; i < std::min(end, id + 4); ++i)
        if (static_cast<double>(words[i & 3]) >= least && logits[i] != kNever) offer(logits[i], static_cast<int32_t>(i), words[i & 3]);
    }
  };
  offer_block(first_block);
  for (size_t block = 0; block < scratch->block_max_.size(); ++block)
    if (block != first_block) offer_block(block);
  return best_id;
}

SampledToken Sampler::sample(std::span<const float> logits, int64_t position, TokenMask mask, SamplerScratch* scratch) const {
  scratch->resize(logits.size());
  const auto attempt = [&](bool may_end) {
    std::copy(logits.begin(), logits.end(), scratch->logits_.begin());
    adjust(scratch->logits_, mask, may_end);
    return draw(position, scratch);
  };
  const bool may_end = num_accepted_ >= options_.min_tokens;
  int32_t id = attempt(may_end);
  // A grammar that is complete allows the end alone: then an answer is shorter than min_tokens.
  if (id < 0 && !may_end && !mask.empty()) id = attempt(true);
  if (id < 0 || options_.top_logprobs < 0) return {id, 0, {}};
  return token_logprobs(logits, id, options_.top_logprobs, scratch);
}

SampledToken token_logprobs(std::span<const float> logits, int32_t id, int num_top, SamplerScratch* scratch) {
  scratch->resize(logits.size());
  const MathArrays& math = vector_math();
  auto& clean = scratch->logits_;
  for (size_t i = 0; i < logits.size(); ++i) clean[i] = std::isnan(logits[i]) ? kNever : std::min(logits[i], kLargest);
  for (size_t block = 0; block < scratch->block_max_.size(); ++block)
    scratch->block_max_[block] = math.max(clean.data() + block * kBlock, static_cast<int64_t>(std::min(kBlock, clean.size() - block * kBlock)));
  const float top = *std::max_element(scratch->block_max_.begin(), scratch->block_max_.end());
  double total = 0;
  for (size_t i = 0; i < clean.size(); ++i) scratch->weights_[i] = std::max(-1e4f, clean[i] - top);
  math.exp_nonpositive(scratch->weights_.data(), scratch->weights_.data(), static_cast<int64_t>(clean.size()));
  for (size_t first = 0; first < clean.size(); first += 4096)
    total += math.sum(scratch->weights_.data() + first, static_cast<int64_t>(std::min<size_t>(4096, clean.size() - first)));
  const double log_total = portable_log(total);
  const auto logprob = [&](float logit) { return static_cast<float>(static_cast<double>(logit) - top - log_total); };
  scratch->top_.clear();
  if (num_top > 0) {
    most_likely(std::span<const float>(clean), std::span<const float>(scratch->block_max_), std::min(static_cast<size_t>(num_top), clean.size()), &scratch->weights_, &scratch->candidates_);
    for (const auto& candidate : scratch->candidates_) scratch->top_.push_back({candidate.id, logprob(candidate.logit)});
  }
  return {id, logprob(clean[static_cast<size_t>(id)]), scratch->top_};
}

uint64_t choice_seed(uint64_t seed, int64_t index) {
  if (index == 0) return seed;
  const auto words = PhiloxStream(seed, RandomPurpose::kSample, 1, 0).group(static_cast<uint64_t>(index));
  return static_cast<uint64_t>(words[0]) << 32 | words[1];
}

}  // namespace orrery
