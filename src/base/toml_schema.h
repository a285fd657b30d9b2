// A typed value bound to a TOML file by one table: each key is declared once, with its member, unit, default, allowed values
// and help, and reading, overriding, writing back, documentation and the JSON Schema all follow from that. Not here: which keys
// exist (train/run_config.h), and rules between keys, which the owner of the table checks with ConfigText::fail.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"

namespace orrery {

/// An entry of a list that may carry a share: "a/*.txt" or {path = "a/*.txt", weight = 2.0}.
struct WeightedPath {
  std::string path;
  double weight = 1.0;
  bool operator==(const WeightedPath&) const = default;
};

/// "80%" of what there is, or bytes.
struct ByteBudget {
  double fraction = 0;  // used when bytes is 0
  int64_t bytes = 0;
  bool is_default = false;  // nobody gave it
  bool operator==(const ByteBudget& other) const { return fraction == other.fraction && bytes == other.bytes; }
};

enum class KeyKind { kBool, kInteger, kNumber, kString, kChoice, kStringList, kPathList, kByteBudget };

/// What a key holds, between the file and the member. monostate: not given (an optional member), or the key's `auto_word`.
using KeyValue = std::variant<std::monostate, bool, int64_t, double, std::string, std::vector<std::string>,
                              std::vector<WeightedPath>, ByteBudget>;

/// How a written number reads: kDuration takes "30m" for seconds.
enum class KeyUnit { kPlain, kCount, kBytes, kSeconds };

/// What the declaration of a key says besides its name and member.
struct KeyOptions {
  std::string_view help;             // one sentence without the full stop
  std::string_view unit = {};        // "tokens", "steps", ... for people
  KeyUnit number = KeyUnit::kPlain;  // kPlain integers still take 4k and 4Ki
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  std::string_view auto_word = {};                 // an optional member's absent value, e.g. "auto"; written back as that word
  std::string_view default_text = {};              // for an optional member: what happens when it is not given
  std::vector<std::string_view> also_called = {};  // other tools' names, for "did you mean"
  std::string_view requires_feature = {};          // not empty: only the default is accepted, kUnsupported names this feature
};

struct KeyInfo {
  std::string section, name;
  KeyKind kind{};
  KeyOptions options;
  std::vector<std::string_view> choices;
  std::string default_toml;  // as it would be written; empty: no default
  // `element` of a section that may be repeated; others have one, element 0.
  std::function<void(void* config, size_t element, KeyValue value)> set;
  std::function<KeyValue(const void* config, size_t element)> get;

  std::string path() const { return section + "." + name; }
  /// "integer, default 8", "one of bf16, f32; default bf16".
  std::string type_text() const;
};

/// Where a value of the configuration was written, for messages about it.
struct KeyPlace {
  std::string file;
  int line = 0;  // 0: an override on the command line, `text` is the argument
  int column = 1;
  int length = 1;
  std::string text;  // the source line
};

/// "run.toml:14:1: message", the line, and a caret line with `hint`. Errors: always throws, with `code`.
[[noreturn]] void throw_at_place(ErrorCode code, const KeyPlace& place, const std::string& message,
                                 const std::string& hint = {});

/// "devices[1]": how ConfigText calls an element of a section that may be repeated. Its keys are "devices[1].kind".
std::string element_path(std::string_view section, size_t element);

/// What was read: which sections and keys were given and where.
class ConfigText {
 public:
  bool given(const std::string& path) const { return places_.contains(path); }
  /// Throws at the key's place, or without a place when it was not written.
  [[noreturn]] void fail(const std::string& path, const std::string& message, const std::string& hint = {},
                         ErrorCode code = ErrorCode::kInvalidConfig) const;
  void add(const std::string& path, KeyPlace place) { places_[path] = std::move(place); }
  std::string file;

 private:
  std::map<std::string, KeyPlace> places_;
};

/// A section that may be written once, [name], or several times, [[name]]: a list in the order of the file.
struct RepeatedSection {
  std::string name;
  std::function<void(void* config, size_t count)> resize;  // to as many elements, each with its defaults
  std::function<size_t(const void* config)> size;
};

/// The table without the type; TomlSchema<Config> is what owners use.
class SchemaTable {
 public:
  std::span<const KeyInfo> keys() const { return keys_; }
  const KeyInfo* find(std::string_view section, std::string_view name) const;
  std::vector<std::string> sections() const;  // in declared order
  const RepeatedSection* find_repeated(std::string_view section) const;  // nullptr: written once

  /// "## [train]" and a table per section.
  std::string markdown() const;
  /// JSON Schema (draft 2020-12) for editors that check TOML.
  std::string json_schema(std::string_view title) const;

 protected:
  void read_into(void* config, std::string_view toml_text, const std::string& file, std::span<const std::string> overrides,
                 ConfigText& text) const;
  std::string write_from(const void* config) const;

