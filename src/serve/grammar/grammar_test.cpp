// What a mask allows is what the grammar says: random walks through masks end in texts that std::regex, a JSON parser with a small schema
// validator, or a hand-written recogniser accepts; every mask equals the tokens that are accepted one by one; no walk ends in a state
// where nothing is allowed. What cannot be kept is refused, within bounds.
#include "serve/grammar/grammar.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <regex>

#include "base/error.h"
#include "base/fuzz_util.h"

namespace orrery {
namespace {

using Json = nlohmann::json;

constexpr int32_t kEnd = 256;

// Every byte, an end token, and pieces that cross every kind of boundary: JSON punctuation, digits, halves of UTF-8 characters.
std::shared_ptr<const GrammarVocabulary> vocabulary() {
  static const auto result = [] {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    tokens.push_back("<end>");
    for (const char* piece : {"{\"", "\":", "\": \"", "\", \"", "\"}", "\"},", "[]", "[[", "]]", "{}", "}}", "true", "fal", "se,", "null", "123", "12", "0.", "-1", "e+", "\\u00", "\\n",
                              "ab", "abc", "b\"", "name", "\"name\"", "\"name\": ", "  ", "\n  ", "\xC3", "\xC3\xA9", "\xA9x", "\xF0\x9F", "\x98\x80", "\xE4\xBD\xA0\xE5\xA5", "\xBD",
                              "aaaaaaaa", "aaaaaaaaaaaaaaaa", "2024-0", "-31", "ab" })
      tokens.emplace_back(piece);
    return std::make_shared<const GrammarVocabulary>(std::move(tokens), std::vector<int32_t>{kEnd});
  }();
  return result;
}

std::shared_ptr<const Grammar> compile(GrammarKind kind, std::string_view text, const GrammarLimits& limits = {}) { return Grammar::compile(kind, text, vocabulary(), limits); }

bool allows(const std::vector<uint64_t>& mask, int32_t id) { return mask[static_cast<size_t>(id) / 64] >> (id % 64) & 1; }

// A random answer; `lean` makes the end, once allowed, that likely. Every few steps the whole mask is compared with accept and rollback.
std::string walk(const std::shared_ptr<const Grammar>& grammar, std::mt19937_64& random, size_t bytes_max = 400, bool check = true) {
  GrammarMatcher matcher(grammar);
  const auto words = grammar->vocabulary();
  std::vector<uint64_t> mask(words.mask_words());
  std::string text;
  for (int step = 0;; ++step) {
    matcher.fill_mask(mask);
    EXPECT_EQ(allows(mask, kEnd), matcher.can_finish());
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < words.size(); ++id)
      if (allows(mask, id)) allowed.push_back(id);
    if (allowed.empty()) {
      ADD_FAILURE() << "dead end after " << text;
      return text;
    }
    if (check && step % 7 == 0) {
      for (int32_t id = 0; id < words.size(); ++id) {
        const bool accepted = matcher.accept(id);
        EXPECT_EQ(accepted, allows(mask, id)) << "token '" << words.token_bytes(id) << "' after '" << text << "'";
        if (accepted) matcher.rollback(1);
      }
    }
    if (matcher.can_finish() && (matcher.is_finished() || text.size() > bytes_max / 2 || random() % 8 == 0)) {
      EXPECT_TRUE(matcher.accept(kEnd));
      EXPECT_TRUE(matcher.is_finished());
      matcher.fill_mask(mask);
      return text;
    }
    int32_t id = allowed[random() % allowed.size()];
    // Near the length wanted, closing characters go first.
    if (text.size() > bytes_max / 4 && random() % 3 != 0)
      for (const char close : {']', '}', '"'})  // the last one that is allowed
        if (allows(mask, close)) id = close;
    EXPECT_TRUE(matcher.accept(id));
    text += words.token_bytes(id);
    if (text.size() > 20 * bytes_max) {
      ADD_FAILURE() << "no end in sight: " << text.substr(0, 200);
      return text;
    }
  }
}

bool accepts(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  GrammarMatcher matcher(grammar);
  for (const char c : text)
    if (!matcher.accept(static_cast<uint8_t>(c))) return false;
  return matcher.can_finish();
}

TEST(Grammar, RegexWalksMatch) {
  std::mt19937_64 random(1);
  for (const char* pattern : {"abc|abd?", "(a|b)*abb", "[a-z]{2,5}-[0-9]+", "(ab){3}c{0,2}", "a{0,40}b", "(a{0,3}b){2,4}", "x[^y\\d]?z", "(foo|ba[rz])+(!|\\?)?", "\\d{4}-\\d\\d", "[\\w.]+@[a-z]+\\.com", "-?(0|[1-9]\\d*)(\\.\\d+)?"}) {
    const auto grammar = compile(GrammarKind::kRegex, pattern);
    const std::regex reference(pattern, std::regex::ECMAScript);
    for (int i = 0; i < 40; ++i) {
      const std::string text = walk(grammar, random, 60, i < 3);
      const bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
      EXPECT_TRUE(!ascii || std::regex_match(text, reference)) << pattern << " gave " << text;  // std::regex knows bytes only
    }
  }
}

// The same answer as std::regex for every text of a, b and 1 up to 7 characters: nothing is missing either.
TEST(Grammar, RegexAcceptsExactlyItsLanguage) {
  for (const char* pattern : {"(a|b)*abb", "a{2,4}b?", "(ab|a)(bc|b)*1?", "[^a]+a", "(a*b*)*1", "(|a)b", "\\w\\d", "a{0,5}a{0,3}b"}) {
    const auto grammar = compile(GrammarKind::kRegex, pattern);
    const std::regex reference(pattern, std::regex::ECMAScript);
    std::vector<std::string> texts = {""};
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(accepts(grammar, texts[i]), std::regex_match(texts[i], reference)) << pattern << " on '" << texts[i] << "'";
      if (texts[i].size() < 6)
        for (const char c : {'a', 'b', '1'}) texts.push_back(texts[i] + c);
    }
  }
}

