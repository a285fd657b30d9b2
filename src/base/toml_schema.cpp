// Reading, overriding and writing back. The only file that includes toml++.
#include "base/toml_schema.h"

// Some malformed input reaches an assertion of toml++ 3.3 (in parse_key, found by the mutation test of run_config_test.cpp),
// which NDEBUG would even turn into undefined behaviour. Here it is one more way not to be TOML.
#undef NDEBUG
namespace orrery {
struct TomlAssertion {};
[[noreturn]] inline void refuse_toml() { throw TomlAssertion(); }
}  // namespace orrery
#define TOML_ASSERT(condition) ((condition) ? static_cast<void>(0) : ::orrery::refuse_toml())
#define TOML_HEADER_ONLY 1
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

#include <algorithm>
#include <cmath>

#include "base/nearest_name.h"
#include "base/units.h"

namespace orrery {
namespace {

constexpr size_t kSnippetWidth = 160;

/// A document and its name, so that a place can show its line.
struct Document {
  std::string_view text;
  std::string file;
  bool is_override = false;

  std::string line(int number) const {
    size_t begin = 0;
    for (int i = 1; i < number && begin != std::string_view::npos; ++i) {
      begin = text.find('\n', begin);
      if (begin != std::string_view::npos) ++begin;
    }
    if (begin == std::string_view::npos) return {};
    return std::string(text.substr(begin, std::min(text.find('\n', begin), text.size()) - begin));
  }

  KeyPlace place(const toml::source_region& region) const {
    KeyPlace place{.file = file, .line = 1, .column = 1, .length = 1, .text = {}};
    place.line = std::max<int>(1, static_cast<int>(region.begin.line));
    place.column = std::max<int>(1, static_cast<int>(region.begin.column));
    place.text = line(place.line);
    const bool one_line = region.end.line == region.begin.line && region.end.column > region.begin.column;
    const int rest = static_cast<int>(place.text.size()) - place.column + 1;
    place.length = std::max(1, one_line ? static_cast<int>(region.end.column - region.begin.column) : rest);
    return place;
  }
};

std::string type_name(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a number";
    case toml::node_type::boolean:
      return "a boolean";
    default:
      return "a date";
  }
}

/// The value that one key was given, with what is needed to complain about it.
struct Given {
  const KeyInfo& key;
  const toml::node& node;
  KeyPlace place;

