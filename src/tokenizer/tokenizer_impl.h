// A tokenizer that is ready to run. Internal to src/tokenizer.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tokenizer/bpe_model.h"
#include "tokenizer/decoder.h"
#include "tokenizer/flat_map.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/unigram_model.h"

namespace orrery {

/// A bounded map from words to ids: direct-mapped, one cache line a word; longer words and splits are not kept.
struct WordCache {
  static constexpr size_t kEntries = size_t{1} << 15;
  static constexpr size_t kWordBytesMax = 26;
  static constexpr size_t kIdsMax = 9;
  struct alignas(64) Entry {
    char word[kWordBytesMax];
    uint8_t word_bytes;  // 0: empty
    uint8_t num_ids;
    int32_t ids[kIdsMax];
  };
  static_assert(sizeof(Entry) == 64);
  std::vector<Entry> entries;
};

struct EncodeScratch::Impl {
  uint64_t owner = 0;  // which tokenizer the cache belongs to
  WordCache cache;
  BpeScratch bpe;
  UnigramScratch unigram;
  PieceList list;
};

/// Finds added tokens in text: leftmost, then longest.
class AddedTokenMatcher {
 public:
  struct Found {
    size_t begin, end;
    int32_t id;
  };
  void add(std::string_view content, const AddedToken& token);
  bool empty() const { return tokens_.empty(); }
  /// The first at or after `from`.
  std::optional<Found> next(std::string_view text, size_t from) const;

 private:
  std::optional<Found> fit(std::string_view text, size_t from, size_t begin, size_t end, const AddedToken& token) const;
  ByteTrie trie_;
  std::vector<AddedToken> tokens_;
};

struct Tokenizer::Impl {
  TokenizerSpec spec;
  uint64_t instance = 0;
  int32_t vocab_size = 0;
  std::vector<std::string> names;         // by id, as the file writes them, added tokens too
  std::vector<std::string> model_tokens;  // by id, as pieces hold them
  StringIndex name_index, model_index;
  std::vector<bool> special;
  Normalizer normalizer;
  bool normalizes_ascii = true;
  PreTokenizer pre_tokenizer;
  std::optional<SentencePieceNormalizer> sentencepiece;
  std::optional<BpeModel> bpe;
  std::optional<UnigramModel> unigram;
  ByteTrie user_defined;         // SentencePiece pieces that BPE may not split
  bool split_at_spaces = false;  // no token has an escaped space after another character
  std::vector<int32_t> prefix_ids, suffix_ids;
  DecoderTable decoder;
  // [allow_special]: matched before and after normalization.
  AddedTokenMatcher raw_matcher[2], normalized_matcher[2];

  void build_vocabulary();
  void build_added_tokens();
  void encode_segment(std::string_view text, bool allow_special, bool is_first, EncodeScratch::Impl* scratch,
                      std::vector<int32_t>* ids) const;
  void encode_normalized(std::string_view text, bool is_first, EncodeScratch::Impl* scratch, std::vector<int32_t>* ids) const;
  void encode_piece(std::string_view piece, EncodeScratch::Impl* scratch, std::vector<int32_t>* ids) const;
  void encode_word(std::string_view word, EncodeScratch::Impl* scratch, std::vector<int32_t>* ids) const;
};

/// BOS and EOS of a post-processor: the ids before and after the text. Errors: kUnsupported, kCorruptData.
void parse_post_processor(const std::string& json, std::vector<int32_t>* prefix, std::vector<int32_t>* suffix);

}  // namespace orrery
