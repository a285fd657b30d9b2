// Filters, tests, methods and functions of templates.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <map>

#include "base/error.h"
#include "serve/chat/jinja_interpreter.h"

namespace orrery::jinja {

using Kind = Value::Kind;

namespace {

constexpr std::string_view kSpaces = " \t\n\r\f\v";

const Text& text_of(Interpreter& interpreter, const Value& value, std::string_view what) {
  if (!value.is(Kind::kString)) interpreter.fail(fmt::format("{} of {} {}, wanted a string", what, kind_name(value), value.name));
  interpreter.spend_bytes(value.text->size());
  return *value.text;
}

Text stripped(const Text& text, std::string_view characters, bool left, bool right) {
  const std::string& bytes = text.bytes();
  size_t begin = left ? bytes.find_first_not_of(characters) : 0;
  if (begin == std::string::npos) return {};
  const size_t last = right ? bytes.find_last_not_of(characters) : bytes.size() - 1;
  return last == std::string::npos ? Text() : text.slice(begin, last + 1);
}

// The same lengths, so what came from the request stays where it was. ASCII letters only.
template <typename Change>
Text mapped(const Text& text, Change&& change) {
  std::string bytes = text.bytes();
  bool start = true;
  for (char& c : bytes) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    c = change(c, start);
    start = !letter;
  }
  Text result;
  size_t at = 0;
  for (const auto& range : text.from_input()) {
    result.append(Text(bytes.substr(at, range.begin - at)));
    result.append(Text(bytes.substr(range.begin, range.end - range.begin), true));
    at = range.end;
  }
  result.append(Text(bytes.substr(at)));
  return result;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }
char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }

Text title(const Text& text) {
  return mapped(text, [](char c, bool start) { return start ? upper(c) : lower(c); });
}
Text capitalized(const Text& text) {
  bool first = true;
  return mapped(text, [&](char c, bool) {
    const bool is_first = std::exchange(first, false);
    return is_first ? upper(c) : lower(c);
  });
}

Text replaced(Interpreter& interpreter, const Text& text, const Text& from, const Text& to, int64_t count) {
  if (from.size() == 0) interpreter.fail("replace of an empty string");
  Text result;
  size_t at = 0;
  for (; count != 0; --count) {
    const size_t found = text.bytes().find(from.bytes(), at);
    if (found == std::string::npos) break;
    interpreter.spend();
    interpreter.spend_bytes(to.size());
    result.append(text.slice(at, found));
    result.append(to);
    if (result.size() > interpreter.limits().output_bytes_max) interpreter.fail("a string longer than the output may be");
    at = found + from.size();
  }
  result.append(text.slice(at, text.size()));
  return result;
}

List split(Interpreter& interpreter, const Text& text, const Value* separator, int64_t count, bool from_right) {
  List parts;
  const std::string& bytes = text.bytes();
  if (separator == nullptr || separator->is(Kind::kNone)) {
    size_t at = bytes.find_first_not_of(kSpaces);
    while (at != std::string::npos) {
      interpreter.spend();
      size_t end = bytes.find_first_of(kSpaces, at);
      if (count-- == 0) end = bytes.find_last_not_of(kSpaces) + 1;
      parts.push_back(Value::of(text.slice(at, std::min(end, bytes.size()))));
      at = end == std::string::npos ? end : bytes.find_first_not_of(kSpaces, end);
    }
    return parts;
  }
  const std::string& by = text_of(interpreter, *separator, "split").bytes();
  if (by.empty()) interpreter.fail("split at an empty string");
  if (from_right) {
    size_t end = bytes.size();
    while (count-- != 0) {
      const size_t found = end < by.size() ? std::string::npos : bytes.rfind(by, end - by.size());
      if (found == std::string::npos) break;
      interpreter.spend();
      parts.push_back(Value::of(text.slice(found + by.size(), end)));
      end = found;
    }
    parts.push_back(Value::of(text.slice(0, end)));
    std::reverse(parts.begin(), parts.end());
    return parts;
  }
  size_t at = 0;
  while (count-- != 0) {
    const size_t found = bytes.find(by, at);
    if (found == std::string::npos) break;
    interpreter.spend();
    parts.push_back(Value::of(text.slice(at, found)));
    at = found + by.size();
  }
  parts.push_back(Value::of(text.slice(at, bytes.size())));
  return parts;
}