  [[noreturn]] void fail(const std::string& what) const {
    throw_at_place(ErrorCode::kInvalidConfig, place, fmt::format("`{}` {}", key.path(), what), "expected " + key.type_text());
  }
  [[noreturn]] void wrong_type() const { fail(fmt::format("is {}", type_name(node))); }
};

double checked_range(const Given& given, double value) {
  const KeyOptions& options = given.key.options;
  if (!std::isfinite(value)) given.fail("is not a finite number");
  if (value < options.min) given.fail(fmt::format("is {}, below {}", value, options.min));
  if (value > options.max) given.fail(fmt::format("is {}, above {}", value, options.max));
  return value;
}

KeyValue read_integer(const Given& given) {
  std::optional<int64_t> value;
  if (const auto* integer = given.node.as_integer()) {
    value = integer->get();
  } else if (const auto* number = given.node.as_floating_point()) {
    // 1e6 is a float in TOML and a whole number to its author.
    const double real = number->get();
    if (real == std::floor(real) && std::abs(real) < 9e18) value = static_cast<int64_t>(real);
  } else if (const auto* text = given.node.as_string()) {
    value = given.key.options.number == KeyUnit::kBytes ? parse_bytes(text->get()) : parse_count(text->get());
    if (!value) given.fail(fmt::format("is \"{}\", not a whole number (such as 4000, \"4k\" or \"4Ki\")", text->get()));
  } else {
    given.wrong_type();
  }
  if (!value) given.fail("is not a whole number");
  checked_range(given, static_cast<double>(*value));
  return *value;
}

KeyValue read_number(const Given& given) {
  if (const auto* integer = given.node.as_integer()) return checked_range(given, static_cast<double>(integer->get()));
  if (const auto* number = given.node.as_floating_point()) return checked_range(given, number->get());
  const auto* text = given.node.as_string();
  if (!text) given.wrong_type();
  if (given.key.options.number == KeyUnit::kSeconds) {
    if (const auto seconds = parse_duration_seconds(text->get())) return checked_range(given, *seconds);
    given.fail(fmt::format("is \"{}\", not a duration (such as 90, \"30m\" or \"1h30m\")", text->get()));
  }
  if (const auto count = parse_count(text->get())) return checked_range(given, static_cast<double>(*count));
  given.fail(fmt::format("is \"{}\", not a number", text->get()));
}

KeyValue read_choice(const Given& given) {
  const auto* text = given.node.as_string();
  if (!text) given.wrong_type();
  const auto& choices = given.key.choices;
  const auto found = std::find(choices.begin(), choices.end(), text->get());
  if (found != choices.end()) return static_cast<int64_t>(found - choices.begin());
  const auto nearest = nearest_name(text->get(), choices);
  const std::string hint =
      fmt::format("{}one of {}", nearest ? fmt::format("did you mean \"{}\"? ", *nearest) : "", fmt::join(choices, ", "));
  throw_at_place(ErrorCode::kInvalidConfig, given.place, fmt::format("`{}` has no value \"{}\"", given.key.path(), text->get()),
                 hint);
}

KeyValue read_string_list(const Given& given) {
  if (const auto* text = given.node.as_string()) return std::vector<std::string>{text->get()};
  const auto* array = given.node.as_array();
  if (!array) given.wrong_type();
  std::vector<std::string> list;
  for (const toml::node& node : *array) {
    if (!node.is_string()) given.fail(fmt::format("holds {}", type_name(node)));
    list.push_back(node.as_string()->get());
  }
  return list;
}

WeightedPath read_weighted_path(const Given& given, const toml::node& node) {
  if (const auto* text = node.as_string()) return {text->get(), 1.0};
  const auto* table = node.as_table();
  if (!table) given.fail(fmt::format("holds {}", type_name(node)));
  WeightedPath entry;
  for (const auto& [name, value] : *table) {
    if (name.str() == "path" && value.is_string())
      entry.path = value.as_string()->get();
    else if (name.str() == "weight" && value.is_number())
      entry.weight = *value.value<double>();
    else
      given.fail(fmt::format("has an entry with `{}` = {}; an entry holds path (a string) and weight (a number)", name.str(),
                             type_name(value)));
  }
  if (entry.path.empty()) given.fail("has an entry without path");
  if (!(entry.weight > 0) || !std::isfinite(entry.weight))
    given.fail(fmt::format("has weight {}; a weight is above 0", entry.weight));
  return entry;
}

KeyValue read_path_list(const Given& given) {
  std::vector<WeightedPath> list;
  if (const auto* array = given.node.as_array()) {
    for (const toml::node& node : *array) list.push_back(read_weighted_path(given, node));
  } else {
    if (!given.node.is_string() && !given.node.is_table()) given.wrong_type();
    list.push_back(read_weighted_path(given, given.node));
  }
  return list;
}

KeyValue read_byte_budget(const Given& given) {
  if (const auto* integer = given.node.as_integer()) {
    if (integer->get() <= 0) given.fail("is not above 0");
    return ByteBudget{.bytes = integer->get()};
  }
  const auto* text = given.node.as_string();
  if (!text) given.wrong_type();
  std::string_view written = text->get();
  if (written.ends_with('%')) {
    written.remove_suffix(1);
    double percent = 0;
    const auto [end, error] = std::from_chars(written.data(), written.data() + written.size(), percent);
    if (error != std::errc() || end != written.data() + written.size() || !(percent > 0 && percent <= 100))
      given.fail("is not between 0% and 100%");
    return ByteBudget{.fraction = percent / 100};
  }
  const auto bytes = parse_bytes(written);
  if (!bytes || *bytes <= 0) given.fail(fmt::format("is \"{}\", neither bytes nor a share", written));
  return ByteBudget{.bytes = *bytes};
}

KeyValue read_value(const Given& given) {
  const auto* text = given.node.as_string();
  if (text && !given.key.options.auto_word.empty() && text->get() == given.key.options.auto_word) return std::monostate{};
  switch (given.key.kind) {
    case KeyKind::kBool:
      if (!given.node.is_boolean()) given.wrong_type();
      return given.node.as_boolean()->get();
    case KeyKind::kInteger:
      return read_integer(given);
    case KeyKind::kNumber:
      return read_number(given);
    case KeyKind::kString:
      if (!text) given.wrong_type();
      return text->get();
    case KeyKind::kChoice:
      return read_choice(given);
    case KeyKind::kStringList:
      return read_string_list(given);
    case KeyKind::kPathList:
      return read_path_list(given);
    case KeyKind::kByteBudget:
      return read_byte_budget(given);
  }
  return std::monostate{};
}

/// Applies a parsed document to the value, key by key, in the order of the document.
class Reader {
 public:
  Reader(const SchemaTable& table, void* config, const Document& document, ConfigText& text)
      : table_(table), config_(config), document_(document), text_(text) {}

