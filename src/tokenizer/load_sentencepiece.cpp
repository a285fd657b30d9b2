// SentencePiece's tokenizer.model: a ModelProto in protobuf wire format, read by hand, and what GGUF keeps of it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tokenizer/json_util.h"
#include "tokenizer/spec.h"

namespace orrery {
namespace {

using nlohmann::json;

constexpr char kEscapedSpace[] = "\xE2\x96\x81";
enum PieceType : uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// One field of a protobuf message: a number, or bytes.
struct Field {
  uint32_t number = 0;
  uint32_t wire_type = 0;
  uint64_t value = 0;
  std::string_view bytes;
};

class ProtoReader {
 public:
  ProtoReader(std::string_view data, const char* where) : data_(data), where_(where) {}
  bool next(Field* field) {
    if (at_ >= data_.size()) return false;
    const uint64_t tag = varint();
    if (tag >> 3 == 0 || tag >> 3 > 536870911) fail("a field number out of range");
    *field = {static_cast<uint32_t>(tag >> 3), static_cast<uint32_t>(tag & 7), 0, {}};
    switch (field->wire_type) {
      case 0:
        field->value = varint();
        break;
      case 1:
        field->bytes = take(8);
        break;
      case 2:
        field->bytes = take(varint());
        break;
      case 5:
        field->bytes = take(4);
        break;
      default:
        fail("an unknown wire type");
    }
    return true;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at_ >= data_.size()) fail("the end in the middle of a number");
      const auto byte = static_cast<uint8_t>(data_[at_++]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    fail("a number of more than ten bytes");
  }
  std::string_view take(uint64_t size) {
    if (size > data_.size() - at_) fail(fmt::format("a field of {} bytes where {} are left", size, data_.size() - at_));
    const std::string_view bytes = data_.substr(at_, size);
    at_ += size;
    return bytes;
  }
  [[noreturn]] void fail(const std::string& found) {
    throw Error(ErrorCode::kCorruptData,
                "tokenizer.model: {}: {} at byte {}; the file is cut short or not a SentencePiece model", where_, found, at_);
  }
  std::string_view data_;
  const char* where_;
  size_t at_ = 0;
};

float to_f32(const Field& field) {
  if (field.wire_type != 5) throw Error(ErrorCode::kCorruptData, "tokenizer.model: a score with wire type {}", field.wire_type);
  float value;
  std::memcpy(&value, field.bytes.data(), 4);
  return value;
}

void read_piece(std::string_view data, TokenizerSpec* spec) {
  std::string piece;
  float score = 0;
  uint8_t type = kNormal;
  ProtoReader reader(data, "a piece");
  for (Field field; reader.next(&field);) {
    if (field.number == 1) piece = field.bytes;
    if (field.number == 2) score = to_f32(field);
    if (field.number == 3) {
      if (field.value < kNormal || field.value > kByte) {
        throw Error(ErrorCode::kCorruptData, "tokenizer.model: piece {} has type {}", spec->tokens.size(), field.value);
      }
      type = static_cast<uint8_t>(field.value);
    }
  }
  if (piece.empty()) throw Error(ErrorCode::kCorruptData, "tokenizer.model: piece {} is empty", spec->tokens.size());
  spec->tokens.push_back(std::move(piece));
  spec->scores.push_back(score);
  spec->piece_types.push_back(type);
}

struct TrainerSpec {
  uint64_t model_type = 1;
  bool byte_fallback = false;
  bool whitespace_suffix = false;
  int64_t bos_id = 1, eos_id = 2, pad_id = -1;
  std::string bos_piece = "<s>", eos_piece = "</s>", pad_piece = "<pad>";
};

TrainerSpec read_trainer(std::string_view data) {
  TrainerSpec trainer;
  ProtoReader reader(data, "trainer_spec");
  for (Field field; reader.next(&field);) {
    switch (field.number) {
      case 3:
        trainer.model_type = field.value;
        break;
      case 24:
        trainer.whitespace_suffix = field.value != 0;
        break;
      case 35:
        trainer.byte_fallback = field.value != 0;
        break;
      case 41:
        trainer.bos_id = static_cast<int64_t>(field.value);
        break;
      case 42:
        trainer.eos_id = static_cast<int64_t>(field.value);
        break;
      case 43:
        trainer.pad_id = static_cast<int64_t>(field.value);
        break;
      case 46:
        trainer.bos_piece = field.bytes;
        break;
      case 47:
        trainer.eos_piece = field.bytes;
        break;
      case 48:
        trainer.pad_piece = field.bytes;
        break;
      default:
        break;
    }
  }
  return trainer;
}

void read_normalizer(std::string_view data, SentencePieceOptions* options) {
  ProtoReader reader(data, "normalizer_spec");
  for (Field field; reader.next(&field);) {
    if (field.number == 2) options->precompiled_charsmap = field.bytes;
    if (field.number == 3) options->add_dummy_prefix = field.value != 0;
    if (field.number == 4) options->remove_extra_whitespaces = field.value != 0;
    if (field.number == 5) options->escape_whitespaces = field.value != 0;
  }
}

// The normalizer, pre-tokenizer and decoder with which the `tokenizers` package comes nearest.
void describe_components(TokenizerSpec* spec) {
  const SentencePieceOptions& options = *spec->sentencepiece;
  json steps = json::array();
  const auto replace = [](const char* kind, const char* from, const char* to) {
    return json{{"type", "Replace"}, {"pattern", {{kind, from}}}, {"content", to}};
  };
  if (!options.precompiled_charsmap.empty()) {
    steps.push_back({{"type", "Precompiled"}, {"precompiled_charsmap", base64_encode(options.precompiled_charsmap)}});
  }
  if (options.remove_extra_whitespaces) {
    steps.push_back({{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}});
    steps.push_back(replace("Regex", " {2,}", " "));
  }
  if (spec->model == TokenizerModel::kBpe) {
    if (options.add_dummy_prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kEscapedSpace}});
    steps.push_back(replace("String", " ", kEscapedSpace));
  } else {
    spec->pre_tokenizer = json{
        {"type", "Metaspace"},
        {"replacement", kEscapedSpace},
        {"prepend_scheme", options.add_dummy_prefix ? "always" : "never"},
        {"split", false}}.dump();
  }
  if (!steps.empty()) spec->normalizer = json{{"type", "Sequence"}, {"normalizers", steps}}.dump();
  json decoders = json::array();
  decoders.push_back(replace("String", kEscapedSpace, " "));
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (options.add_dummy_prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  spec->decoder = json{{"type", "Sequence"}, {"decoders", decoders}}.dump();
}

}  // namespace