// "a.b" of an item, as map(attribute=...) and its like read it.
Value path(Interpreter& interpreter, Value value, const std::string& name) {
  size_t at = 0;
  while (true) {
    const size_t dot = std::min(name.find('.', at), name.size());
    if (value.is(Kind::kUndefined)) return value;
    value = interpreter.attribute(value, name.substr(at, dot - at));
    if (dot == name.size()) return value;
    at = dot + 1;
  }
}

Text joined(Interpreter& interpreter, const List& list, const Text& separator, const Value* attribute) {
  Text result;
  bool first = true;
  for (const Value& item : list) {
    interpreter.spend();
    if (!first) result.append(separator);
    first = false;
    const Text text = to_text(attribute ? path(interpreter, item, to_text(*attribute).bytes()) : item);
    interpreter.spend_bytes(text.size());
    result.append(text);
    if (result.size() > interpreter.limits().output_bytes_max) interpreter.fail("a string longer than the output may be");
  }
  return result;
}

int64_t whole(Interpreter& interpreter, const Value* value, int64_t otherwise) {
  if (value == nullptr || value->is(Kind::kNone)) return otherwise;
  if (!value->is(Kind::kInt) && !value->is(Kind::kBool)) interpreter.fail(fmt::format("{} where an integer is wanted", kind_name(*value)));
  return value->is(Kind::kInt) ? value->integer : value->boolean;
}

List sorted(Interpreter& interpreter, List list, const Value* attribute, bool reverse) {
  interpreter.spend(static_cast<int64_t>(list.size()) * 16);
  const auto key = [&](const Value& value) {
    Value k = attribute ? path(interpreter, value, to_text(*attribute).bytes()) : value;
    return k.is(Kind::kString) ? Value::of(mapped(*k.text, [](char c, bool) { return lower(c); })) : k;
  };
  std::stable_sort(list.begin(), list.end(), [&](const Value& a, const Value& b) { return reverse ? compare(interpreter, key(b), key(a)) < 0 : compare(interpreter, key(a), key(b)) < 0; });
  return list;
}

List picked(Interpreter& interpreter, const Value& value, const Arguments& arguments, bool by_attribute, bool keep) {
  List kept;
  const size_t test_at = by_attribute ? 1 : 0;
  if (by_attribute && arguments.positional.empty()) interpreter.fail("selectattr without an attribute");
  Arguments rest;
  for (size_t i = test_at + 1; i < arguments.positional.size(); ++i) rest.positional.push_back(arguments.positional[i]);
  for (const Value& item : interpreter.items(value)) {
    interpreter.spend();
    const Value subject = by_attribute ? path(interpreter, item, to_text(arguments.positional[0]).bytes()) : item;
    const bool holds = arguments.positional.size() > test_at ? interpreter.test(to_text(arguments.positional[test_at]).bytes(), subject, rest) : subject.truth();
    if (holds == keep) kept.push_back(item);
  }
  return kept;
}

List pairs_of(Interpreter& interpreter, const Dict& dict) {
  List list;
  for (const auto& [key, value] : dict) {
    interpreter.spend();
    list.push_back(Value::of(List{Value::of(key), value}));
  }
  return list;
}

using Filter = Value (*)(Interpreter&, const Value&, const Arguments&);

