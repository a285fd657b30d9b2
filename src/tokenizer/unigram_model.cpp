#include "tokenizer/unigram_model.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace orrery {
namespace {

constexpr double kUnknownPenalty = 10.0;  // below the worst score, in both packages
enum PieceType : uint8_t { kNormal = 1, kUserDefined = 4 };

}  // namespace

UnigramModel::UnigramModel(const TokenizerSpec& spec, bool sums_in_f32)
    : scores_(spec.scores), byte_fallback_(spec.byte_fallback), sums_in_f32_(sums_in_f32), unk_id_(spec.unk_id) {
  if (scores_.size() != spec.tokens.size()) {
    throw Error(ErrorCode::kCorruptData, "unigram tokenizer: {} scores for {} tokens", scores_.size(), spec.tokens.size());
  }
  double min_score = INFINITY;
  max_score_ = -INFINITY;
  user_defined_.assign(spec.tokens.size(), false);
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (!std::isfinite(scores_[id])) {
      throw Error(ErrorCode::kCorruptData, "unigram tokenizer: score of token {} ('{}') is not finite", id, spec.tokens[id]);
    }
    const uint8_t type = spec.piece_types.empty() ? static_cast<uint8_t>(kNormal) : spec.piece_types[id];
    if (type == kNormal) {
      min_score = std::min(min_score, scores_[id]);
      max_score_ = std::max(max_score_, scores_[id]);
    }
    user_defined_[id] = type == kUserDefined;
    if ((type == kNormal || type == kUserDefined) && !spec.tokens[id].empty()) {
      trie_.insert(spec.tokens[id], static_cast<int32_t>(id));
    }
  }
  if (!std::isfinite(min_score)) throw Error(ErrorCode::kCorruptData, "unigram tokenizer: no token with a score");
  if (unk_id_ < 0 || static_cast<size_t>(unk_id_) >= spec.tokens.size()) {
    throw Error(ErrorCode::kCorruptData, "unigram tokenizer: unknown token {} of {} tokens; a unigram model needs one", unk_id_,
                spec.tokens.size());
  }
  unk_score_ = min_score - kUnknownPenalty;
  std::fill(std::begin(byte_ids_), std::end(byte_ids_), -1);
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    const int byte = byte_token_value(spec.tokens[id]);
    if (byte >= 0) byte_ids_[byte] = static_cast<int32_t>(id);
  }
}

void UnigramModel::encode(std::string_view piece, UnigramScratch* scratch, std::vector<int32_t>* ids) const {
  if (piece.empty()) return;
  const auto add = [&](double a, double b) {
    return sums_in_f32_ ? static_cast<double>(static_cast<float>(a) + static_cast<float>(b)) : a + b;
  };
  auto& best = scratch->best;
  best.assign(piece.size() + 1, {0.0, -1, -1});
  const auto offer = [&](size_t start, size_t end, double score, int32_t id) {
    auto& target = best[end];
    if (target.start < 0 || score > target.score) target = {score, static_cast<int32_t>(start), id};
  };
  for (size_t start = 0; start < piece.size();) {
    const double so_far = best[start].score;
    const size_t char_bytes = decode_utf8(piece.data() + start, piece.data() + piece.size()).length;
    bool has_single = false;
    int32_t node = 0;
    for (size_t end = start; end < piece.size();) {
      node = trie_.step(node, static_cast<uint8_t>(piece[end++]));
      if (node < 0) break;
      const int32_t id = trie_.value(node);
      if (id < 0) continue;
      const auto length = static_cast<double>(end - start);
      const auto index = static_cast<size_t>(id);
      const double bonus = length * max_score_ - 0.1;
      const double score =
          user_defined_[index] ? (sums_in_f32_ ? static_cast<double>(static_cast<float>(bonus)) : bonus) : scores_[index];
      offer(start, end, add(score, so_far), id);
      has_single = has_single || end - start == char_bytes;
    }
    if (!has_single) offer(start, start + char_bytes, add(unk_score_, so_far), unk_id_);
    start += char_bytes;
  }
  scratch->path.clear();
  for (auto end = static_cast<int32_t>(piece.size()); end > 0; end = best[static_cast<size_t>(end)].start) {
    auto step = best[static_cast<size_t>(end)];
    step.score = end;  // the path needs the end, not the score
    scratch->path.push_back(step);
  }
  bool after_unknown = false;
  for (auto step = scratch->path.rbegin(); step != scratch->path.rend(); ++step) {
    const std::string_view text =
        piece.substr(static_cast<size_t>(step->start), static_cast<size_t>(step->score) - static_cast<size_t>(step->start));
    const auto has_token = [&](char byte) { return byte_ids_[static_cast<uint8_t>(byte)] >= 0; };
    if (step->id != unk_id_) {
      ids->push_back(step->id);
    } else if (byte_fallback_ && std::all_of(text.begin(), text.end(), has_token)) {
      for (const char byte : text) ids->push_back(byte_ids_[static_cast<uint8_t>(byte)]);
    } else if (!after_unknown || !fuse_unk_) {
      ids->push_back(unk_id_);
    }
    after_unknown = step->id == unk_id_;
  }
}

}  // namespace orrery