TEST(Grammar, Utf8IsWholeWhateverTheTokens) {
  const auto grammar = compile(GrammarKind::kRegex, "[\xC3\xA0-\xC3\xBF\xE4\xBD\xA0\xE5\xA5\xBD\xF0\x9F\x98\x80]{1,6}");
  std::mt19937_64 random(2);
  for (int i = 0; i < 50; ++i) {
    const std::string text = walk(grammar, random);
    EXPECT_NO_THROW(static_cast<void>(Json(text).dump())) << text;  // dump refuses what is not UTF-8
  }
  EXPECT_TRUE(accepts(grammar, "\xC3\xA9"));
  EXPECT_FALSE(accepts(grammar, "\xC3"));
  EXPECT_FALSE(accepts(grammar, "e"));
  const auto any = compile(GrammarKind::kRegex, "[^x]");
  EXPECT_TRUE(accepts(any, "\xF4\x8F\xBF\xBF"));
  EXPECT_FALSE(accepts(any, "\xF4\x90\x80\x80"));  // above U+10FFFF
  EXPECT_FALSE(accepts(any, "\xED\xA0\x80"));      // a surrogate
  EXPECT_FALSE(accepts(any, "\xC0\x80"));          // overlong
}

TEST(Grammar, GbnfRecursion) {
  const auto grammar = compile(GrammarKind::kGbnf, R"gbnf(
# arithmetic
root  ::= term ([-+] term)*
term  ::= factor ("*" factor)*
factor ::= [0-9]{1,3} | "(" root ")"  # nests
)gbnf");
  std::mt19937_64 random(3);
  for (int i = 0; i < 60; ++i) {
    const std::string text = walk(grammar, random, 80);
    int depth = 0;
    bool after_operand = false;
    for (const char c : text) {
      const bool operand = c >= '0' && c <= '9';
      if (c == '(') {
        EXPECT_FALSE(after_operand) << text;
        ++depth;
      } else if (c == ')') {
        EXPECT_TRUE(after_operand) << text;
        EXPECT_GE(--depth, 0);
      } else if (!operand) {
        EXPECT_TRUE(after_operand) << text;
      }
      after_operand = operand || c == ')';
    }
    EXPECT_EQ(depth, 0) << text;
    EXPECT_TRUE(after_operand) << text;
  }
  EXPECT_TRUE(accepts(grammar, "1+(2*(3-4))"));
  EXPECT_FALSE(accepts(grammar, "1+(2"));
  const auto balanced = compile(GrammarKind::kGbnf, "root ::= \"a\" root \"b\" | \"ab\"");
  EXPECT_TRUE(accepts(balanced, "aaabbb"));
  EXPECT_FALSE(accepts(balanced, "aaabb"));
}

