// The values of templates. Internal to src/serve/chat.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve/chat/chat_template.h"

namespace orrery::jinja {

/// Bytes of which some came from the request.
class Text {
 public:
  Text() = default;
  explicit Text(std::string bytes, bool from_input = false);
  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  const std::vector<RenderedText::Range>& from_input() const { return ranges_; }
  void append(const Text& other);
  Text slice(size_t begin, size_t end) const;

 private:
  std::string bytes_;
  std::vector<RenderedText::Range> ranges_;
};

struct Value;
class Interpreter;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  // few keys, in order
struct Arguments {
  std::vector<Value> positional;
  Dict named;
  const Value* find(size_t index, std::string_view name) const;
};
using Function = std::function<Value(Interpreter&, const Arguments&)>;

struct Value {
  enum class Kind { kUndefined, kNone, kBool, kInt, kFloat, kString, kList, kDict, kFunction } kind = Kind::kUndefined;
  bool boolean = false;
  bool is_namespace = false;
  int64_t integer = 0;
  double real = 0;
  std::shared_ptr<const Text> text;
  std::shared_ptr<List> list;
  std::shared_ptr<Dict> dict;
  std::shared_ptr<Function> function;
  std::string name;  // of what is undefined, for messages

  static Value none();
  static Value of(bool value);
  static Value of(int64_t value);
  static Value of(double value);
  static Value of(Text value);
  static Value of(std::string value) { return of(Text(std::move(value))); }
  static Value of(List value);
  static Value of(Dict value);
  static Value of(Function value);

  bool is(Kind k) const { return kind == k; }
  bool is_number() const { return kind == Kind::kInt || kind == Kind::kFloat || kind == Kind::kBool; }
  double number() const { return kind == Kind::kFloat ? real : kind == Kind::kInt ? static_cast<double>(integer) : boolean; }
  bool truth() const;
  const std::string& bytes() const { return text->bytes(); }
};

Value from_json(const nlohmann::ordered_json& json, bool from_input);
bool equal(const Value& a, const Value& b, int depth = 0);
const Value* find(const Dict& dict, std::string_view key);
std::string_view kind_name(const Value& value);
/// As Python's str() and repr().
Text to_text(const Value& value);
/// As json.dumps(ensure_ascii=False); indent < 0: one line. Marked as input when any string in it is.
Text to_json(const Value& value, int indent);
/// Code point offsets: size() + 1 of them.
std::vector<size_t> character_offsets(std::string_view text);

}  // namespace orrery::jinja