const std::map<std::string, Filter, std::less<>>& filters() {
  static const std::map<std::string, Filter, std::less<>> table = {
      {"trim", [](Interpreter& in, const Value& v, const Arguments& a) { const Value* set = a.find(0, "chars"); const Text text = to_text(v); in.spend_bytes(text.size()); return Value::of(stripped(text, set ? to_text(*set).bytes() : std::string(kSpaces), true, true)); }},
      {"lower", [](Interpreter& in, const Value& v, const Arguments&) { const Text text = to_text(v); in.spend_bytes(text.size()); return Value::of(mapped(text, [](char c, bool) { return lower(c); })); }},
      {"upper", [](Interpreter& in, const Value& v, const Arguments&) { const Text text = to_text(v); in.spend_bytes(text.size()); return Value::of(mapped(text, [](char c, bool) { return upper(c); })); }},
      {"title", [](Interpreter& in, const Value& v, const Arguments&) { const Text text = to_text(v); in.spend_bytes(text.size()); return Value::of(title(text)); }},
      {"capitalize", [](Interpreter& in, const Value& v, const Arguments&) { const Text text = to_text(v); in.spend_bytes(text.size()); return Value::of(capitalized(text)); }},
      {"string", [](Interpreter&, const Value& v, const Arguments&) { return Value::of(to_text(v)); }},
      {"safe", [](Interpreter&, const Value& v, const Arguments&) { return v; }},
      {"list", [](Interpreter& in, const Value& v, const Arguments&) { return Value::of(in.items(v)); }},
      {"length", [](Interpreter& in, const Value& v, const Arguments&) {
         if (v.is(Kind::kString)) return Value::of(static_cast<int64_t>(character_offsets(text_of(in, v, "length").bytes()).size()) - 1);
         if (v.is(Kind::kDict)) return Value::of(static_cast<int64_t>(v.dict->size()));
         if (v.is(Kind::kUndefined)) return Value::of(int64_t{0});
         if (!v.is(Kind::kList)) in.fail(fmt::format("length of {}", kind_name(v)));
         return Value::of(static_cast<int64_t>(v.list->size()));
       }},
      {"default", [](Interpreter& in, const Value& v, const Arguments& a) {
         const Value* otherwise = a.find(0, "default_value");
         const Value* also_false = a.find(1, "boolean");
         (void)in;
         return v.is(Kind::kUndefined) || (also_false && also_false->truth() && !v.truth()) ? (otherwise ? *otherwise : Value::of(Text())) : v;
       }},
      {"join", [](Interpreter& in, const Value& v, const Arguments& a) { const Value* by = a.find(0, "d"); return Value::of(joined(in, in.items(v), by ? to_text(*by) : Text(), a.find(1, "attribute"))); }},
      {"replace", [](Interpreter& in, const Value& v, const Arguments& a) {
         if (a.positional.size() < 2) in.fail("replace wants two strings");
         return Value::of(replaced(in, to_text(v), to_text(a.positional[0]), to_text(a.positional[1]), whole(in, a.find(2, "count"), -1)));
       }},
      {"tojson", [](Interpreter& in, const Value& v, const Arguments& a) {
         if (a.find(99, "separators") || a.find(99, "sort_keys")) in.fail("tojson with separators or sort_keys is not supported");
         const Value* indent = a.find(0, "indent");
         for (const auto& [name, value] : a.named)
           if (name == "ensure_ascii" && value.truth()) in.fail("tojson with ensure_ascii is not supported");
         Text text = to_json(v, static_cast<int>(std::clamp<int64_t>(whole(in, indent, -1), -1, 16)));
         in.spend_bytes(text.size());
         return Value::of(std::move(text));
       }},
      {"first", [](Interpreter& in, const Value& v, const Arguments&) { const List list = in.items(v); return list.empty() ? Value() : list.front(); }},
      {"last", [](Interpreter& in, const Value& v, const Arguments&) { const List list = in.items(v); return list.empty() ? Value() : list.back(); }},
      {"reverse", [](Interpreter& in, const Value& v, const Arguments&) {
         List list = in.items(v);
         std::reverse(list.begin(), list.end());
         return v.is(Kind::kString) ? Value::of(joined(in, list, Text(), nullptr)) : Value::of(std::move(list));
       }},
      {"items", [](Interpreter& in, const Value& v, const Arguments&) {
         if (v.is(Kind::kUndefined)) return Value::of(List());
         if (!v.is(Kind::kDict)) in.fail(fmt::format("items of {}", kind_name(v)));
         return Value::of(pairs_of(in, *v.dict));
       }},
      {"dictsort", [](Interpreter& in, const Value& v, const Arguments&) {
         if (!v.is(Kind::kDict)) in.fail(fmt::format("dictsort of {}", kind_name(v)));
         List list = pairs_of(in, *v.dict);
         const Value first = Value::of(std::string("0"));
         std::stable_sort(list.begin(), list.end(), [](const Value& a, const Value& b) {
           const auto key = [](const Value& pair) { return mapped(*(*pair.list)[0].text, [](char c, bool) { return lower(c); }).bytes(); };
           return key(a) < key(b);
         });
         return Value::of(std::move(list));
       }},
      {"sort", [](Interpreter& in, const Value& v, const Arguments& a) { const Value* reverse = a.find(0, "reverse"); return Value::of(sorted(in, in.items(v), a.find(2, "attribute"), reverse && reverse->truth())); }},
      {"unique", [](Interpreter& in, const Value& v, const Arguments&) {
         List list;
         for (const Value& item : in.items(v)) {
           in.spend(static_cast<int64_t>(list.size()) + 1);
           if (!contains(Value::of(list), item)) list.push_back(item);
         }
         return Value::of(std::move(list));
       }},
      {"map", [](Interpreter& in, const Value& v, const Arguments& a) {
         List list;
         const Value* attribute = find(a.named, "attribute");
         const Value* otherwise = find(a.named, "default");
         if (!attribute && a.positional.empty()) in.fail("map wants a filter or attribute=");
         for (const Value& item : in.items(v)) {
           in.spend();
           if (attribute) {
             Value found = path(in, item, to_text(*attribute).bytes());
             list.push_back(found.is(Kind::kUndefined) && otherwise ? *otherwise : found);
           } else {
             Arguments rest;
             rest.positional.assign(a.positional.begin() + 1, a.positional.end());
             list.push_back(in.filter(to_text(a.positional[0]).bytes(), item, rest));
           }
         }
         return Value::of(std::move(list));
       }},
      {"select", [](Interpreter& in, const Value& v, const Arguments& a) { return Value::of(picked(in, v, a, false, true)); }},
      {"reject", [](Interpreter& in, const Value& v, const Arguments& a) { return Value::of(picked(in, v, a, false, false)); }},
      {"selectattr", [](Interpreter& in, const Value& v, const Arguments& a) { return Value::of(picked(in, v, a, true, true)); }},
      {"rejectattr", [](Interpreter& in, const Value& v, const Arguments& a) { return Value::of(picked(in, v, a, true, false)); }},
      {"int", [](Interpreter& in, const Value& v, const Arguments& a) {
         if (v.is_number()) return Value::of(static_cast<int64_t>(std::clamp(v.number(), -9e18, 9e18)));
         const std::string bytes = stripped(to_text(v), kSpaces, true, true).bytes();
         const bool digits = !bytes.empty() && bytes.size() < 19 && bytes.find_first_not_of("0123456789", bytes[0] == '-') == std::string::npos && bytes != "-";
         return Value::of(digits ? static_cast<int64_t>(std::stoll(bytes)) : whole(in, a.find(0, "default"), 0));
       }},
      {"float", [](Interpreter& in, const Value& v, const Arguments&) {
         if (v.is_number()) return Value::of(v.number());
         char* end = nullptr;
         const std::string bytes = to_text(v).bytes();
         (void)in;
         const double value = std::strtod(bytes.c_str(), &end);
         return Value::of(end == bytes.c_str() || *end != '\0' ? 0.0 : value);
       }},
      {"abs", [](Interpreter& in, const Value& v, const Arguments&) {
         if (!v.is_number()) in.fail(fmt::format("abs of {}", kind_name(v)));
         return v.is(Kind::kFloat) ? Value::of(std::abs(v.real)) : Value::of(static_cast<int64_t>(std::abs(v.number())));
       }},
      {"round", [](Interpreter& in, const Value& v, const Arguments& a) {
         if (!v.is_number()) in.fail(fmt::format("round of {}", kind_name(v)));
         const double scale = std::pow(10.0, static_cast<double>(std::clamp<int64_t>(whole(in, a.find(0, "precision"), 0), 0, 15)));
         return Value::of(std::nearbyint(v.number() * scale) / scale);
       }},
      {"sum", [](Interpreter& in, const Value& v, const Arguments&) {
         double total = 0;
         bool real = false;
         for (const Value& item : in.items(v)) total += item.number(), real = real || item.is(Kind::kFloat);
         return real ? Value::of(total) : Value::of(static_cast<int64_t>(total));
       }},
      {"indent", [](Interpreter& in, const Value& v, const Arguments& a) {
         const auto width = static_cast<size_t>(std::clamp<int64_t>(whole(in, a.find(0, "width"), 4), 0, 100));
         const Value* first = a.find(1, "first");
         const Text pad(std::string(width, ' ')), text = to_text(v);
         Text result;
         size_t at = 0;
         bool first_line = true;
         while (at <= text.size()) {
           in.spend();
           const size_t end = std::min(text.bytes().find('\n', at), text.size());
           if (first_line ? first && first->truth() : end > at) result.append(pad);
           first_line = false;
           result.append(text.slice(at, std::min(end + 1, text.size())));
           at = end + 1;
         }
         return Value::of(std::move(result));
       }},
  };
  return table;
}

}  // namespace

