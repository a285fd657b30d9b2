// Cuts normalized text into the pieces that the model encodes one by one: the pre-tokenizers of tokenizer.json.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/splitter.h"

namespace orrery {

/// Pieces are views of the text or, where a step rewrites it, of `storage`.
struct PieceList {
  std::vector<std::string_view> pieces;
  std::vector<std::string_view> next;
  std::deque<std::string> storage;
};

class PreTokenizerStep {
 public:
  virtual ~PreTokenizerStep() = default;
  /// `is_first`: the first piece begins the whole text.
  virtual void apply(PieceList* list, bool is_first) const = 0;
};

class PreTokenizer {
 public:
  PreTokenizer() = default;
  /// From tokenizer.json's "pre_tokenizer" ("null": none). Errors: kUnsupported naming the type, kCorruptData.
  static PreTokenizer from_json(const std::string& json);

  /// Tokens are in the printable alphabet of bytes, and pieces are encoded byte by byte.
  bool byte_level() const { return byte_level_; }
  /// Where the whole pre-tokenizer is one known pattern: its function, else nullptr.
  PieceEnd fast_path() const { return fast_path_; }
  /// As above, after every number character has become a piece of its own (SmolLM, StarCoder).
  bool digits_apart() const { return digits_apart_; }
  /// Fills list->pieces.
  void split(std::string_view text, bool is_first, PieceList* list) const;

 private:
  std::vector<std::shared_ptr<const PreTokenizerStep>> steps_;
  bool byte_level_ = false;
  bool digits_apart_ = false;
  PieceEnd fast_path_ = nullptr;
};

}  // namespace orrery
