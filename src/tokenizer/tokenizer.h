// Text to token ids and back, equal id for id to the packages whose files it reads: tokenizer.json (`tokenizers`), tiktoken
// rank files, SentencePiece tokenizer.model and GGUF vocabularies. All of them become one TokenizerSpec (spec.h), which one
// pipeline runs: added tokens, normalizer, pre-tokenizer, BPE or unigram model, post-processor. The trainer is bpe_trainer.h.
//
// Input is bytes. For byte-level BPE an invalid UTF-8 byte is one character that is neither letter, number nor space, and
// decode(encode(x)) == x for every x (without normalizer). SentencePiece reads an invalid byte as U+FFFD, as its package does.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace orrery {

struct TokenizerSpec;

/// Working memory of encode and a bounded cache of words (2 MiB): one per thread, reused between calls. It may move between
/// tokenizers (the cache then starts anew).
class EncodeScratch {
 public:
  EncodeScratch();
  ~EncodeScratch();
  EncodeScratch(EncodeScratch&&) noexcept;
  EncodeScratch& operator=(EncodeScratch&&) noexcept;
  struct Impl;

 private:
  friend class Tokenizer;
  std::unique_ptr<Impl> impl_;
};

struct EncodeOptions {
  bool add_special = true;     // BOS/EOS as the tokenizer's post-processor puts them
  bool allow_special = false;  // special tokens written in the text become their ids; else their text is plain text
};

struct DecodeOptions {
  bool skip_special = false;  // leave special tokens out, else their text is written
};

/// An added token: matched in text before the model sees it.
struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;      // control token: only matched when EncodeOptions::allow_special
  bool normalized = false;   // matched in normalized text, else in raw text
  bool single_word = false;  // only between non-word characters
  bool lstrip = false;       // takes whitespace on its left
  bool rstrip = false;       // and right
};

/// Immutable and cheap to copy; every const member may be called from many threads, each with its own EncodeScratch.
class Tokenizer {
 public:
  /// Errors: kCorruptData for a spec that contradicts itself, kUnsupported naming the component that is unknown.
  explicit Tokenizer(TokenizerSpec spec);

  /// Appends the ids of `text`.
  /// Cost    O(n log n) for any text with the known patterns; a pattern run by PCRE2 has step and time limits.
  /// Errors  kUnsupported when those limits are passed.
  void encode(std::string_view text, const EncodeOptions& options, EncodeScratch* scratch, std::vector<int32_t>* ids) const;
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  /// The bytes that `ids` stand for; not always UTF-8. Errors: kInvalidArgument for an id outside the vocabulary.
  std::string decode(std::span<const int32_t> ids, const DecodeOptions& options = {}) const;

  /// One past the largest id, added tokens included. Ids without a token (holes) decode to nothing.
  int32_t vocab_size() const;
  int32_t bos_id() const;  // -1: none
  int32_t eos_id() const;
  int32_t pad_id() const;
  /// The token's name as its file writes it (byte-level tokens in their printable alphabet).
  const std::string& token_text(int32_t id) const;
  /// The bytes that the token adds to decoded text (at its start, a SentencePiece token's space is dropped by decode).
  std::string_view token_bytes(int32_t id) const;
  /// By name, as token_text gives it; -1: no such token.
  int32_t token_id(std::string_view token_text) const;
  bool is_special(int32_t id) const;
  const std::vector<AddedToken>& added_tokens() const;
  std::vector<AddedToken> special_tokens() const;
  /// The Jinja source; empty: none.
  const std::string& chat_template() const;
  /// 32 hex digits over everything that decides ids and text; two tokenizers with the same hash are the same. Takes a while.
  std::string content_hash() const;
  const TokenizerSpec& spec() const;

  /// A copy with other special tokens or template, e.g. after training.
  Tokenizer with_chat_template(std::string chat_template) const;

 private:
  friend class StreamDecoder;
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

/// Decodes a growing sequence and hands out only whole UTF-8 characters; bytes that can no longer become one are handed out as
/// U+FFFD.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, const DecodeOptions& options = {});
  /// The text that became complete with this token; may be empty.
  std::string push(int32_t id);
  /// What is left at the end; an unfinished character becomes U+FFFD.
  std::string finish();

 private:
  std::string take(bool all);
  Tokenizer tokenizer_;
  DecodeOptions options_;
  std::string pending_;
  bool at_start_ = true;
};

/// What a GGUF file says about its vocabulary (tokenizer.ggml.*); the reader of GGUF files fills it in.
struct GgufTokenizerData {
  std::string model;  // "gpt2", "llama", "t5"
  std::string pre;    // which pattern, for "gpt2"
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> token_types;  // 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
  std::vector<std::string> merges;   // "left right"
  int32_t bos_id = -1, eos_id = -1, pad_id = -1, unk_id = -1;
  std::optional<bool> add_bos, add_eos, add_space_prefix, remove_extra_whitespaces;
  std::string precompiled_charsmap;
  std::string chat_template;
};

/// A folder (tokenizer.json or tokenizer.model, with tokenizer_config.json), or one file: tokenizer.json, tekken.json,
/// *.model, *.tiktoken. The content decides, not the name. A bare .tiktoken file needs load_tiktoken and a pattern name, unless
/// its size and name say which it is. Errors: kIo, kCorruptData, kUnsupported.
Tokenizer load_tokenizer(const std::string& path);

/// tokenizer.json as the `tokenizers` package writes it. `config_json` is the text of tokenizer_config.json or empty.
Tokenizer load_tokenizer_json(std::string_view json, std::string_view config_json = {});

/// Lines of "base64 rank". `pattern_name`: gpt2, cl100k, o200k, llama3, qwen2, tekken. Special tokens get their given ids.
struct SpecialToken {
  std::string content;
  int32_t id;
};
Tokenizer load_tiktoken(std::string_view data, std::string_view pattern_name,
                        const std::vector<SpecialToken>& special_tokens = {});

/// mistral-common's tekken.json.
Tokenizer load_tekken(std::string_view json);

/// SentencePiece's ModelProto: unigram and BPE. BOS is put before a text unless the configuration's add_bos_token says
/// otherwise.
Tokenizer load_sentencepiece(std::string_view model_proto, std::string_view config_json = {});

Tokenizer load_gguf_tokenizer(const GgufTokenizerData& data);

/// The text of a tokenizer.json.
std::string tokenizer_json_text(const Tokenizer& tokenizer);

/// Writes `folder`/tokenizer.json and tokenizer_config.json (special tokens, chat template), which `transformers` loads.
/// SentencePiece models are written as transformers converts them; ids then may differ where that conversion differs.
void save_tokenizer_json(const Tokenizer& tokenizer, const std::string& folder);

}  // namespace orrery