Value Interpreter::filter(const std::string& name, const Value& value, const Arguments& arguments) {
  static const std::map<std::string, std::string, std::less<>> kAliases = {{"count", "length"}, {"d", "default"}, {"strip", "trim"}};
  const auto alias = kAliases.find(name);
  const auto at = filters().find(alias == kAliases.end() ? name : alias->second);
  if (at == filters().end()) throw Error(ErrorCode::kUnsupported, "chat template: line {}: the filter '{}' is not supported", line_, name);
  return at->second(*this, value, arguments);
}

bool Interpreter::test(const std::string& name, const Value& v, const Arguments& arguments) {
  const auto argument = [&]() -> const Value& {
    if (arguments.positional.empty()) fail(fmt::format("the test '{}' wants an argument", name));
    return arguments.positional[0];
  };
  if (name == "defined") return !v.is(Kind::kUndefined);
  if (name == "undefined") return v.is(Kind::kUndefined);
  if (name == "none") return v.is(Kind::kNone);
  if (name == "string") return v.is(Kind::kString);
  if (name == "mapping") return v.is(Kind::kDict);
  if (name == "sequence" || name == "iterable") return v.is(Kind::kString) || v.is(Kind::kList) || v.is(Kind::kDict) || (v.is(Kind::kUndefined) && name == "iterable");
  if (name == "number") return v.is_number();
  if (name == "integer") return v.is(Kind::kInt);
  if (name == "float") return v.is(Kind::kFloat);
  if (name == "boolean") return v.is(Kind::kBool);
  if (name == "true") return v.is(Kind::kBool) && v.boolean;
  if (name == "false") return v.is(Kind::kBool) && !v.boolean;
  if (name == "callable") return v.is(Kind::kFunction);
  if (name == "odd" || name == "even") {
    if (!v.is(Kind::kInt)) fail(fmt::format("'{}' of {}", name, kind_name(v)));
    return (v.integer % 2 != 0) == (name == "odd");
  }
  if (name == "divisibleby") return v.is(Kind::kInt) && argument().is(Kind::kInt) && argument().integer != 0 && argument().integer != -1 && v.integer % argument().integer == 0;
  if (name == "equalto" || name == "eq" || name == "sameas") return equal(v, argument());
  if (name == "ne") return !equal(v, argument());
  if (name == "in") return contains(argument(), v);
  if (name == "lt" || name == "lessthan") return compare(*this, v, argument()) < 0;
  if (name == "gt" || name == "greaterthan") return compare(*this, v, argument()) > 0;
  if (name == "le") return compare(*this, v, argument()) <= 0;
  if (name == "ge") return compare(*this, v, argument()) >= 0;
  if (name == "lower" || name == "upper") return v.is(Kind::kString) && std::none_of(v.bytes().begin(), v.bytes().end(), [&](char c) { return name == "lower" ? c >= 'A' && c <= 'Z' : c >= 'a' && c <= 'z'; });
  throw Error(ErrorCode::kUnsupported, "chat template: line {}: the test '{}' is not supported", line_, name);
}

