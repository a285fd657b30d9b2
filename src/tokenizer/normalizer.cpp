#include "tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tokenizer/json_util.h"
#include "tokenizer/regex.h"
#include "tokenizer/utf8.h"

namespace orrery {
namespace {

using nlohmann::json;

// Canonical ordering in utf8proc moves marks one by one, which is quadratic in a long run of them; a stable sort by combining
// class first gives the same order and leaves it nothing to move.
std::string presort_marks(std::string_view text) {
  struct Mark {
    int combining_class;
    std::string_view bytes;
  };
  std::string out;
  out.reserve(text.size());
  std::vector<Mark> run;
  const auto flush = [&] {
    if (run.size() > 16) {
      std::stable_sort(run.begin(), run.end(),
                       [](const Mark& a, const Mark& b) { return a.combining_class < b.combining_class; });
    }
    for (const Mark& mark : run) out += mark.bytes;
    run.clear();
  };
  for (const char *p = text.data(), *end = p + text.size(); p < end;) {
    const DecodedChar c = decode_utf8(p, end);
    const int ccc = utf8proc_get_property(static_cast<utf8proc_int32_t>(c.code_point))->combining_class;
    const std::string_view bytes(p, c.length);
    if (ccc != 0) {
      run.push_back({ccc, bytes});
    } else {
      flush();
      out += bytes;
    }
    p += c.length;
  }
  flush();
  return out;
}

// Calls valid(stretch) on every UTF-8 stretch; invalid bytes go to `out` as they are.
template <typename Valid>
void for_each_valid_stretch(std::string_view text, std::string* out, Valid&& valid) {
  while (!text.empty()) {
    const size_t prefix = valid_utf8_prefix(text);
    if (prefix > 0) valid(text.substr(0, prefix));
    if (prefix < text.size()) out->push_back(text[prefix]);
    text.remove_prefix(std::min(prefix + 1, text.size()));
  }
}

class UnicodeForm : public NormalizerStep {
 public:
  explicit UnicodeForm(int options) : options_(options) {}
  bool keeps_ascii() const override { return true; }
  std::string apply(std::string_view text) const override {
    std::string out;
    out.reserve(text.size());
    for_each_valid_stretch(text, &out, [&](std::string_view stretch) { append(stretch, &out); });
    return out;
  }

 private:
  void append(std::string_view stretch, std::string* out) const {
    const std::string sorted = presort_marks(stretch);
    utf8proc_uint8_t* result = nullptr;
    const utf8proc_ssize_t size =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(sorted.data()), static_cast<utf8proc_ssize_t>(sorted.size()),
                     &result, static_cast<utf8proc_option_t>(options_ | UTF8PROC_STABLE));
    if (size < 0)
      throw Error(ErrorCode::kOutOfMemory, "Unicode normalization of {} bytes: {}", sorted.size(), utf8proc_errmsg(size));
    out->append(reinterpret_cast<const char*>(result), static_cast<size_t>(size));
    std::free(result);
  }
  int options_;
};

bool is_mark(utf8proc_int32_t c) {
  const utf8proc_category_t category = utf8proc_category(c);
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_ME;
}

// Lowercase and StripAccents: one character at a time.
class PerCharacter : public NormalizerStep {
 public:
  enum class Kind { kLowercase, kStripAccents };
  explicit PerCharacter(Kind kind) : kind_(kind) {}
  std::string apply(std::string_view text) const override {
    std::string out;
    out.reserve(text.size());
    for (const char *p = text.data(), *end = p + text.size(); p < end;) {
      const DecodedChar c = decode_utf8(p, end);
      const auto code_point = static_cast<utf8proc_int32_t>(c.code_point);
      if (c.code_point == kInvalidCodePoint) {
        out.push_back(*p);
      } else if (kind_ == Kind::kStripAccents) {
        if (!is_mark(code_point)) out.append(p, c.length);
      } else if (c.code_point == 0x130) {
        out += "i\u0307";  // the one full lowercase mapping of two characters
      } else {
        append_utf8(&out, static_cast<uint32_t>(utf8proc_tolower(code_point)));
      }
      p += c.length;
    }
    return out;
  }

 private:
  Kind kind_;
};

class ReplaceString : public NormalizerStep {
 public:
  ReplaceString(std::string from, std::string to) : from_(std::move(from)), to_(std::move(to)) {}
  std::string apply(std::string_view text) const override {
    std::string out;
    out.reserve(text.size());
    while (true) {
      const size_t at = from_.empty() ? std::string_view::npos : text.find(from_);
      out += text.substr(0, at);
      if (at == std::string_view::npos) return out;
      out += to_;
      text.remove_prefix(at + from_.size());
    }
  }

 private:
  std::string from_, to_;
};

class ReplaceRegex : public NormalizerStep {
 public:
  ReplaceRegex(std::string pattern, std::string to) : regex_(std::move(pattern)), to_(std::move(to)) {}
  std::string apply(std::string_view text) const override {
    std::string out;
    size_t done = 0;
    regex_.for_each_match(text, [&](size_t begin, size_t end) {
      out += text.substr(done, begin - done);
      out += to_;
      done = end;
    });
    out += text.substr(done);
    return out;
  }