  void read(const toml::table& root) const {
    for (const auto& [name, node] : root) {
      const auto sections = table_.sections();
      if (std::find(sections.begin(), sections.end(), name.str()) == sections.end()) unknown_section(name, node);
      const RepeatedSection* repeated = table_.find_repeated(name.str());
      const toml::table* section = node.as_table();
      if (repeated != nullptr && node.is_array_of_tables()) {
        const toml::array& list = *node.as_array();
        repeated->resize(config_, list.size());
        for (size_t i = 0; i < list.size(); ++i) read_section(name.str(), *list[i].as_table(), list[i], i, repeated);
        continue;
      }
      if (!section) {
        throw_at_place(ErrorCode::kInvalidConfig, place_of(name), fmt::format("`{}` is {}", name.str(), type_name(node)),
                       fmt::format("expected the section [{0}]{1}", name.str(), repeated ? fmt::format(" or several [[{}]]", name.str()) : ""));
      }
      if (repeated != nullptr && repeated->size(config_) == 0) repeated->resize(config_, 1);
      read_section(name.str(), *section, node, 0, repeated);
    }
  }

 private:
  KeyPlace place_of(const toml::key& name) const {
    return document_.is_override ? override_place() : document_.place(name.source());
  }
  KeyPlace place_of(const toml::node& node) const {
    return document_.is_override ? override_place() : document_.place(node.source());
  }
  KeyPlace override_place() const {
    return {.file = document_.file,
            .line = 0,
            .column = 1,
            .length = static_cast<int>(document_.text.size()),
            .text = std::string(document_.text)};
  }

  void read_section(std::string_view section, const toml::table& keys, const toml::node& node, size_t element, const RepeatedSection* repeated) const {
    const std::string path = repeated ? element_path(section, element) : std::string(section);
    text_.add(path, place_of(node));
    for (const auto& [key_name, value] : keys) read_key(section, key_name, value, element, path);
  }

  void read_key(std::string_view section, const toml::key& name, const toml::node& node, size_t element, const std::string& section_path) const {
    const KeyInfo* key = table_.find(section, name.str());
    if (key == nullptr) unknown_key(section, name);
    const Given given{*key, node, place_of(node)};
    KeyValue value = key->options.requires_feature.empty() ? read_value(given) : read_unavailable(given);
    key->set(config_, element, std::move(value));
    text_.add(section_path + "." + key->name, given.place);
  }

  /// A value written out in full is fine when it is the default: that is how a resolved file reads back.
  KeyValue read_unavailable(const Given& given) const {
    const KeyInfo& key = given.key;
    std::optional<KeyValue> value;
    try {
      value = read_value(given);
    } catch (const Error&) {
      // Whether or not it is well formed, it is not the default.
    }
    if (!value || key_value_to_toml(key, *value) != key.default_toml) {
      throw_at_place(ErrorCode::kUnsupported, given.place,
                     fmt::format("`{}` needs {}, which this version does not have", key.path(), key.options.requires_feature),
                     key.default_toml.empty() ? "leave it out" : fmt::format("leave it out, or at {}", key.default_toml));
    }
    return *value;
  }

  [[noreturn]] void unknown_section(const toml::key& name, const toml::node& node) const {
    const auto sections = table_.sections();
    const std::vector<std::string_view> names(sections.begin(), sections.end());
    std::string hint;
    if (const auto nearest = nearest_name(name.str(), names)) hint = fmt::format("did you mean [{}]? ", *nearest);
    // A key above the first section header: say which section it belongs to.
    for (const KeyInfo& key : table_.keys()) {
      if (!node.is_table() && key.name == name.str()) hint = fmt::format("it belongs to the section [{}]; ", key.section);
    }
    throw_at_place(ErrorCode::kInvalidConfig, place_of(name),
                   fmt::format("unknown {} `{}`", node.is_table() ? "section" : "key", name.str()),
                   hint + fmt::format("sections: {}", fmt::join(names, ", ")));
  }

  const KeyInfo* nearest_key(std::string_view section, std::string_view name) const {
    std::vector<std::string_view> names;
    for (const KeyInfo& key : table_.keys()) {
      const auto& others = key.options.also_called;
      const bool other_name = std::find(others.begin(), others.end(), name) != others.end();
      if (other_name || (key.name == name && key.section != section)) return &key;
      if (key.section == section) names.push_back(key.name);
    }
    const auto nearest = nearest_name(name, names);
    return nearest ? table_.find(section, *nearest) : nullptr;
  }