bool contains(const Value& container, const Value& item) {
  if (container.is(Kind::kString)) return item.is(Kind::kString) && container.bytes().find(item.bytes()) != std::string::npos;
  if (container.is(Kind::kDict)) return item.is(Kind::kString) && find(*container.dict, item.bytes()) != nullptr;
  if (container.is(Kind::kList)) return std::any_of(container.list->begin(), container.list->end(), [&](const Value& other) { return equal(other, item); });
  return false;
}

int compare(Interpreter& interpreter, const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return a.number() < b.number() ? -1 : a.number() > b.number();
  if (a.is(Kind::kString) && b.is(Kind::kString)) return a.bytes() < b.bytes() ? -1 : a.bytes() > b.bytes();
  if (a.is(Kind::kList) && b.is(Kind::kList)) {
    for (size_t i = 0; i < std::min(a.list->size(), b.list->size()); ++i)
      if (!equal((*a.list)[i], (*b.list)[i])) return compare(interpreter, (*a.list)[i], (*b.list)[i]);
    return a.list->size() < b.list->size() ? -1 : a.list->size() > b.list->size();
  }
  interpreter.fail(fmt::format("{} {} and {} {} have no order", kind_name(a), a.name, kind_name(b), b.name));
}

Value method(Interpreter& interpreter, const Value& self, const std::string& name) {
  (void)interpreter;
  const auto bound = [&](auto&& body) { return Value::of(Function([self, body](Interpreter& in, const Arguments& a) -> Value { return body(in, self, a); })); };
  if (self.is(Kind::kString)) {
    if (name == "strip" || name == "lstrip" || name == "rstrip") {
      const bool left = name != "rstrip", right = name != "lstrip";
      return bound([left, right](Interpreter& in, const Value& s, const Arguments& a) {
        const Value* set = a.find(0, "chars");
        return Value::of(stripped(text_of(in, s, "strip"), set && set->is(Kind::kString) ? set->bytes() : std::string(kSpaces), left, right));
      });
    }
    if (name == "split" || name == "rsplit") {
      const bool from_right = name == "rsplit";
      return bound([from_right](Interpreter& in, const Value& s, const Arguments& a) { return Value::of(split(in, text_of(in, s, "split"), a.find(0, "sep"), whole(in, a.find(1, "maxsplit"), -1), from_right)); });
    }
    if (name == "splitlines")
      return bound([](Interpreter& in, const Value& s, const Arguments&) {
        const Value newline = Value::of(std::string("\n"));
        List lines = split(in, text_of(in, s, "splitlines"), &newline, -1, false);
        if (lines.back().text->size() == 0) lines.pop_back();
        return Value::of(std::move(lines));
      });
    if (name == "startswith" || name == "endswith") {
      const bool start = name == "startswith";
      return bound([start](Interpreter& in, const Value& s, const Arguments& a) {
        if (a.positional.empty()) in.fail("startswith and endswith want a string");
        const List options = a.positional[0].is(Kind::kList) ? *a.positional[0].list : List{a.positional[0]};
        return Value::of(std::any_of(options.begin(), options.end(), [&](const Value& option) {
          const std::string& affix = text_of(in, option, "startswith").bytes();
          return start ? s.bytes().starts_with(affix) : s.bytes().ends_with(affix);
        }));
      });
    }
    if (name == "lower" || name == "upper" || name == "title" || name == "capitalize") return bound([name](Interpreter& in, const Value& s, const Arguments& a) { return in.filter(name, s, a); });
    if (name == "replace") return bound([](Interpreter& in, const Value& s, const Arguments& a) { return in.filter("replace", s, a); });
    if (name == "join") return bound([](Interpreter& in, const Value& s, const Arguments& a) {
      if (a.positional.empty()) in.fail("join wants a list");
      return Value::of(joined(in, in.items(a.positional[0]), *s.text, nullptr));
    });
    if (name == "find" || name == "count") {
      const bool counts = name == "count";
      return bound([counts](Interpreter& in, const Value& s, const Arguments& a) {
        if (a.positional.empty()) in.fail("find and count want a string");
        const std::string& what = text_of(in, a.positional[0], "find").bytes();
        size_t found = s.bytes().find(what);
        if (!counts) return Value::of(found == std::string::npos ? int64_t{-1} : static_cast<int64_t>(character_offsets(s.bytes().substr(0, found)).size()) - 1);
        int64_t count = 0;
        for (; !what.empty() && found != std::string::npos; found = s.bytes().find(what, found + what.size())) ++count;
        return Value::of(count);
      });
    }
    if (name == "removeprefix" || name == "removesuffix") {
      const bool prefix = name == "removeprefix";
      return bound([prefix](Interpreter& in, const Value& s, const Arguments& a) {
        if (a.positional.empty()) in.fail("removeprefix wants a string");
        const std::string& affix = text_of(in, a.positional[0], "removeprefix").bytes();
        if (prefix) return Value::of(s.bytes().starts_with(affix) ? s.text->slice(affix.size(), s.text->size()) : *s.text);
        return Value::of(s.bytes().ends_with(affix) ? s.text->slice(0, s.text->size() - affix.size()) : *s.text);
      });
    }
    if (name == "isdigit") return bound([](Interpreter&, const Value& s, const Arguments&) { return Value::of(!s.bytes().empty() && s.bytes().find_first_not_of("0123456789") == std::string::npos); });
  }
  if (self.is(Kind::kDict)) {
    if (name == "items") return bound([](Interpreter& in, const Value& s, const Arguments&) { return Value::of(pairs_of(in, *s.dict)); });
    if (name == "keys") return bound([](Interpreter& in, const Value& s, const Arguments&) { return Value::of(in.items(s)); });
    if (name == "values") return bound([](Interpreter& in, const Value& s, const Arguments&) {
      List list;
      in.spend(static_cast<int64_t>(s.dict->size()));
      for (const auto& [key, value] : *s.dict) list.push_back(value);
      return Value::of(std::move(list));
    });
    if (name == "get") return bound([](Interpreter& in, const Value& s, const Arguments& a) {
      if (a.positional.empty()) in.fail("get wants a key");
      const Value* found = a.positional[0].is(Kind::kString) ? find(*s.dict, a.positional[0].bytes()) : nullptr;
      const Value* otherwise = a.find(1, "default");
      return found ? *found : otherwise ? *otherwise : Value::none();
    });
  }
  if (self.is(Kind::kList) && name == "count") return bound([](Interpreter& in, const Value& s, const Arguments& a) {
    if (a.positional.empty()) in.fail("count wants a value");
    return Value::of(static_cast<int64_t>(std::count_if(s.list->begin(), s.list->end(), [&](const Value& item) { return equal(item, a.positional[0]); })));
  });
  return {};
}