TEST(Grammar, NestingHasALimitAndNoDeadEnd) {
  const auto grammar = compile(GrammarKind::kGbnf, "root ::= \"[\" root \"]\" | \"x\"", {.depth_max = 20});
  GrammarMatcher matcher(grammar);
  std::vector<uint64_t> mask(grammar->vocabulary().mask_words());
  int depth = 0;
  while (true) {
    matcher.fill_mask(mask);
    if (!allows(mask, '[')) break;
    ASSERT_TRUE(matcher.accept('['));
    ASSERT_LT(++depth, 30);
  }
  EXPECT_GE(depth, 19);
  EXPECT_TRUE(allows(mask, 'x'));
  ASSERT_TRUE(matcher.accept('x'));
  for (; depth > 0; --depth) ASSERT_TRUE(matcher.accept(']'));
  EXPECT_TRUE(matcher.is_finished());
}

TEST(Grammar, Choice) {
  const auto grammar = compile(GrammarKind::kChoice, R"(["yes", "no", "none"])");
  std::mt19937_64 random(4);
  std::set<std::string> seen;
  for (int i = 0; i < 50; ++i) seen.insert(walk(grammar, random));
  EXPECT_EQ(seen, (std::set<std::string>{"yes", "no", "none"}));
}

// A validator of its own, for what the schemas below use.
bool valid(const Json& value, const Json& schema, const Json& root) {
  if (schema.is_boolean()) return schema.get<bool>();
  if (schema.contains("$ref")) {
    const auto reference = schema["$ref"].get<std::string>();
    return valid(value, root.at(Json::json_pointer(reference.substr(1))), root);
  }
  if (schema.contains("const") && value != schema["const"]) return false;
  if (schema.contains("enum") && std::find(schema["enum"].begin(), schema["enum"].end(), value) == schema["enum"].end()) return false;
  for (const char* key : {"anyOf", "oneOf"}) {
    if (!schema.contains(key)) continue;
    const auto count = std::count_if(schema[key].begin(), schema[key].end(), [&](const Json& part) { return valid(value, part, root); });
    if (count == 0 || (key == std::string("oneOf") && count != 1)) return false;
  }
  if (schema.contains("allOf") && !std::all_of(schema["allOf"].begin(), schema["allOf"].end(), [&](const Json& part) { return valid(value, part, root); })) return false;
  if (schema.contains("type")) {
    const auto is = [&](const std::string& type) {
      return type == "object" ? value.is_object() : type == "array" ? value.is_array() : type == "string" ? value.is_string() : type == "boolean" ? value.is_boolean()
             : type == "null" ? value.is_null() : type == "integer" ? value.is_number_integer() : value.is_number();
    };
    const Json types = schema["type"].is_array() ? schema["type"] : Json::array({schema["type"]});
    if (std::none_of(types.begin(), types.end(), [&](const Json& type) { return is(type.get<std::string>()); })) return false;
  }
  const auto bound = [&](const char* key) { return schema.value(key, 0.0); };
  if (value.is_number()) {
    const auto number = value.get<double>();
    if (schema.contains("minimum") && number < bound("minimum")) return false;
    if (schema.contains("maximum") && number > bound("maximum")) return false;
    if (schema.contains("exclusiveMinimum") && number <= bound("exclusiveMinimum")) return false;
    if (schema.contains("exclusiveMaximum") && number >= bound("exclusiveMaximum")) return false;
  }
  if (value.is_string()) {
    const auto text = value.get<std::string>();
    const auto length = std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
    if (schema.contains("minLength") && static_cast<double>(length) < bound("minLength")) return false;
    if (schema.contains("maxLength") && static_cast<double>(length) > bound("maxLength")) return false;
    if (schema.contains("pattern") && !std::regex_search(text, std::regex(schema["pattern"].get<std::string>()))) return false;
  }
  if (value.is_array()) {
    if (schema.contains("minItems") && static_cast<double>(value.size()) < bound("minItems")) return false;
    if (schema.contains("maxItems") && static_cast<double>(value.size()) > bound("maxItems")) return false;
    size_t fixed = 0;
    if (schema.contains("prefixItems"))
      for (; fixed < schema["prefixItems"].size() && fixed < value.size(); ++fixed)
        if (!valid(value[fixed], schema["prefixItems"][fixed], root)) return false;
    if (schema.contains("items"))
      for (size_t i = fixed; i < value.size(); ++i)
        if (!valid(value[i], schema["items"], root)) return false;
  }
  if (value.is_object()) {
    if (schema.contains("required"))
      for (const Json& name : schema["required"])
        if (!value.contains(name.get<std::string>())) return false;
    if (schema.contains("minProperties") && static_cast<double>(value.size()) < bound("minProperties")) return false;
    if (schema.contains("maxProperties") && static_cast<double>(value.size()) > bound("maxProperties")) return false;
    for (const auto& [name, member] : value.items()) {
      if (schema.contains("properties") && schema["properties"].contains(name)) {
        if (!valid(member, schema["properties"][name], root)) return false;
      } else if (schema.contains("additionalProperties") && !valid(member, schema["additionalProperties"], root)) {
        return false;
      }
    }
  }
  return true;
}

