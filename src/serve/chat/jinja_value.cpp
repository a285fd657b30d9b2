#include "serve/chat/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace orrery::jinja {

using Kind = Value::Kind;

Text::Text(std::string bytes, bool from_input) : bytes_(std::move(bytes)) {
  if (from_input && !bytes_.empty()) ranges_.push_back({0, bytes_.size()});
}

void Text::append(const Text& other) {
  const size_t base = bytes_.size();
  for (const auto& range : other.ranges_) {
    if (!ranges_.empty() && ranges_.back().end == base + range.begin)
      ranges_.back().end = base + range.end;
    else
      ranges_.push_back({base + range.begin, base + range.end});
  }
  bytes_ += other.bytes_;
}

Text Text::slice(size_t begin, size_t end) const {
  Text result;
  if (begin >= end) return result;
  result.bytes_ = bytes_.substr(begin, end - begin);
  for (const auto& range : ranges_) {
    const size_t first = std::max(range.begin, begin), last = std::min(range.end, end);
    if (first < last) result.ranges_.push_back({first - begin, last - begin});
  }
  return result;
}

const Value* Arguments::find(size_t index, std::string_view name) const { return index < positional.size() ? &positional[index] : jinja::find(named, name); }

Value Value::none() {
  Value v;
  v.kind = Kind::kNone;
  return v;
}
Value Value::of(bool value) {
  Value v;
  v.kind = Kind::kBool;
  v.boolean = value;
  return v;
}
Value Value::of(int64_t value) {
  Value v;
  v.kind = Kind::kInt;
  v.integer = value;
  return v;
}
Value Value::of(double value) {
  Value v;
  v.kind = Kind::kFloat;
  v.real = value;
  return v;
}
Value Value::of(Text value) {
  Value v;
  v.kind = Kind::kString;
  v.text = std::make_shared<const Text>(std::move(value));
  return v;
}
Value Value::of(List value) {
  Value v;
  v.kind = Kind::kList;
  v.list = std::make_shared<List>(std::move(value));
  return v;
}
Value Value::of(Dict value) {
  Value v;
  v.kind = Kind::kDict;
  v.dict = std::make_shared<Dict>(std::move(value));
  return v;
}
Value Value::of(Function value) {
  Value v;
  v.kind = Kind::kFunction;
  v.function = std::make_shared<Function>(std::move(value));
  return v;
}

bool Value::truth() const {
  switch (kind) {
    case Kind::kUndefined:
    case Kind::kNone: return false;
    case Kind::kBool: return boolean;
    case Kind::kInt: return integer != 0;
    case Kind::kFloat: return real != 0;
    case Kind::kString: return text->size() > 0;
    case Kind::kList: return !list->empty();
    case Kind::kDict: return is_namespace || !dict->empty();
    case Kind::kFunction: return true;
  }
  return false;
}

Value from_json(const nlohmann::ordered_json& json, bool from_input) {
  if (json.is_null()) return Value::none();
  if (json.is_boolean()) return Value::of(json.get<bool>());
  if (json.is_number_integer()) return Value::of(json.get<int64_t>());
  if (json.is_number()) return Value::of(json.get<double>());
  if (json.is_string()) return Value::of(Text(json.get<std::string>(), from_input));
  if (json.is_array()) {
    List list;
    for (const auto& item : json) list.push_back(from_json(item, from_input));
    return Value::of(std::move(list));
  }
  Dict dict;
  for (const auto& [key, item] : json.items()) dict.emplace_back(key, from_json(item, from_input));
  return Value::of(std::move(dict));
}

const Value* find(const Dict& dict, std::string_view key) {
  for (const auto& [name, value] : dict)
    if (name == key) return &value;
  return nullptr;
}

bool equal(const Value& a, const Value& b, int depth) {
  if (depth > 100) return false;
  if (a.is_number() && b.is_number()) return a.is(Kind::kInt) && b.is(Kind::kInt) ? a.integer == b.integer : a.number() == b.number();
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kString: return a.bytes() == b.bytes();
    case Kind::kList:
      return a.list->size() == b.list->size() && std::equal(a.list->begin(), a.list->end(), b.list->begin(), [&](const Value& x, const Value& y) { return equal(x, y, depth + 1); });
    case Kind::kDict:
      return a.dict->size() == b.dict->size() && std::all_of(a.dict->begin(), a.dict->end(), [&](const auto& entry) {
               const Value* other = find(*b.dict, entry.first);
               return other != nullptr && equal(entry.second, *other, depth + 1);
             });
    case Kind::kFunction: return a.function == b.function;
    default: return true;
  }
}

