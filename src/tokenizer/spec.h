// What a tokenizer is, before it is built to run: the vocabulary, the merges, and the components as tokenizer.json writes them.
// Every loader fills one; save writes it back. Internal to src/tokenizer.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace orrery {

enum class TokenizerModel { kBpe, kUnigram };

/// left + right -> result. The lowest rank is merged first, the leftmost among equals.
struct Merge {
  int32_t left;
  int32_t right;
  uint32_t rank;
  int32_t result;
};

/// How SentencePiece itself reads text; where given it replaces normalizer and pre-tokenizer, so that ids equal that package's.
struct SentencePieceOptions {
  std::string precompiled_charsmap;  // empty: identity
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool treat_whitespace_as_suffix = false;
  std::vector<std::string> user_defined;  // pieces that are never split nor normalized
};

struct TokenizerSpec {
  TokenizerModel model = TokenizerModel::kBpe;
  std::vector<std::string> tokens;  // by id, as the file writes them; an empty string is a hole
  std::vector<double> scores;       // unigram
  std::vector<uint8_t>
      piece_types;            // SentencePiece only, by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
  std::vector<Merge> merges;  // BPE
  bool byte_fallback = false;
  bool ignore_merges = false;
  bool fuse_unk = false;
  int32_t unk_id = -1;
  std::vector<AddedToken> added;
  // JSON of each component, "null" where there is none.
  std::string normalizer = "null";
  std::string pre_tokenizer = "null";
  std::string post_processor = "null";
  std::string decoder = "null";
  std::optional<SentencePieceOptions> sentencepiece;
  int32_t bos_id = -1;
  int32_t eos_id = -1;
  int32_t pad_id = -1;
  std::string chat_template;
};

/// The printable alphabet of byte-level BPE (GPT-2's bytes_to_unicode).
std::string bytes_to_printable(std::string_view bytes);
/// Its inverse; nullopt when a character is outside the alphabet.
std::optional<std::string> printable_to_bytes(std::string_view text);

/// 0..255 for a token named <0xXX>, else -1.
int byte_token_value(std::string_view token);

/// All ways to write a token as two tokens of the vocabulary, ranked by `rank_of[id]` (< 0: no merge makes this token).
/// `tokens` are bytes. This is how tiktoken and SentencePiece BPE choose merges.
std::vector<Merge> merges_from_ranks(const std::vector<std::string>& tokens, const std::vector<int64_t>& rank_of);

/// The pre-tokenizer JSON of a named pattern (gpt2, cl100k, ...), empty when unknown.
std::string pre_tokenizer_of_pattern(std::string_view pattern_name);
/// ByteLevel over the matches of any pattern.
std::string pre_tokenizer_of_regex(std::string_view pattern);
/// Errors: kCorruptData for the first token that is not UTF-8.
void require_utf8_tokens(const std::vector<std::string>& tokens, std::string_view where);

/// A SentencePiece vocabulary: pieces, scores and types are in `spec`; fills in merges, added tokens and components.
/// Shared by tokenizer.model and GGUF's "llama" and "t5".
void finish_sentencepiece(TokenizerSpec* spec);

/// The post-processor that puts BOS and EOS (-1: not) around a text; "null" for neither.
std::string bos_eos_post_processor(const TokenizerSpec& spec, int32_t bos_id, int32_t eos_id);

}  // namespace orrery