TEST(Grammar, SchemaWalksAreValid) {
  const char* schemas[] = {
      R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,"maximum":150}},"required":["name","age"],"additionalProperties":false})",
      R"({"type":"object","properties":{"a":{"type":"boolean"},"b":{"type":"null"},"c":{"enum":["x",1,null,{"k":[1]}]}},"required":["b"]})",
      R"({"type":"object","properties":{"a":{"type":"integer"},"ab":{"const":"q\"r"}},"additionalProperties":{"type":"boolean"}})",
      R"({"type":"array","items":{"type":"number","exclusiveMinimum":-2.5,"maximum":13.75},"minItems":1,"maxItems":4})",
      R"({"type":"array","prefixItems":[{"type":"string","maxLength":5},{"type":"integer"}],"items":{"type":"boolean"},"maxItems":4})",
      R"({"type":"string","pattern":"^[a-c]{2,4}(\\d+|\"\\\\)$"})",
      R"({"type":"string","pattern":"[b-p].[^a-f]"})",
      R"({"type":"string","minLength":3,"maxLength":40})",
      R"({"anyOf":[{"type":"string","maxLength":3},{"type":"integer","minimum":-1000,"exclusiveMaximum":-7},{"type":"object","properties":{"z":{"type":"number"}},"required":["z"]}]})",
      R"({"oneOf":[{"type":"object","properties":{"kind":{"const":"a"},"v":{"type":"integer"}},"required":["kind"]},{"type":"object","properties":{"kind":{"const":"b"}},"required":["kind"]}]})",
      R"({"$defs":{"node":{"type":"object","properties":{"value":{"type":"integer"},"children":{"type":"array","items":{"$ref":"#/$defs/node"},"maxItems":2}},"required":["value","children"]}},"$ref":"#/$defs/node"})",
      R"({"allOf":[{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"b":{"type":"string"}},"required":["b"]}]})",
      R"({"type":["integer","null"]})",
      R"({"type":"number","minimum":0.25,"maximum":0.3})",
      R"({"type":"integer","minimum":98,"maximum":1203})",
      R"({"type":"object","additionalProperties":{"type":"array","items":{"type":"integer"}},"minProperties":1,"maxProperties":3})",
      R"({})",
  };
  std::mt19937_64 random(5);
  for (const char* text : schemas) {
    const auto grammar = compile(GrammarKind::kJsonSchema, text);
    const Json schema = Json::parse(text);
    for (int i = 0; i < 40; ++i) {
      const std::string answer = walk(grammar, random, 200, i < 3);
      const Json value = Json::parse(answer, nullptr, false);
      EXPECT_FALSE(value.is_discarded()) << text << " gave " << answer;
      EXPECT_TRUE(value.is_discarded() || valid(value, schema, schema)) << text << " gave " << answer;
    }
  }
  const auto object = compile(GrammarKind::kJsonObject, "");
  for (int i = 0; i < 40; ++i) EXPECT_TRUE(Json::parse(walk(object, random), nullptr, false).is_object());
}

TEST(Grammar, NumbersBetweenBoundsAreExact) {
  const auto grammar = compile(GrammarKind::kJsonSchema, R"({"type":"integer","minimum":-13,"maximum":212})");
  for (int i = -1200; i <= 1200; ++i) EXPECT_EQ(accepts(grammar, std::to_string(i)), i >= -13 && i <= 212) << i;
  const auto decimals = compile(GrammarKind::kJsonSchema, R"({"type":"number","minimum":-1.25,"exclusiveMaximum":2.5})");
  for (int i = -4000; i <= 4000; ++i) {
    const double value = i / 1000.0;
    EXPECT_EQ(accepts(decimals, fmt::format("{}", value)), value >= -1.25 && value < 2.5) << value;
  }
}