 private:
  Regex regex_;
  std::string to_;
};

class Prepend : public NormalizerStep {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  std::string apply(std::string_view text) const override { return text.empty() ? std::string() : prefix_ + std::string(text); }

 private:
  std::string prefix_;
};

class Strip : public NormalizerStep {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  std::string apply(std::string_view text) const override {
    const uint8_t* classes = character_classes();
    size_t first = text.size(), last = 0;
    for (size_t i = 0; i < text.size();) {
      const DecodedChar c = decode_utf8(text.data() + i, text.data() + text.size());
      if (!(classes[c.code_point] & kSpace)) {
        first = std::min(first, i);
        last = i + c.length;
      }
      i += c.length;
    }
    const size_t begin = left_ ? first : 0;
    const size_t end = right_ ? last : text.size();
    return begin < end ? std::string(text.substr(begin, end - begin)) : std::string();
  }

 private:
  bool left_, right_;
};

// As the `tokenizers` package reads a SentencePiece map: a grapheme of up to five bytes by its first match, else character by
// character.
class Precompiled : public NormalizerStep {
 public:
  explicit Precompiled(std::string blob) : map_(std::move(blob)) {}
  std::string apply(std::string_view text) const override {
    std::string out;
    out.reserve(text.size());
    for_each_valid_stretch(text, &out, [&](std::string_view stretch) { append(stretch, &out); });
    return out;
  }

 private:
  void append(std::string_view stretch, std::string* out) const {
    const char* p = stretch.data();
    const char* end = p + stretch.size();
    while (p < end) {
      const char* q = grapheme_end(p, end);
      const std::string_view grapheme(p, static_cast<size_t>(q - p));
      const CharsMap::Match whole = grapheme.size() < 6 ? map_.match(grapheme, /*shortest=*/true) : CharsMap::Match{};
      if (whole.length > 0) {
        *out += whole.replacement;
      } else {
        append_characters(grapheme, out);
      }
      p = q;
    }
  }
  void append_characters(std::string_view grapheme, std::string* out) const {
    for (size_t i = 0; i < grapheme.size();) {
      const DecodedChar c = decode_utf8(grapheme.data() + i, grapheme.data() + grapheme.size());
      const std::string_view part = grapheme.substr(i, c.length);
      const CharsMap::Match match = map_.match(part, /*shortest=*/true);
      *out += match.length > 0 ? match.replacement : part;
      i += c.length;
    }
  }
  static const char* grapheme_end(const char* p, const char* end) {
    DecodedChar before = decode_utf8(p, end);
    utf8proc_int32_t state = 0;
    for (p += before.length; p < end;) {
      const DecodedChar next = decode_utf8(p, end);
      if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(before.code_point),
                                           static_cast<utf8proc_int32_t>(next.code_point), &state)) {
        break;
      }
      before = next;
      p += next.length;
    }
    return p;
  }
  CharsMap map_;
};

void append_steps(const json& node, int depth, std::vector<std::shared_ptr<const NormalizerStep>>* steps) {
  if (node.is_null()) return;
  if (depth > 16) throw Error(ErrorCode::kCorruptData, "tokenizer.json: normalizers nested deeper than 16");
  const std::string type = json_string(node, "type", "normalizer");
  const auto add = [&](auto step) { steps->push_back(std::make_shared<decltype(step)>(std::move(step))); };
  if (type == "Sequence") {
    for (const json& child : json_array(node, "normalizers", "normalizer")) append_steps(child, depth + 1, steps);
  } else if (type == "NFC") {
    add(UnicodeForm(UTF8PROC_COMPOSE));
  } else if (type == "NFD") {
    add(UnicodeForm(UTF8PROC_DECOMPOSE));
  } else if (type == "NFKC") {
    add(UnicodeForm(UTF8PROC_COMPOSE | UTF8PROC_COMPAT));
  } else if (type == "NFKD") {
    add(UnicodeForm(UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT));
  } else if (type == "Lowercase") {
    add(PerCharacter(PerCharacter::Kind::kLowercase));
  } else if (type == "StripAccents") {
    add(PerCharacter(PerCharacter::Kind::kStripAccents));
  } else if (type == "Prepend") {
    add(Prepend(json_short_string(node, "prepend", "normalizer Prepend")));
  } else if (type == "Strip") {
    add(Strip(json_bool(node, "strip_left", true), json_bool(node, "strip_right", true)));
  } else if (type == "Precompiled") {
    add(Precompiled(base64_decode(json_string(node, "precompiled_charsmap", "normalizer Precompiled"))));
  } else if (type == "Replace") {
    const auto [pattern, is_regex] = json_pattern(node, "normalizer Replace");
    std::string content = json_short_string(node, "content", "normalizer Replace");
    if (is_regex) {
      add(ReplaceRegex(pattern, std::move(content)));
    } else {
      add(ReplaceString(pattern, std::move(content)));
    }
  } else {
    throw Error(ErrorCode::kUnsupported, "tokenizer.json: normalizer '{}' is not supported", type);
  }
}

}  // namespace