  [[noreturn]] void unknown_key(std::string_view section, const toml::key& name) const {
    std::string hint;
    if (const KeyInfo* nearest = nearest_key(section, name.str())) {
      hint = fmt::format("did you mean `{}`? (section [{}], {})  see: orrery help {}", nearest->name, nearest->section,
                         nearest->type_text(), nearest->name);
    }
    std::vector<std::string_view> names;
    for (const KeyInfo& key : table_.keys()) {
      if (key.section == section) names.push_back(key.name);
    }
    KeyPlace place = place_of(name);
    const std::string allowed = fmt::format("[{}] takes {}", section, fmt::join(names, ", "));
    throw_at_place(ErrorCode::kInvalidConfig, place, fmt::format("unknown key `{}.{}`", section, name.str()),
                   hint.empty() ? allowed : hint + "\n" + allowed);
  }

  const SchemaTable& table_;
  void* config_;
  const Document& document_;
  ConfigText& text_;
};

toml::table parse_document(const Document& document) {
  try {
    return toml::parse(document.text, document.file);
  } catch (const TomlAssertion&) {
    throw Error(ErrorCode::kInvalidConfig, "{}: not TOML: malformed key", document.file);
  } catch (const toml::parse_error& error) {
    throw_at_place(ErrorCode::kInvalidConfig, document.place(error.source()), std::string(error.description()), "not TOML");
  }
}

/// "train.steps=10" as a document of one key. The value is TOML, or a bare word that stands for a string.
toml::table parse_override(const std::string& argument) {
  const auto fail = [&](const std::string& why) {
    throw Error(ErrorCode::kInvalidConfig, "--set {}: {}; write --set section.key=value", argument, why);
  };
  const size_t equals = argument.find('='), dot = argument.find('.');
  if (equals == std::string::npos) fail("there is no `=`");
  if (dot == std::string::npos || dot > equals) fail("the key has no section");
  const std::string section = argument.substr(0, dot), name = argument.substr(dot + 1, equals - dot - 1),
                    value = argument.substr(equals + 1);
  toml::table holder;
  try {
    holder = toml::parse("value = " + value + "\n");
  } catch (const toml::parse_error&) {
    holder.clear();
  } catch (const TomlAssertion&) {
    holder.clear();
  }
  if (holder.size() != 1 || !holder.contains("value")) {
    holder.clear();
    holder.insert("value", value);
  }
  toml::table inner, root;
  inner.insert(name, *holder.get("value"));
  root.insert(section, std::move(inner));
  return root;
}

std::string toml_string(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      result += '\\', result += c;
    else if (c == '\n')
      result += "\\n";
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      result += fmt::format("\\u{:04X}", static_cast<unsigned char>(c));
    else
      result += c;
  }
  return result + "\"";
}

std::string toml_number(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".einf") == std::string::npos) text += ".0";
  return text;
}

std::string toml_paths(const std::vector<WeightedPath>& paths) {
  std::vector<std::string> entries;
  for (const WeightedPath& entry : paths) {
    entries.push_back(entry.weight == 1.0
                          ? toml_string(entry.path)
                          : fmt::format("{{path = {}, weight = {}}}", toml_string(entry.path), toml_number(entry.weight)));
  }
  return fmt::format("[{}]", fmt::join(entries, ", "));
}

std::string shown_line(const std::string& text) {
  std::string line = text.substr(0, kSnippetWidth);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return line;
}

}  // namespace

std::string key_value_to_toml(const KeyInfo& key, const KeyValue& value) {
  if (std::holds_alternative<std::monostate>(value))
    return key.options.auto_word.empty() ? "" : toml_string(key.options.auto_word);
  switch (key.kind) {
    case KeyKind::kBool:
      return std::get<bool>(value) ? "true" : "false";
    case KeyKind::kInteger:
      return fmt::format("{}", std::get<int64_t>(value));
    case KeyKind::kNumber:
      return toml_number(std::get<double>(value));
    case KeyKind::kString:
      return toml_string(std::get<std::string>(value));
    case KeyKind::kChoice:
      return toml_string(key.choices.at(static_cast<size_t>(std::get<int64_t>(value))));
    case KeyKind::kStringList: {
      std::vector<std::string> entries;
      for (const std::string& entry : std::get<std::vector<std::string>>(value)) entries.push_back(toml_string(entry));
      return fmt::format("[{}]", fmt::join(entries, ", "));
    }
    case KeyKind::kPathList:
      return toml_paths(std::get<std::vector<WeightedPath>>(value));
    case KeyKind::kByteBudget: {
      const ByteBudget& budget = std::get<ByteBudget>(value);
      return budget.bytes > 0 ? fmt::format("{}", budget.bytes) : toml_string(fmt::format("{}%", budget.fraction * 100));
    }
  }
  return {};
}