TEST(Grammar, RefusesWhatItCannotKeep) {
  struct Case {
    GrammarKind kind;
    const char* text;
    const char* message;
  };
  const Case cases[] = {
      {GrammarKind::kJsonSchema, R"({"type":"object","properties":{"a":{"not":{"type":"string"}}}})", "/properties/a/not"},
      {GrammarKind::kJsonSchema, R"({"type":"array","uniqueItems":true})", "/uniqueItems"},
      {GrammarKind::kJsonSchema, R"({"type":"integer","multipleOf":3})", "/multipleOf"},
      {GrammarKind::kJsonSchema, R"({"if":{},"then":{}})", "'if'"},
      {GrammarKind::kJsonSchema, R"({"$ref":"http://example.com/x"})", "/$ref"},
      {GrammarKind::kJsonSchema, R"({"$ref":"#/$defs/x"})", "leads nowhere"},
      {GrammarKind::kJsonSchema, R"({"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"})", ""},
      {GrammarKind::kJsonSchema, R"({"type":"string","pattern":"(?=a)b"})", "/pattern"},
      {GrammarKind::kJsonSchema, R"({"oneOf":[{"type":"string"},{"type":"string","maxLength":3}]})", "/oneOf/1"},
      {GrammarKind::kJsonSchema, R"({"type":"integer","minimum":3,"maximum":2})", "no integer"},
      {GrammarKind::kJsonSchema, R"({"type":"strin"})", "/type"},
      {GrammarKind::kJsonSchema, "{", "not JSON"},
      {GrammarKind::kRegex, "(a", "without its )"},
      {GrammarKind::kRegex, "(a)\\1", "\\1"},
      {GrammarKind::kRegex, "a{3,1}", "m > n"},
      {GrammarKind::kRegex, "[^\\x00-\\u{10}", ""},
      {GrammarKind::kGbnf, "root ::= root \"a\" | \"b\"", "left recursion"},
      {GrammarKind::kGbnf, "root ::= x", "'x'"},
      {GrammarKind::kGbnf, "root ::= \"a\" root", "matches no text"},
      {GrammarKind::kGbnf, "a ::= \"b\"", "root"},
      {GrammarKind::kChoice, "[]", "non-empty"},
  };
  for (const Case& test : cases) {
    try {
      compile(test.kind, test.text);
      ADD_FAILURE() << "took " << test.text;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(test.message), std::string::npos) << test.text << ": " << error.what();
    }
  }
}

// Each is refused or taken within the limits' time; 5 s is far above the second they mean, for a busy or instrumented machine.
TEST(Grammar, BombsAreBounded) {
  std::string deep_schema, many_refs = R"({"$defs":{)";
  for (int i = 0; i < 10000; ++i) deep_schema += R"({"items":)";
  for (int i = 0; i < 2000; ++i) many_refs += fmt::format(R"("d{}":{{"anyOf":[{{"$ref":"#/$defs/d{}"}},{{"type":"array","items":{{"$ref":"#/$defs/d{}"}}}}]}},)", i, i + 1, i + 1);
  many_refs += R"("d2000":{"type":"null"}},"$ref":"#/$defs/d0"})";
  std::string nested_repeat = "a";
  for (int i = 0; i < 8; ++i) nested_repeat = "(" + nested_repeat + "){0,1000}";
  const std::pair<GrammarKind, std::string> bombs[] = {
      {GrammarKind::kRegex, "(a{0,1000}){0,1000}"},
      {GrammarKind::kRegex, nested_repeat},
      {GrammarKind::kRegex, "a{0,1000000000}"},
      {GrammarKind::kRegex, "(a|b)*a(a|b){20}"},
      {GrammarKind::kRegex, "((a*)*)*b"},
      {GrammarKind::kRegex, "(.*a){40}"},
      {GrammarKind::kRegex, std::string(100000, '(')},
      {GrammarKind::kJsonSchema, deep_schema},
      {GrammarKind::kJsonSchema, many_refs},
      {GrammarKind::kJsonSchema, R"({"type":"string","maxLength":100000})"},
      {GrammarKind::kJsonSchema, R"({"type":"array","minItems":90000,"items":{"type":"array","maxItems":90000}})"},
      {GrammarKind::kGbnf, "root ::= (root2? root2? root2?){0,3000} \"x\"\nroot2 ::= (\"a\"?){0,3000}"},
  };
  // By counts, not by a clock: what compiles has no more states than allowed, and what needs more is refused whatever the machine.
  for (const GrammarLimits& limits : {GrammarLimits{}, GrammarLimits{.states_max = 20'000, .work_max = 200'000}}) {
    int refused = 0;
    for (const auto& [kind, text] : bombs) try {
        const auto grammar = compile(kind, text, limits);
        EXPECT_LE(grammar->num_states(), limits.states_max) << text.substr(0, 80);
        GrammarMatcher matcher(grammar);
        std::vector<uint64_t> mask(grammar->vocabulary().mask_words());
        matcher.fill_mask(mask);
      } catch (const Error& error) {
        EXPECT_NE(error.code(), ErrorCode::kIo);
        ++refused;
      }
    EXPECT_GE(refused, 4);
  }
}

TEST(Grammar, RollbackAndEnd) {
  const auto grammar = compile(GrammarKind::kRegex, "(ab)+");
  GrammarMatcher matcher(grammar);
  ASSERT_TRUE(matcher.accept('a'));
  ASSERT_TRUE(matcher.accept('b'));
  EXPECT_TRUE(matcher.can_finish());
  EXPECT_FALSE(matcher.is_finished());
  ASSERT_TRUE(matcher.accept(kEnd));
  EXPECT_FALSE(matcher.accept('a'));
  EXPECT_FALSE(matcher.accept(-1));
  EXPECT_FALSE(matcher.accept(100000));
  matcher.rollback(2);
  EXPECT_FALSE(matcher.can_finish());
  EXPECT_FALSE(matcher.accept('a'));
  ASSERT_TRUE(matcher.accept_bytes("bab"));
  EXPECT_TRUE(matcher.can_finish());
  // Far more tokens than are remembered for rollback.
  for (int i = 0; i < 2000; ++i) ASSERT_TRUE(matcher.accept_bytes("ab"));
  matcher.rollback(200);
  EXPECT_TRUE(matcher.can_finish());
}

TEST(Grammar, ToolCalls) {
  const Grammar::Tool tools[] = {{"get_weather", R"({"type":"object","properties":{"city":{"type":"string"}},"required":["city"]})"}, {"stop", ""}};
  const auto grammar = Grammar::compile_tool_calls(tools, {.begin = "<tool_call>\n", .end = "\n</tool_call>", .separator = "\n", .parallel = true}, vocabulary());
  EXPECT_TRUE(accepts(grammar, "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>"));
  EXPECT_TRUE(accepts(grammar, "<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"stop\", \"arguments\": {\"x\": [1]}}\n</tool_call>"));
  EXPECT_FALSE(accepts(grammar, "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>"));
}

TEST(Grammar, FuzzedTextsNeverFailOpen) {
  const std::vector<std::string> seeds = {R"({"type":"object","properties":{"a":{"type":"integer","minimum":1.5,"maximum":1e5},"b":{"$ref":"#"}},"required":["a"]})",
                                          R"({"anyOf":[{"type":"string","pattern":"^a[^b]{1,3}$"},{"enum":[1,"x"]}]})", "(a|b[c-e]{2,3})*\\d\\u0041", "root ::= \"a\" (b | [^c-d])*\nb ::= \"x\"{2}"};
  run_mutations(
      [](const uint8_t* data, size_t size) {
        const std::string text(reinterpret_cast<const char*>(data), size);
        for (const GrammarKind kind : {GrammarKind::kJsonSchema, GrammarKind::kRegex, GrammarKind::kGbnf, GrammarKind::kChoice}) {
          try {
            const auto grammar = compile(kind, text, {.states_max = 20000, .work_max = 200000});
            GrammarMatcher matcher(grammar);
            std::vector<uint64_t> mask(grammar->vocabulary().mask_words());
            matcher.fill_mask(mask);
            EXPECT_TRUE(std::any_of(mask.begin(), mask.end(), [](uint64_t word) { return word != 0; }));
          } catch (const Error&) {
          }
        }
      },
      seeds, 400, 11);
}

}  // namespace
}  // namespace orrery