void finish_sentencepiece(TokenizerSpec* spec) {
  require_utf8_tokens(spec->tokens, "SentencePiece vocabulary");
  spec->fuse_unk = true;
  for (size_t id = 0; id < spec->tokens.size(); ++id) {
    const uint8_t type = spec->piece_types[id];
    if (!std::isfinite(spec->scores[id])) {
      throw Error(ErrorCode::kCorruptData, "SentencePiece vocabulary: the score of piece {} ('{}') is not finite", id,
                  spec->tokens[id]);
    }
    if (type == kUnknown && spec->unk_id < 0) spec->unk_id = static_cast<int32_t>(id);
    if (type == kUserDefined) spec->sentencepiece->user_defined.push_back(spec->tokens[id]);
    if (type != kControl && type != kUnknown) continue;
    AddedToken token;
    token.id = static_cast<int32_t>(id);
    token.content = spec->tokens[id];
    token.special = true;
    spec->added.push_back(std::move(token));
  }
  if (spec->model == TokenizerModel::kBpe) {
    // Ranks: the order of the scores, the same for equal scores, so that among these the leftmost pair goes first.
    std::vector<double> scores;
    for (size_t id = 0; id < spec->tokens.size(); ++id) {
      if (spec->piece_types[id] == kNormal) scores.push_back(spec->scores[id]);
    }
    std::sort(scores.begin(), scores.end(), std::greater<>());
    scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
    std::vector<int64_t> ranks(spec->tokens.size(), -1);
    for (size_t id = 0; id < spec->tokens.size(); ++id) {
      if (spec->piece_types[id] != kNormal) continue;
      ranks[id] = std::lower_bound(scores.begin(), scores.end(), spec->scores[id], std::greater<>()) - scores.begin();
    }
    spec->merges = merges_from_ranks(spec->tokens, ranks);
  }
  describe_components(spec);
}

Tokenizer load_sentencepiece(std::string_view data, std::string_view config_json) {
  TokenizerSpec spec;
  TrainerSpec trainer;
  SentencePieceOptions options;
  ProtoReader reader(data, "model");
  for (Field field; reader.next(&field);) {
    if (field.number >= 1 && field.number <= 3 && field.wire_type != 2) {
      throw Error(ErrorCode::kCorruptData, "tokenizer.model: field {} is not a message; not a SentencePiece model",
                  field.number);
    }
    if (field.number == 1) read_piece(field.bytes, &spec);
    if (field.number == 2) trainer = read_trainer(field.bytes);
    if (field.number == 3) read_normalizer(field.bytes, &options);
  }
  if (spec.tokens.empty())
    throw Error(ErrorCode::kCorruptData, "tokenizer.model: no pieces; the file is empty or not a SentencePiece model");
  if (trainer.model_type != 1 && trainer.model_type != 2) {
    throw Error(ErrorCode::kUnsupported,
                "tokenizer.model: SentencePiece model type {} is not supported; unigram (1) and bpe (2) are",
                trainer.model_type);
  }
  spec.model = trainer.model_type == 1 ? TokenizerModel::kUnigram : TokenizerModel::kBpe;
  spec.byte_fallback = trainer.byte_fallback;
  options.treat_whitespace_as_suffix = trainer.whitespace_suffix;
  spec.sentencepiece = std::move(options);
  const auto id_of = [&](const std::string& piece) {
    const auto it = std::find(spec.tokens.begin(), spec.tokens.end(), piece);
    return it == spec.tokens.end() ? -1 : static_cast<int32_t>(it - spec.tokens.begin());
  };
  spec.bos_id = trainer.bos_id < 0 ? -1 : id_of(trainer.bos_piece);
  spec.eos_id = trainer.eos_id < 0 ? -1 : id_of(trainer.eos_piece);
  spec.pad_id = trainer.pad_id < 0 ? -1 : id_of(trainer.pad_piece);
  finish_sentencepiece(&spec);
  bool add_bos = true, add_eos = false;
  if (!config_json.empty()) {
    const json config = parse_json(config_json, "tokenizer_config.json");
    if (!config.is_object()) throw Error(ErrorCode::kCorruptData, "tokenizer_config.json: wanted an object");
    add_bos = json_bool(config, "add_bos_token", true);
    add_eos = json_bool(config, "add_eos_token", false);
    if (config.contains("chat_template") && config["chat_template"].is_string()) {
      spec.chat_template = config["chat_template"].get<std::string>();
    }
  }
  spec.post_processor = bos_eos_post_processor(spec, add_bos ? spec.bos_id : -1, add_eos ? spec.eos_id : -1);
  return Tokenizer(std::move(spec));
}

}  // namespace orrery
