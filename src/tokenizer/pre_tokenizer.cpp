#include "tokenizer/pre_tokenizer.h"

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "tokenizer/json_util.h"
#include "tokenizer/regex.h"
#include "tokenizer/utf8.h"

namespace orrery {
namespace {

using nlohmann::json;

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// Collects the matches and gaps of one text and cuts it as the behavior says.
class Cutter {
 public:
  Cutter(std::string_view text, Behavior behavior, bool invert, std::vector<std::string_view>* out)
      : text_(text), behavior_(behavior), invert_(invert), out_(out) {}
  void match(size_t begin, size_t end) {
    if (begin > done_) part(done_, begin, invert_);
    if (end > begin) part(begin, end, !invert_);
    done_ = end;
  }
  void finish() {
    if (done_ < text_.size()) part(done_, text_.size(), invert_);
    flush();
  }

 private:
  void flush() {
    if (end_ > begin_) out_->push_back(text_.substr(begin_, end_ - begin_));
    begin_ = end_;
  }
  void part(size_t begin, size_t end, bool matched) {
    bool joins = false;
    switch (behavior_) {
      case Behavior::kRemoved:
        break;
      case Behavior::kIsolated:
        break;
      case Behavior::kMergedWithPrevious:
        joins = matched && !previous_matched_;
        break;
      case Behavior::kMergedWithNext:
        joins = previous_matched_ && !matched;
        break;
      case Behavior::kContiguous:
        joins = matched == previous_matched_;
        break;
    }
    if (!joins || end_ != begin) flush(), begin_ = begin;
    end_ = end;
    if (behavior_ == Behavior::kRemoved && matched) begin_ = end_;
    previous_matched_ = matched;
  }
  std::string_view text_;
  Behavior behavior_;
  bool invert_;
  std::vector<std::string_view>* out_;
  size_t done_ = 0, begin_ = 0, end_ = 0;
  bool previous_matched_ = false;
};

Behavior parse_behavior(const std::string& name) {
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  throw Error(ErrorCode::kUnsupported, "tokenizer.json: split behavior '{}' is not supported", name);
}

// A step that cuts each piece and changes none.
class CutStep : public PreTokenizerStep {
 public:
  CutStep(Behavior behavior, bool invert) : behavior_(behavior), invert_(invert) {}
  void apply(PieceList* list, bool) const override {
    list->next.clear();
    for (const std::string_view piece : list->pieces) {
      Cutter cutter(piece, behavior_, invert_, &list->next);
      cut(piece, &cutter);
      cutter.finish();
    }
    list->pieces.swap(list->next);
  }
  virtual void cut(std::string_view piece, Cutter* cutter) const = 0;

 private:
  Behavior behavior_;
  bool invert_;
};

class KnownPatternStep : public CutStep {
 public:
  KnownPatternStep(PieceEnd piece_end, Behavior behavior, bool invert) : CutStep(behavior, invert), piece_end_(piece_end) {}
  void cut(std::string_view piece, Cutter* cutter) const override {
    const char* end = piece.data() + piece.size();
    for (const char* p = piece.data(); p < end;) {
      const char* q = piece_end_(p, end);
      cutter->match(static_cast<size_t>(p - piece.data()), static_cast<size_t>(q - piece.data()));
      p = q;
    }
  }

 private:
  PieceEnd piece_end_;
};

class RegexStep : public CutStep {
 public:
  RegexStep(std::string pattern, Behavior behavior, bool invert) : CutStep(behavior, invert), regex_(std::move(pattern)) {}
  void cut(std::string_view piece, Cutter* cutter) const override {
    regex_.for_each_match(piece, [&](size_t begin, size_t end) { cutter->match(begin, end); });
  }

 private:
  Regex regex_;
};

class LiteralStep : public CutStep {
 public:
  LiteralStep(std::string literal, Behavior behavior, bool invert) : CutStep(behavior, invert), literal_(std::move(literal)) {}
  void cut(std::string_view piece, Cutter* cutter) const override {
    if (literal_.empty()) return;
    for (size_t at = piece.find(literal_); at != std::string_view::npos; at = piece.find(literal_, at + literal_.size())) {
      cutter->match(at, at + literal_.size());
    }
  }