CharsMap::CharsMap(std::string blob) : blob_(std::move(blob)) {
  uint32_t trie_bytes = 0;
  if (blob_.size() >= 4) std::memcpy(&trie_bytes, blob_.data(), 4);
  if (blob_.size() < 8 || trie_bytes < 4 || trie_bytes % 4 != 0 || trie_bytes > blob_.size() - 4) {
    throw Error(ErrorCode::kCorruptData, "precompiled_charsmap: a trie of {} bytes in {} bytes", trie_bytes, blob_.size());
  }
  units_.resize(trie_bytes / 4);
  std::memcpy(units_.data(), blob_.data() + 4, trie_bytes);
}

CharsMap::Match CharsMap::match(std::string_view text, bool shortest) const {
  // Source  Darts-clone's unit: label, leaf flag, offset and value packed in 32 bits.
  const auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  const std::string_view replacements = std::string_view(blob_).substr(4 + units_.size() * 4);
  Match best;
  size_t node = offset(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    node ^= byte;
    if (byte == 0 || node >= units_.size()) break;
    const uint32_t unit = units_[node];
    if ((unit & (0x80000000u | 0xFF)) != byte) break;
    node ^= offset(unit);
    if ((unit >> 8 & 1) == 0) continue;
    if (node >= units_.size()) break;
    const size_t value = units_[node] & 0x7FFFFFFFu;
    if (value > replacements.size()) break;
    const std::string_view rest = replacements.substr(value);
    best = {rest.substr(0, std::min(rest.find('\0'), rest.size())), i + 1};
    if (shortest) break;
  }
  return best;
}

Normalizer Normalizer::from_json(const std::string& text) {
  Normalizer normalizer;
  append_steps(parse_json(text, "normalizer"), 0, &normalizer.steps_);
  return normalizer;
}

bool Normalizer::keeps_ascii() const {
  return std::all_of(steps_.begin(), steps_.end(), [](const auto& step) { return step->keeps_ascii(); });
}

std::string Normalizer::apply(std::string_view text) const {
  std::string result(text);
  for (const auto& step : steps_) {
    result = step->apply(result);
    // Steps that each double the text would otherwise fill any memory.
    if (result.size() > 64 * text.size() + 4096) {
      throw Error(ErrorCode::kUnsupported, "tokenizer: its normalizer makes {} bytes of {}; at most 64 times is supported",
                  result.size(), text.size());
    }
  }
  return result;
}

SentencePieceNormalizer::SentencePieceNormalizer(const SentencePieceOptions& options) : options_(options) {
  if (!options.precompiled_charsmap.empty()) map_ = std::make_unique<CharsMap>(options.precompiled_charsmap);
  for (const std::string& piece : options.user_defined) {
    if (!piece.empty()) user_defined_.insert(piece, 0);
  }
}

std::string SentencePieceNormalizer::apply(std::string_view text, bool with_prefix) const {
  constexpr std::string_view kEscapedSpace = "\xE2\x96\x81";
  const std::string_view space = options_.escape_whitespaces ? kEscapedSpace : std::string_view(" ");
  const auto prefix = [&](std::string_view rest) -> CharsMap::Match {
    if (const ByteTrie::Match fixed = user_defined_.longest(rest); fixed.length > 0) {
      return {rest.substr(0, fixed.length), fixed.length};
    }
    if (map_) {
      if (const CharsMap::Match match = map_->match(rest, /*shortest=*/false); match.length > 0) return match;
    }
    const DecodedChar c = decode_utf8(rest.data(), rest.data() + rest.size());
    if (c.code_point == kInvalidCodePoint) return {"\xEF\xBF\xBD", 1};
    return {rest.substr(0, c.length), c.length};
  };
  const bool trim = options_.remove_extra_whitespaces;
  while (trim && !text.empty()) {
    const CharsMap::Match match = prefix(text);
    if (match.replacement != " ") break;
    text.remove_prefix(match.length);
  }
  if (text.empty()) return {};
  std::string out;
  out.reserve(text.size() + text.size() / 2);
  const bool add_prefix = options_.add_dummy_prefix && with_prefix;
  if (add_prefix && !options_.treat_whitespace_as_suffix) out += space;
  bool after_space = trim;
  while (!text.empty()) {
    const CharsMap::Match match = prefix(text);
    std::string_view piece = match.replacement;
    while (after_space && !piece.empty() && piece.front() == ' ') piece.remove_prefix(1);
    for (const char c : piece) {
      if (c == ' ') {
        out += space;
      } else {
        out.push_back(c);
      }
    }
    if (!piece.empty()) after_space = piece.back() == ' ';
    if (!trim) after_space = false;
    text.remove_prefix(match.length);
  }
  while (trim && out.ends_with(space)) out.resize(out.size() - space.size());
  if (add_prefix && options_.treat_whitespace_as_suffix) out += space;
  return out;
}

}  // namespace orrery