  std::vector<KeyInfo> keys_;
  std::vector<RepeatedSection> repeated_;
};

namespace detail {

template <typename T>
struct unwrap_optional {
  using type = T;
  static constexpr bool value = false;
};
template <typename T>
struct unwrap_optional<std::optional<T>> {
  using type = T;
  static constexpr bool value = true;
};

template <typename T>
KeyKind kind_of() {
  if constexpr (std::is_same_v<T, bool>)
    return KeyKind::kBool;
  else if constexpr (std::is_enum_v<T>)
    return KeyKind::kChoice;
  else if constexpr (std::is_same_v<T, int64_t>)
    return KeyKind::kInteger;
  else if constexpr (std::is_same_v<T, double>)
    return KeyKind::kNumber;
  else if constexpr (std::is_same_v<T, std::string>)
    return KeyKind::kString;
  else if constexpr (std::is_same_v<T, std::vector<std::string>>)
    return KeyKind::kStringList;
  else if constexpr (std::is_same_v<T, std::vector<WeightedPath>>)
    return KeyKind::kPathList;
  else {
    static_assert(std::is_same_v<T, ByteBudget>);
    return KeyKind::kByteBudget;
  }
}

}  // namespace detail

/// The table of a two-level value: Config has one member per section (a list of them for a section that may be repeated), a section one
/// member per key. An enum member needs `std::span<const std::string_view> config_names(E)` beside its type: the names in the order of the
/// enumerators, from 0.
template <typename Config>
class TomlSchema : public SchemaTable {
 public:
  template <typename Section>
  using SectionOf = std::function<Section&(Config& config, size_t element)>;

  template <typename Section>
  class SectionBuilder {
   public:
    SectionBuilder(TomlSchema& schema, std::string name, Section defaults, SectionOf<Section> section)
        : schema_(schema), name_(std::move(name)), defaults_(std::move(defaults)), section_(std::move(section)) {}

    template <typename T>
    SectionBuilder& key(std::string name, T Section::*member, KeyOptions options) {
      schema_.add(name_, std::move(name), defaults_, section_, member, std::move(options));
      return *this;
    }

   private:
    TomlSchema& schema_;
    std::string name_;
    Section defaults_;
    SectionOf<Section> section_;
  };

  template <typename Section>
  SectionBuilder<Section> section(std::string name, Section Config::*member) {
    return {*this, std::move(name), Config{}.*member, [member](Config& config, size_t) -> Section& { return config.*member; }};
  }

  template <typename Section>
  SectionBuilder<Section> repeated_section(std::string name, std::vector<Section> Config::*member) {
    repeated_.push_back({name, [member](void* config, size_t count) { (static_cast<Config*>(config)->*member).resize(count); },
                         [member](const void* config) { return (static_cast<const Config*>(config)->*member).size(); }});
    return {*this, std::move(name), Section{}, [member](Config& config, size_t element) -> Section& { return (config.*member).at(element); }};
  }

  /// `overrides` are "section.key=value". Errors: kInvalidConfig with place, nearest name and allowed values; kUnsupported for
  /// a value that needs a feature which is not there. Keys that are not given keep the value they have in `config`.
  ConfigText read(Config& config, std::string_view toml_text, const std::string& file,
                  std::span<const std::string> overrides = {}) const {
    ConfigText text;
    read_into(&config, toml_text, file, overrides, text);
    return text;
  }

  /// TOML that reads back to an equal value.
  std::string write(const Config& config) const { return write_from(&config); }

 private:
  template <typename Section, typename T>
  void add(const std::string& section, std::string name, const Section& defaults, const SectionOf<Section>& section_of,
           T Section::*member, KeyOptions options) {
    using Plain = typename detail::unwrap_optional<T>::type;
    KeyInfo key;
    key.section = section;
    key.name = std::move(name);
    key.kind = detail::kind_of<Plain>();
    key.options = std::move(options);
    if constexpr (std::is_enum_v<Plain>) {
      const auto names = config_names(Plain{});
      key.choices.assign(names.begin(), names.end());
    }
    key.set = [section_of, member](void* config, size_t element, KeyValue value) {
      T& target = section_of(*static_cast<Config*>(config), element).*member;
      if (std::holds_alternative<std::monostate>(value)) {
        target = T{};
      } else if constexpr (std::is_enum_v<Plain>) {
        target = static_cast<Plain>(std::get<int64_t>(value));  // the index of the choice
      } else {
        target = std::get<Plain>(std::move(value));
      }
    };
    const auto value_of = [](const T& source) -> KeyValue {
      if constexpr (detail::unwrap_optional<T>::value) {
        if (!source) return std::monostate{};
        if constexpr (std::is_enum_v<Plain>)
          return static_cast<int64_t>(*source);
        else
          return *source;
      } else if constexpr (std::is_enum_v<Plain>) {
        return static_cast<int64_t>(source);
      } else {
        return source;
      }
    };
    key.get = [section_of, member, value_of](const void* config, size_t element) {
      // Read only, though the accessor is the one that `set` writes through.
      return value_of(section_of(*const_cast<Config*>(static_cast<const Config*>(config)), element).*member);
    };
    key.default_toml = value_to_toml(key, value_of(defaults.*member));
    keys_.push_back(std::move(key));
  }

  static std::string value_to_toml(const KeyInfo& key, const KeyValue& value);
};

/// The value as TOML writes it: quoted, bracketed; empty when there is none.
std::string key_value_to_toml(const KeyInfo& key, const KeyValue& value);

template <typename Config>
std::string TomlSchema<Config>::value_to_toml(const KeyInfo& key, const KeyValue& value) {
  return key_value_to_toml(key, value);
}

}  // namespace orrery