std::string_view kind_name(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined: return "undefined";
    case Kind::kNone: return "none";
    case Kind::kBool: return "a boolean";
    case Kind::kInt: return "an integer";
    case Kind::kFloat: return "a number";
    case Kind::kString: return "a string";
    case Kind::kList: return "a list";
    case Kind::kDict: return "a mapping";
    case Kind::kFunction: return "a function";
  }
  return "";
}

namespace {

std::string real_text(double value) {
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  if (std::isnan(value)) return "nan";
  const double size = std::abs(value);
  if (size != 0 && (size < 1e-4 || size >= 1e16)) return fmt::format("{}", value);
  std::string text = fmt::format("{}", value);
  if (text.find('e') != std::string::npos) text = fmt::format("{:.0f}", value);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

std::string repr(std::string_view text) {
  const bool doubles = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = doubles ? '"' : '\'';
  std::string result(1, quote);
  for (const char c : text) {
    if (c == '\\' || c == quote) result += '\\';
    if (c == '\n')
      result += "\\n";
    else if (c == '\t')
      result += "\\t";
    else if (c == '\r')
      result += "\\r";
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
      result += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      result += c;
  }
  return result + quote;
}

// One walk for repr and JSON; sets *input when a string from the request is in it.
void write(const Value& value, bool json, int indent, int depth, std::string* out, bool* input) {
  if (depth > 100) throw Error(ErrorCode::kInvalidArgument, "a value nested deeper than 100");
  const auto line = [&](int level) {
    if (indent >= 0) *out += "\n" + std::string(static_cast<size_t>(indent * level), ' ');
  };
  switch (value.kind) {
    case Kind::kUndefined:
      if (json) throw Error(ErrorCode::kInvalidArgument, "'{}' is undefined and has no JSON", value.name);
      *out += "Undefined";
      return;
    case Kind::kNone: *out += json ? "null" : "None"; return;
    case Kind::kBool: *out += value.boolean ? (json ? "true" : "True") : (json ? "false" : "False"); return;
    case Kind::kInt: *out += std::to_string(value.integer); return;
    case Kind::kFloat: *out += json && std::isinf(value.real) ? (value.real > 0 ? "Infinity" : "-Infinity") : json && std::isnan(value.real) ? "NaN" : real_text(value.real); return;
    case Kind::kString:
      *input = *input || !value.text->from_input().empty();
      *out += json ? nlohmann::json(value.bytes()).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) : repr(value.bytes());
      return;
    case Kind::kList:
      *out += '[';
      for (size_t i = 0; i < value.list->size(); ++i) {
        if (i > 0) *out += indent >= 0 ? "," : ", ";
        line(depth + 1);
        write((*value.list)[i], json, indent, depth + 1, out, input);
      }
      if (!value.list->empty()) line(depth);
      *out += ']';
      return;
    case Kind::kDict: {
      *out += '{';
      bool first = true;
      for (const auto& [key, item] : *value.dict) {
        if (!first) *out += indent >= 0 ? "," : ", ";
        first = false;
        line(depth + 1);
        write(Value::of(key), json, indent, depth + 1, out, input);
        *out += ": ";
        write(item, json, indent, depth + 1, out, input);
      }
      if (!value.dict->empty()) line(depth);
      *out += '}';
      return;
    }
    case Kind::kFunction: throw Error(ErrorCode::kInvalidArgument, "a function has no text");
  }
}

}  // namespace

Text to_text(const Value& value) {
  if (value.is(Kind::kString)) return *value.text;
  if (value.is(Kind::kUndefined)) return {};
  std::string out;
  bool input = false;
  write(value, false, -1, 0, &out, &input);
  return Text(std::move(out), input);
}

Text to_json(const Value& value, int indent) {
  std::string out;
  bool input = false;
  write(value, true, indent, 0, &out, &input);
  return Text(std::move(out), input);
}

std::vector<size_t> character_offsets(std::string_view text) {
  std::vector<size_t> offsets;
  for (size_t at = 0; at < text.size(); at += decode_utf8(text.data() + at, text.data() + text.size()).length) offsets.push_back(at);
  offsets.push_back(text.size());
  return offsets;
}

}  // namespace orrery::jinja
