// Building a tokenizer from its spec and running it; loading and saving are in load_*.cpp and save.cpp.
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/error.h"
#include "tokenizer/json_util.h"
#include "tokenizer/tokenizer_impl.h"
#include "tokenizer/utf8.h"

namespace orrery {
namespace {

constexpr std::string_view kEscapedSpace = "\xE2\x96\x81";
constexpr size_t kAddedTokenBytesMax = 512;        // matching looks this far ahead at every byte
constexpr size_t kTextBytesMax = size_t{1} << 30;  // positions inside are 32 bits

inline uint64_t load(const char* p, size_t num_bytes) {
  uint64_t value = 0;
  std::memcpy(&value, p, num_bytes);
  return value;
}

// A hash of up to 26 bytes from overlapping loads.
inline uint64_t word_hash(std::string_view word) {
  const char* p = word.data();
  const size_t n = word.size();
  uint64_t a, b = 0;
  if (n >= 8) {
    a = load(p, 8);
    b = load(p + n - 8, 8);
    if (n > 16) b += load(p + 8, 8) * 0xC2B2AE3D27D4EB4Full;
  } else if (n >= 4) {
    a = load(p, 4) << 32 | load(p + n - 4, 4);
  } else {
    a = static_cast<uint64_t>(static_cast<uint8_t>(p[0])) | static_cast<uint64_t>(static_cast<uint8_t>(p[n / 2])) << 8 |
        static_cast<uint64_t>(static_cast<uint8_t>(p[n - 1])) << 16;
  }
  uint64_t hash = (a ^ (n * 0x9E3779B97F4A7C15ull)) * 0xFF51AFD7ED558CCDull;
  hash = (hash ^ (hash >> 32) ^ b) * 0xC4CEB9FE1A85EC53ull;
  return hash ^ (hash >> 29);
}

// Whether every token has its escaped spaces only at its start: then no merge crosses from a word into the next one's space.
bool spaces_lead(const std::vector<std::string>& tokens) {
  return std::all_of(tokens.begin(), tokens.end(), [](const std::string& token) {
    std::string_view rest = token;
    while (rest.starts_with(kEscapedSpace)) rest.remove_prefix(kEscapedSpace.size());
    return rest.find(kEscapedSpace) == std::string_view::npos;
  });
}

}  // namespace

EncodeScratch::EncodeScratch() : impl_(std::make_unique<Impl>()) { impl_->cache.entries.resize(WordCache::kEntries); }
EncodeScratch::~EncodeScratch() = default;
EncodeScratch::EncodeScratch(EncodeScratch&&) noexcept = default;
EncodeScratch& EncodeScratch::operator=(EncodeScratch&&) noexcept = default;

void AddedTokenMatcher::add(std::string_view content, const AddedToken& token) {
  if (content.empty()) return;
  trie_.insert(content, static_cast<int32_t>(tokens_.size()));
  tokens_.push_back(token);
}

std::optional<AddedTokenMatcher::Found> AddedTokenMatcher::next(std::string_view text, size_t from) const {
  for (size_t i = from; i < text.size(); ++i) {
    if (!trie_.starts(static_cast<uint8_t>(text[i]))) continue;
    const ByteTrie::Match match = trie_.longest(text.substr(i));
    if (match.value < 0) continue;
    const AddedToken& token = tokens_[static_cast<size_t>(match.value)];
    if (auto found = fit(text, from, i, i + match.length, token)) return found;
    i += match.length - 1;
  }
  return std::nullopt;
}

// Applies single_word, lstrip and rstrip to a match.
std::optional<AddedTokenMatcher::Found> AddedTokenMatcher::fit(std::string_view text, size_t from, size_t begin, size_t end,
                                                               const AddedToken& token) const {
  const uint8_t* classes = character_classes();
  const char* const data = text.data();
  const auto class_before = [&](size_t at, size_t* start) -> uint8_t {
    *start = at - 1;
    while (*start > 0 && at - *start < 4 && (static_cast<uint8_t>(data[*start]) & 0xC0) == 0x80) --*start;
    const DecodedChar c = decode_utf8(data + *start, data + text.size());
    if (*start + c.length != at) *start = at - 1;
    return *start + c.length == at ? classes[c.code_point] : uint8_t{0};
  };
  const auto class_at = [&](size_t at) { return classes[decode_utf8(data + at, data + text.size()).code_point]; };
  size_t start = 0;
  if (token.single_word) {
    if (begin > 0 && (class_before(begin, &start) & kWord)) return std::nullopt;
    if (end < text.size() && (class_at(end) & kWord)) return std::nullopt;
  }
  if (token.lstrip) {
    while (begin > from && (class_before(begin, &start) & kSpace) && start >= from) begin = start;
  }
  if (token.rstrip) {
    while (end < text.size() && (class_at(end) & kSpace)) end += decode_utf8(data + end, data + text.size()).length;
  }
  return Found{begin, end, token.id};
}

void Tokenizer::Impl::build_vocabulary() {
  if (spec.tokens.empty()) throw Error(ErrorCode::kCorruptData, "tokenizer: the vocabulary is empty");
  int64_t largest = static_cast<int64_t>(spec.tokens.size()) - 1;
  const auto limit = static_cast<int64_t>(4 * (spec.tokens.size() + spec.added.size()) + 65536);
  for (const AddedToken& token : spec.added) {
    if (token.id < 0 || token.id >= limit) {
      throw Error(ErrorCode::kCorruptData, "tokenizer: added token '{}' has id {}, far outside a vocabulary of {}",
                  token.content, token.id, spec.tokens.size());
    }
    largest = std::max<int64_t>(largest, token.id);
  }
  vocab_size = static_cast<int32_t>(largest + 1);
  spec.tokens.resize(static_cast<size_t>(vocab_size));
  if (!spec.scores.empty()) spec.scores.resize(static_cast<size_t>(vocab_size), 0.0);
  if (!spec.piece_types.empty()) spec.piece_types.resize(static_cast<size_t>(vocab_size), 5);
  names = spec.tokens;
  special.assign(names.size(), false);
  for (const AddedToken& token : spec.added) {
    names[static_cast<size_t>(token.id)] = token.content;
    if (token.special) special[static_cast<size_t>(token.id)] = true;
  }
  model_tokens = spec.tokens;
  if (pre_tokenizer.byte_level()) {
    for (std::string& token : model_tokens) {
      if (auto bytes = printable_to_bytes(token)) token = std::move(*bytes);
    }
  }
  for (int32_t id = 0; id < vocab_size; ++id) {
    const auto i = static_cast<size_t>(id);
    if (!model_tokens[i].empty() && !model_index.insert(model_tokens, id)) {
      // Two names may stand for the same bytes when one is not in the printable alphabet; the first keeps them.
      const int32_t first = model_index.find(model_tokens, model_tokens[i]);
      if (spec.tokens[static_cast<size_t>(first)] == spec.tokens[i]) {
        throw Error(ErrorCode::kCorruptData, "tokenizer: token '{}' stands twice in the vocabulary, as id {} and id {}",
                    spec.tokens[i], first, id);
      }
    }
    if (!names[i].empty()) name_index.insert(names, id);
  }
}

void Tokenizer::Impl::build_added_tokens() {
  for (const AddedToken& token : spec.added) {
    if (token.content.empty()) throw Error(ErrorCode::kCorruptData, "tokenizer: added token {} has no text", token.id);
    if (token.content.size() > kAddedTokenBytesMax) {
      throw Error(ErrorCode::kUnsupported, "tokenizer: added token {} has {} bytes; at most {} are supported", token.id,
                  token.content.size(), kAddedTokenBytesMax);
    }
    const bool after = token.normalized && !normalizer.empty();
    const std::string content = after ? normalizer.apply(token.content) : token.content;
    for (const bool allow_special : {false, true}) {
      if (token.special && !allow_special) continue;
      (after ? normalized_matcher : raw_matcher)[allow_special].add(content, token);
    }
  }
  parse_post_processor(spec.post_processor, &prefix_ids, &suffix_ids);
  const auto check = [&](int32_t id, const char* what) {
    if (id < -1 || id >= vocab_size)
      throw Error(ErrorCode::kCorruptData, "tokenizer: {} id {} of {} tokens", what, id, vocab_size);
  };
  for (const int32_t id : prefix_ids) check(id, "post-processor");
  for (const int32_t id : suffix_ids) check(id, "post-processor");
  check(spec.bos_id, "BOS"), check(spec.eos_id, "EOS"), check(spec.pad_id, "padding"), check(spec.unk_id, "unknown");
}

Tokenizer::Tokenizer(TokenizerSpec spec) {
  static std::atomic<uint64_t> num_instances{0};
  auto impl = std::make_shared<Impl>();
  impl->instance = ++num_instances;
  impl->spec = std::move(spec);
  // One spelling, so that equal tokenizers have equal hashes.
  for (std::string* component :
       {&impl->spec.normalizer, &impl->spec.pre_tokenizer, &impl->spec.post_processor, &impl->spec.decoder}) {
    *component = canonical_json(*component, "tokenizer component");
  }
  impl->normalizer = Normalizer::from_json(impl->spec.normalizer);
  impl->normalizes_ascii = !impl->normalizer.keeps_ascii();
  impl->pre_tokenizer = PreTokenizer::from_json(impl->spec.pre_tokenizer);
  impl->build_vocabulary();
  impl->build_added_tokens();
  const TokenizerSpec& s = impl->spec;
  if (s.model == TokenizerModel::kBpe) {
    for (const Merge& merge : s.merges) {
      const auto in = [&](int32_t id) { return id >= 0 && id < impl->vocab_size; };
      if (!in(merge.left) || !in(merge.right) || !in(merge.result)) {
        throw Error(ErrorCode::kCorruptData, "tokenizer: merge {} + {} -> {} names a token outside the vocabulary of {}",
                    merge.left, merge.right, merge.result, impl->vocab_size);
      }
    }
    impl->bpe.emplace(s, &impl->model_tokens, &impl->model_index, impl->pre_tokenizer.byte_level());
  } else {
    impl->unigram.emplace(s, s.sentencepiece.has_value());
  }
  if (s.sentencepiece) {
    impl->sentencepiece.emplace(*s.sentencepiece);
    for (const std::string& piece : s.sentencepiece->user_defined) {
      if (impl->bpe && !piece.empty()) impl->user_defined.insert(piece, impl->model_index.find(impl->model_tokens, piece));
    }
  }
  impl->split_at_spaces = impl->bpe && !impl->pre_tokenizer.byte_level() && spaces_lead(impl->model_tokens) &&
                          impl->model_index.find(impl->model_tokens, kEscapedSpace) >= 0;
  impl->decoder = make_decoder(s, impl->pre_tokenizer.byte_level());
  impl_ = std::move(impl);
}

void Tokenizer::encode(std::string_view text, const EncodeOptions& options, EncodeScratch* scratch,
                       std::vector<int32_t>* ids) const {
  if (text.size() > kTextBytesMax) {
    throw Error(ErrorCode::kInvalidArgument, "text of {} bytes to encode at once; cut it below {}", text.size(), kTextBytesMax);
  }
  EncodeScratch::Impl& state = *scratch->impl_;
  if (state.owner != impl_->instance) {
    for (WordCache::Entry& entry : state.cache.entries) entry.word_bytes = 0;
    state.owner = impl_->instance;
  }
  if (options.add_special) ids->insert(ids->end(), impl_->prefix_ids.begin(), impl_->prefix_ids.end());
  const AddedTokenMatcher& matcher = impl_->raw_matcher[options.allow_special];
  size_t done = 0;
  while (done < text.size()) {
    const auto found = matcher.empty() ? std::nullopt : matcher.next(text, done);
    const size_t end = found ? found->begin : text.size();
    if (end > done) impl_->encode_segment(text.substr(done, end - done), options.allow_special, done == 0, &state, ids);
    if (!found) break;
    ids->push_back(found->id);
    done = found->end;
  }
  if (options.add_special) ids->insert(ids->end(), impl_->suffix_ids.begin(), impl_->suffix_ids.end());
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  static thread_local EncodeScratch scratch;
  std::vector<int32_t> ids;
  encode(text, options, &scratch, &ids);
  return ids;
}

void Tokenizer::Impl::encode_segment(std::string_view text, bool allow_special, bool is_first, EncodeScratch::Impl* scratch,
                                     std::vector<int32_t>* ids) const {
  std::string normalized;
  if (sentencepiece) {
    normalized = sentencepiece->apply(text, is_first);
    return encode_normalized(normalized, is_first, scratch, ids);
  }
  if (!normalizer.empty() && (normalizes_ascii || !is_ascii(text))) {
    normalized = normalizer.apply(text);
    text = normalized;
  }
  const AddedTokenMatcher& matcher = normalized_matcher[allow_special];
  size_t done = 0;
  while (done < text.size()) {
    const auto found = matcher.empty() ? std::nullopt : matcher.next(text, done);
    const size_t end = found ? found->begin : text.size();
    if (end > done) encode_normalized(text.substr(done, end - done), is_first && done == 0, scratch, ids);
    if (!found) break;
    ids->push_back(found->id);
    done = found->end;
  }
}

void Tokenizer::Impl::encode_normalized(std::string_view text, bool is_first, EncodeScratch::Impl* scratch,
                                        std::vector<int32_t>* ids) const {
  if (sentencepiece) return encode_piece(text, scratch, ids);
  if (const PieceEnd piece_end = pre_tokenizer.fast_path()) {
    const uint8_t* classes = character_classes();
    const char* const end = text.data() + text.size();
    const char* p = text.data();
    while (p < end) {
      const char* stop = end;
      if (pre_tokenizer.digits_apart()) {
        DecodedChar c = decode_utf8(p, end);
        if (classes[c.code_point] & kNumber) {
          encode_word({p, c.length}, scratch, ids);
          p += c.length;
          continue;
        }
        for (stop = p; stop < end; stop += c.length) {
          c = decode_utf8(stop, end);
          if (classes[c.code_point] & kNumber) break;
        }
      }
      while (p < stop) {
        const char* q = piece_end(p, stop);
        encode_word({p, static_cast<size_t>(q - p)}, scratch, ids);
        p = q;
      }
    }
    return;
  }
  pre_tokenizer.split(text, is_first, &scratch->list);
  for (const std::string_view piece : scratch->list.pieces) encode_piece(piece, scratch, ids);
}

// One piece of the pre-tokenizer. Without one a piece is the whole text, and is cut where no merge can reach across.
void Tokenizer::Impl::encode_piece(std::string_view piece, EncodeScratch::Impl* scratch, std::vector<int32_t>* ids) const {
  if (unigram) return unigram->encode(piece, &scratch->unigram, ids);
  if (!split_at_spaces && user_defined.empty()) return encode_word(piece, scratch, ids);
  size_t word = 0;
  bool in_spaces = true;
  for (size_t i = 0; i < piece.size();) {
    if (const ByteTrie::Match fixed = user_defined.longest(piece.substr(i)); fixed.length > 0) {
      encode_word(piece.substr(word, i - word), scratch, ids);
      ids->push_back(fixed.value);
      i += fixed.length;
      word = i;
      in_spaces = true;
      continue;
    }
    const bool is_space = split_at_spaces && piece[i] == '\xE2' && piece.substr(i).starts_with(kEscapedSpace);
    if (is_space && !in_spaces) {
      encode_word(piece.substr(word, i - word), scratch, ids);
      word = i;
    }
    in_spaces = is_space;
    i += is_space ? kEscapedSpace.size() : decode_utf8(piece.data() + i, piece.data() + piece.size()).length;
  }
  encode_word(piece.substr(word), scratch, ids);
}

void Tokenizer::Impl::encode_word(std::string_view word, EncodeScratch::Impl* scratch, std::vector<int32_t>* ids) const {
  if (word.empty()) return;
  if (word.size() > WordCache::kWordBytesMax || !bpe)
    return bpe ? bpe->encode(word, &scratch->bpe, ids) : unigram->encode(word, &scratch->unigram, ids);
  WordCache::Entry& entry = scratch->cache.entries[word_hash(word) & (WordCache::kEntries - 1)];
  if (entry.word_bytes == word.size() && std::memcmp(entry.word, word.data(), word.size()) == 0) {
    ids->insert(ids->end(), entry.ids, entry.ids + entry.num_ids);
    return;
  }
  const size_t before = ids->size();
  bpe->encode(word, &scratch->bpe, ids);
  const size_t num_ids = ids->size() - before;
  if (num_ids > WordCache::kIdsMax) return;
  std::memcpy(entry.word, word.data(), word.size());
  entry.word_bytes = static_cast<uint8_t>(word.size());
  entry.num_ids = static_cast<uint8_t>(num_ids);
  std::copy(ids->begin() + static_cast<int64_t>(before), ids->end(), entry.ids);
}

namespace {

void trim(const DecoderTable& table, bool start, bool end, std::string* text) {
  const std::string& strip = table.strip_text;
  if (strip.empty()) return;
  for (int i = 0; start && i < table.strip_left && text->starts_with(strip); ++i) text->erase(0, strip.size());
  for (int i = 0; end && i < table.strip_right && text->ends_with(strip); ++i) text->resize(text->size() - strip.size());
}

}  // namespace

std::string Tokenizer::decode(std::span<const int32_t> ids, const DecodeOptions& options) const {
  std::string text;
  for (const int32_t id : ids) {
    const std::string_view bytes = token_bytes(id);
    if (!options.skip_special || !is_special(id)) text += bytes;
  }
  trim(impl_->decoder, true, true, &text);
  return text;
}

int32_t Tokenizer::vocab_size() const { return impl_->vocab_size; }
int32_t Tokenizer::bos_id() const { return impl_->spec.bos_id; }
int32_t Tokenizer::eos_id() const { return impl_->spec.eos_id; }
int32_t Tokenizer::pad_id() const { return impl_->spec.pad_id; }
const std::string& Tokenizer::chat_template() const { return impl_->spec.chat_template; }
const TokenizerSpec& Tokenizer::spec() const { return impl_->spec; }
const std::vector<AddedToken>& Tokenizer::added_tokens() const { return impl_->spec.added; }
int32_t Tokenizer::token_id(std::string_view token_text) const { return impl_->name_index.find(impl_->names, token_text); }

namespace {
size_t checked_id(int32_t id, int32_t vocab_size) {
  if (id < 0 || id >= vocab_size) {
    throw Error(ErrorCode::kInvalidArgument, "token id {} is outside the tokenizer's vocabulary of {}", id, vocab_size);
  }
  return static_cast<size_t>(id);
}
}  // namespace

const std::string& Tokenizer::token_text(int32_t id) const { return impl_->names[checked_id(id, impl_->vocab_size)]; }
std::string_view Tokenizer::token_bytes(int32_t id) const { return impl_->decoder.bytes[checked_id(id, impl_->vocab_size)]; }
bool Tokenizer::is_special(int32_t id) const { return impl_->special[checked_id(id, impl_->vocab_size)]; }

std::vector<AddedToken> Tokenizer::special_tokens() const {
  std::vector<AddedToken> special;
  for (const AddedToken& token : impl_->spec.added) {
    if (token.special) special.push_back(token);
  }
  return special;
}

Tokenizer Tokenizer::with_chat_template(std::string chat_template) const {
  TokenizerSpec spec = impl_->spec;
  spec.chat_template = std::move(chat_template);
  return Tokenizer(std::move(spec));
}

StreamDecoder::StreamDecoder(Tokenizer tokenizer, const DecodeOptions& options)
    : tokenizer_(std::move(tokenizer)), options_(options) {}

std::string StreamDecoder::push(int32_t id) {
  const std::string_view bytes = tokenizer_.token_bytes(id);
  if (options_.skip_special && tokenizer_.is_special(id)) return {};
  pending_ += bytes;
  // What the decoder trims at the start has to be there whole before it can be trimmed.
  const DecoderTable& table = tokenizer_.impl_->decoder;
  if (at_start_ && !pending_.empty()) {
    trim(table, true, false, &pending_);
    at_start_ = false;
  }
  return take(false);
}

std::string StreamDecoder::finish() { return take(true); }

std::string StreamDecoder::take(bool all) {
  std::string out;
  const char* p = pending_.data();
  const char* const end = p + pending_.size();
  while (p < end) {
    const DecodedChar c = decode_utf8(p, end);
    if (c.code_point != kInvalidCodePoint) {
      out.append(p, c.length);
      p += c.length;
      continue;
    }
    // An unfinished character at the end may still become whole.
    const auto first = static_cast<uint8_t>(*p);
    const ptrdiff_t wanted = first >= 0xF0 && first < 0xF5   ? 4
                             : first >= 0xE0 && first < 0xF0 ? 3
                             : first >= 0xC2 && first < 0xE0 ? 2
                                                             : 1;
    const bool continues = std::all_of(p + 1, end, [](char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; });
    if (!all && end - p < wanted && continues) break;
    out += "\xEF\xBF\xBD";
    ++p;
    // One replacement for the rest of a character cut short by something else.
    while (p < end && wanted > 1 && (static_cast<uint8_t>(*p) & 0xC0) == 0x80) ++p;
  }
  pending_.erase(0, static_cast<size_t>(p - pending_.data()));
  return out;
}

}  // namespace orrery
