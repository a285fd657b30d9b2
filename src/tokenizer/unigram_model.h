// Unigram: of all ways to write a piece with vocabulary tokens, the one whose scores sum highest (Viterbi over a trie).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/flat_map.h"
#include "tokenizer/spec.h"

namespace orrery {

struct UnigramScratch {
  struct Best {
    double score;
    int32_t start, id;
  };
  std::vector<Best> best;
  std::vector<Best> path;
};

class UnigramModel {
 public:
  /// `sums_in_f32`: as the sentencepiece package adds scores; the `tokenizers` package adds in f64.
  /// Errors: kCorruptData, where scores are missing, not finite, or there is no unknown token.
  UnigramModel(const TokenizerSpec& spec, bool sums_in_f32);
  void encode(std::string_view piece, UnigramScratch* scratch, std::vector<int32_t>* ids) const;

 private:
  ByteTrie trie_;
  std::vector<double> scores_;
  std::vector<bool> user_defined_;
  int32_t byte_ids_[256];
  bool byte_fallback_ = false;
  bool sums_in_f32_;
  bool fuse_unk_ = true;
  int32_t unk_id_;
  double unk_score_, max_score_;
};

}  // namespace orrery