std::string element_path(std::string_view section, size_t element) { return fmt::format("{}[{}]", section, element); }

void throw_at_place(ErrorCode code, const KeyPlace& place, const std::string& message, const std::string& hint) {
  std::string text = place.line > 0 ? fmt::format("{}:{}:{}: {}", place.file, place.line, place.column, message)
                                    : fmt::format("{}: {}", place.file, message);
  const std::string number = place.line > 0 ? fmt::format("{}", place.line) : "";
  const size_t column = static_cast<size_t>(std::max(1, place.column));
  const std::string line = shown_line(place.text);
  const std::string margin(number.size(), ' ');
  if (!line.empty()) text += fmt::format("\n  {} | {}", number, line);
  // Behind the shown part of a very long line a caret would point at nothing.
  const bool caret = !line.empty() && column <= line.size() + 1;
  const size_t length = caret ? std::max<size_t>(1, std::min<size_t>(static_cast<size_t>(std::max(1, place.length)),
                                                                     line.size() - std::min(line.size(), column - 1)))
                              : 0;
  for (size_t begin = 0, row = 0; begin <= hint.size() && (row == 0 || begin < hint.size()); ++row) {
    const size_t end = std::min(hint.find('\n', begin), hint.size());
    const std::string part = hint.substr(begin, end - begin);
    if (row == 0 && caret)
      text += fmt::format("\n  {} | {}{}{}{}", margin, std::string(column - 1, ' '), std::string(length, '^'),
                          part.empty() ? "" : " ", part);
    else if (!part.empty())
      text += fmt::format("\n  {} | {}", margin, part);
    begin = end + 1;
  }
  throw Error(code, text);
}

void ConfigText::fail(const std::string& path, const std::string& message, const std::string& hint, ErrorCode code) const {
  const auto place = places_.find(path);
  if (place != places_.end()) throw_at_place(code, place->second, message, hint);
  throw Error(code, "{}: {}{}{}", file, message, hint.empty() ? "" : "; ", hint);
}

const KeyInfo* SchemaTable::find(std::string_view section, std::string_view name) const {
  for (const KeyInfo& key : keys_) {
    if (key.section == section && key.name == name) return &key;
  }
  return nullptr;
}

std::vector<std::string> SchemaTable::sections() const {
  std::vector<std::string> names;
  for (const KeyInfo& key : keys_) {
    if (std::find(names.begin(), names.end(), key.section) == names.end()) names.push_back(key.section);
  }
  return names;
}

const RepeatedSection* SchemaTable::find_repeated(std::string_view section) const {
  for (const RepeatedSection& repeated : repeated_) {
    if (repeated.name == section) return &repeated;
  }
  return nullptr;
}

void SchemaTable::read_into(void* config, std::string_view toml_text, const std::string& file,
                            std::span<const std::string> overrides, ConfigText& text) const {
  text.file = file;
  const Document document{toml_text, file};
  Reader(*this, config, document, text).read(parse_document(document));
  for (const std::string& argument : overrides) {
    const Document line{argument, "--set", /*is_override=*/true};
    Reader(*this, config, line, text).read(parse_override(argument));
  }
}

std::string SchemaTable::write_from(const void* config) const {
  std::string result;
  for (const std::string& section : sections()) {
    const RepeatedSection* repeated = find_repeated(section);
    const size_t count = repeated ? repeated->size(config) : 1;
    for (size_t element = 0; element < count; ++element) {
      std::string body;
      for (const KeyInfo& key : keys_) {
        if (key.section != section) continue;
        const std::string value = key_value_to_toml(key, key.get(config, element));
        if (!value.empty()) body += fmt::format("{} = {}\n", key.name, value);
      }
      if (!body.empty()) result += fmt::format("{}{}\n{}", result.empty() ? "" : "\n", count > 1 ? "[[" + section + "]]" : "[" + section + "]", body);
    }
  }
  return result;
}

}  // namespace orrery