 private:
  std::string literal_;
};

// Every character (or run of characters) of some classes is a match.
class ClassStep : public CutStep {
 public:
  ClassStep(uint8_t mask, bool runs, Behavior behavior) : CutStep(behavior, false), mask_(mask), runs_(runs) {}
  void cut(std::string_view piece, Cutter* cutter) const override {
    const uint8_t* classes = character_classes();
    size_t run = 0;
    bool in_run = false;
    for (size_t i = 0; i < piece.size();) {
      const DecodedChar c = decode_utf8(piece.data() + i, piece.data() + piece.size());
      const bool matches = classes[c.code_point] & mask_;
      if (in_run && (!matches || !runs_)) cutter->match(run, i), in_run = false;
      if (matches && !in_run) run = i, in_run = true;
      i += c.length;
    }
    if (in_run) cutter->match(run, piece.size());
  }

 private:
  uint8_t mask_;
  bool runs_;
};

// \w+|[^\w\s]+, the rest removed.
class WhitespaceStep : public PreTokenizerStep {
 public:
  void apply(PieceList* list, bool) const override {
    const uint8_t* classes = character_classes();
    list->next.clear();
    for (const std::string_view piece : list->pieces) {
      int kind = 0;
      size_t begin = 0;
      for (size_t i = 0; i < piece.size();) {
        const DecodedChar c = decode_utf8(piece.data() + i, piece.data() + piece.size());
        const uint8_t bits = classes[c.code_point];
        const int next_kind = bits & kSpace ? 0 : bits & kWord ? 1 : 2;
        if (next_kind != kind) {
          if (kind != 0) list->next.push_back(piece.substr(begin, i - begin));
          kind = next_kind;
          begin = i;
        }
        i += c.length;
      }
      if (kind != 0) list->next.push_back(piece.substr(begin));
    }
    list->pieces.swap(list->next);
  }
};

class MetaspaceStep : public PreTokenizerStep {
 public:
  enum class Prepend { kAlways, kFirst, kNever };
  MetaspaceStep(std::string replacement, Prepend prepend, bool split)
      : replacement_(std::move(replacement)), prepend_(prepend), split_(split) {}
  void apply(PieceList* list, bool is_first) const override {
    list->next.clear();
    for (size_t i = 0; i < list->pieces.size(); ++i) {
      std::string text;
      for (const char c : list->pieces[i]) {
        if (c == ' ') {
          text += replacement_;
        } else {
          text.push_back(c);
        }
      }
      const bool prefix = prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && is_first && i == 0);
      if (prefix && !text.starts_with(replacement_)) text.insert(0, replacement_);
      const std::string& kept = list->storage.emplace_back(std::move(text));
      if (!split_) {
        list->next.push_back(kept);
        continue;
      }
      Cutter cutter(kept, Behavior::kMergedWithNext, false, &list->next);
      for (size_t at = kept.find(replacement_); at != std::string::npos;
           at = kept.find(replacement_, at + replacement_.size())) {
        cutter.match(at, at + replacement_.size());
      }
      cutter.finish();
    }
    list->pieces.swap(list->next);
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool split_;
};

class PrefixSpaceStep : public PreTokenizerStep {
 public:
  void apply(PieceList* list, bool) const override {
    for (std::string_view& piece : list->pieces) {
      if (!piece.starts_with(' ')) piece = list->storage.emplace_back(" " + std::string(piece));
    }
  }
};

std::shared_ptr<const PreTokenizerStep> metaspace(const json& node) {
  const std::string replacement =
      node.contains("replacement") ? json_short_string(node, "replacement", "Metaspace") : "\xE2\x96\x81";
  if (replacement.empty()) throw Error(ErrorCode::kCorruptData, "tokenizer.json: Metaspace with an empty replacement");
  auto prepend = MetaspaceStep::Prepend::kAlways;
  if (node.contains("prepend_scheme")) {
    const std::string scheme = json_string(node, "prepend_scheme", "Metaspace");
    if (scheme == "first") {
      prepend = MetaspaceStep::Prepend::kFirst;
    } else if (scheme == "never") {
      prepend = MetaspaceStep::Prepend::kNever;
    } else if (scheme != "always") {
      throw Error(ErrorCode::kUnsupported, "tokenizer.json: Metaspace prepend_scheme '{}' is not supported", scheme);
    }
  } else if (!json_bool(node, "add_prefix_space", true)) {
    prepend = MetaspaceStep::Prepend::kNever;
  }
  return std::make_shared<MetaspaceStep>(replacement, prepend, json_bool(node, "split", true));
}

// What from_json gathers while it walks the tree.
struct Gathered {
  std::vector<std::shared_ptr<const PreTokenizerStep>> steps;
  std::vector<std::string> kinds;  // "known", "digits" or another, for the fast path
  PieceEnd known = nullptr;
  bool byte_level = false;
  void add(std::string kind, std::shared_ptr<const PreTokenizerStep> step) {
    steps.push_back(std::move(step));
    kinds.push_back(std::move(kind));
  }
};

void add_split(const json& node, Gathered* out) {
  const auto [pattern, is_regex] = json_pattern(node, "pre_tokenizer Split");
  const Behavior behavior = parse_behavior(json_string(node, "behavior", "pre_tokenizer Split"));
  const bool invert = json_bool(node, "invert", false);
  if (!is_regex) return out->add("literal", std::make_shared<LiteralStep>(pattern, behavior, invert));
  if (const auto known = known_split(pattern)) {
    // A known pattern matches every byte: to isolate its matches, or to remove what is not matched, is the same cut.
    const bool plain = (behavior == Behavior::kIsolated) || (behavior == Behavior::kRemoved && invert);
    out->known = piece_end_function(*known);
    return out->add(plain ? "known" : "pattern", std::make_shared<KnownPatternStep>(out->known, behavior, invert));
  }
  out->add("regex", std::make_shared<RegexStep>(pattern, behavior, invert));
}

void add_byte_level(const json& node, Gathered* out) {
  out->byte_level = true;
  if (json_bool(node, "add_prefix_space", true)) out->add("prefix", std::make_shared<PrefixSpaceStep>());
  if (!json_bool(node, "use_regex", true)) return;
  out->known = piece_end_function(KnownSplit::kGpt2);
  out->add("known", std::make_shared<KnownPatternStep>(out->known, Behavior::kIsolated, false));
}

void gather(const json& node, int depth, Gathered* out) {
  if (node.is_null()) return;
  if (depth > 16) throw Error(ErrorCode::kCorruptData, "tokenizer.json: pre-tokenizers nested deeper than 16");
  const std::string type = json_string(node, "type", "pre_tokenizer");
  if (out->byte_level) {
    throw Error(ErrorCode::kUnsupported, "tokenizer.json: pre-tokenizer '{}' after ByteLevel is not supported", type);
  }
  if (type == "Sequence") {
    for (const json& child : json_array(node, "pretokenizers", "pre_tokenizer")) gather(child, depth + 1, out);
  } else if (type == "ByteLevel") {
    add_byte_level(node, out);
  } else if (type == "Split") {
    add_split(node, out);
  } else if (type == "Digits") {
    const bool each = json_bool(node, "individual_digits", false);
    out->add(each ? "digits" : "number", std::make_shared<ClassStep>(kNumber, !each, Behavior::kIsolated));
  } else if (type == "Whitespace") {
    out->add("whitespace", std::make_shared<WhitespaceStep>());
  } else if (type == "WhitespaceSplit") {
    out->add("whitespace", std::make_shared<ClassStep>(kSpace, true, Behavior::kRemoved));
  } else if (type == "Punctuation") {
    const Behavior behavior =
        node.contains("behavior") ? parse_behavior(json_string(node, "behavior", type)) : Behavior::kIsolated;
    out->add("punctuation", std::make_shared<ClassStep>(kPunctuation, false, behavior));
  } else if (type == "CharDelimiterSplit") {
    out->add("delimiter", std::make_shared<LiteralStep>(json_string(node, "delimiter", type), Behavior::kRemoved, false));
  } else if (type == "Metaspace") {
    out->add("metaspace", metaspace(node));
  } else {
    throw Error(ErrorCode::kUnsupported, "tokenizer.json: pre-tokenizer '{}' is not supported", type);
  }
}

}  // namespace

PreTokenizer PreTokenizer::from_json(const std::string& text) {
  Gathered gathered;
  gather(parse_json(text, "pre_tokenizer"), 0, &gathered);
  PreTokenizer result;
  result.byte_level_ = gathered.byte_level;
  const bool one = gathered.kinds == std::vector<std::string>{"known"};
  result.digits_apart_ = gathered.kinds == std::vector<std::string>{"digits", "known"};
  if (one || result.digits_apart_) result.fast_path_ = gathered.known;
  result.steps_ = std::move(gathered.steps);
  return result;
}

void PreTokenizer::split(std::string_view text, bool is_first, PieceList* list) const {
  list->storage.clear();
  list->pieces.assign(1, text);
  for (const auto& step : steps_) step->apply(list, is_first);
}

}  // namespace orrery
