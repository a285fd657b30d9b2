// What happens to text before it is split: the normalizers of tokenizer.json, and SentencePiece's own. Bytes that are not UTF-8
// pass through every Unicode normalizer unchanged.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/flat_map.h"
#include "tokenizer/spec.h"

namespace orrery {

/// The compiled character map of SentencePiece: a double-array trie from prefixes to replacements.
class CharsMap {
 public:
  /// Errors: kCorruptData where the sizes inside do not fit.
  explicit CharsMap(std::string blob);
  /// The replacement of the longest (or shortest) prefix of `text` in the map, and that prefix's length; 0: none.
  struct Match {
    std::string_view replacement;
    size_t length = 0;
  };
  Match match(std::string_view text, bool shortest) const;

 private:
  std::string blob_;
  std::vector<uint32_t> units_;
};

class NormalizerStep {
 public:
  virtual ~NormalizerStep() = default;
  virtual std::string apply(std::string_view text) const = 0;
  /// Pure ASCII text comes out as it went in.
  virtual bool keeps_ascii() const { return false; }
};

class Normalizer {
 public:
  Normalizer() = default;
  /// From tokenizer.json's "normalizer" ("null": none). Errors: kUnsupported naming the type, kCorruptData.
  static Normalizer from_json(const std::string& json);
  bool empty() const { return steps_.empty(); }
  bool keeps_ascii() const;
  std::string apply(std::string_view text) const;

 private:
  std::vector<std::shared_ptr<const NormalizerStep>> steps_;
};

/// SentencePiece's normalization of a whole text: map, whitespace, dummy prefix, escape to U+2581.
class SentencePieceNormalizer {
 public:
  explicit SentencePieceNormalizer(const SentencePieceOptions& options);
  std::string apply(std::string_view text, bool with_prefix) const;

 private:
  SentencePieceOptions options_;
  std::unique_ptr<CharsMap> map_;
  ByteTrie user_defined_;
};

}  // namespace orrery