const Function* builtin(const std::string& name) {
  static const std::map<std::string, Function, std::less<>> table = {
      {"namespace", [](Interpreter& in, const Arguments& a) {
         if (!a.positional.empty()) in.fail("namespace takes name=value arguments");
         Value value = Value::of(Dict(a.named));
         value.is_namespace = true;
         return value;
       }},
      {"dict", [](Interpreter&, const Arguments& a) { return Value::of(Dict(a.named)); }},
      {"range", [](Interpreter& in, const Arguments& a) {
         if (a.positional.empty() || a.positional.size() > 3) in.fail("range wants one to three integers");
         const int64_t first = a.positional.size() > 1 ? whole(in, &a.positional[0], 0) : 0, end = whole(in, &a.positional[a.positional.size() > 1 ? 1 : 0], 0);
         const int64_t step = a.positional.size() > 2 ? whole(in, &a.positional[2], 1) : 1;
         if (step == 0) in.fail("range with step 0");
         List list;
         for (int64_t i = first; step > 0 ? i < end : i > end;) {
           in.spend();
           list.push_back(Value::of(i));
           if (__builtin_add_overflow(i, step, &i)) break;
         }
         return Value::of(std::move(list));
       }},
      {"raise_exception", [](Interpreter&, const Arguments& a) -> Value {
         throw Error(ErrorCode::kInvalidArgument, "the model's chat template refuses this conversation: {}", a.positional.empty() ? std::string() : to_text(a.positional[0]).bytes());
       }},
      {"strftime_now", [](Interpreter& in, const Arguments& a) {
         if (a.positional.empty()) in.fail("strftime_now wants a format");
         const std::string format = text_of(in, a.positional[0], "strftime_now").bytes();
         const auto now = static_cast<time_t>(in.limits().unix_time >= 0 ? in.limits().unix_time : std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count());
         tm parts{};
         gmtime_r(&now, &parts);
         char buffer[256];
         if (format.size() > 100) in.fail("a time format of more than 100 bytes");
         return Value::of(std::string(buffer, strftime(buffer, sizeof buffer, format.c_str(), &parts)));
       }},
  };
  const auto at = table.find(name);
  return at == table.end() ? nullptr : &at->second;
}

}  // namespace orrery::jinja
