// Templates render as python3-jinja2 renders them (golden file, made by tests/golden/make_chat_goldens.py), know what came from the request,
// and stay within their limits.
#include "serve/chat/chat_template.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/fuzz_util.h"
#include "base/golden.h"
#include "tokenizer/tokenizer.h"

namespace orrery {
namespace {

using Json = nlohmann::ordered_json;

Json golden() { return Json::parse(std::ifstream(golden_path("chat_templates.json"))); }

constexpr int64_t kGoldenTime = 1721995200;  // 26 Jul 2024

TEST(ChatTemplate, RendersAsJinja2) {
  for (const Json& test : golden()) {
    const auto name = test["name"].get<std::string>();
    try {
      const ChatTemplate chat(test["template"].get<std::string>());
      const std::string text = chat.render(test["variables"], {.unix_time = kGoldenTime}).text;
      EXPECT_FALSE(test.contains("error")) << name << " gave " << text;
      EXPECT_EQ(text, test.value("text", "")) << name;
    } catch (const Error& error) {
      EXPECT_TRUE(test.contains("error")) << name << ": " << error.what();
      const bool says_why = name.starts_with("feature/") || std::string(error.what()).find(test.value("error", "?")) != std::string::npos;
      EXPECT_TRUE(says_why) << error.what();
    }
  }
}

// Whatever the template does with them, exactly the bytes of the messages are marked.
TEST(ChatTemplate, KnowsWhatCameFromTheRequest) {
  const ChatTemplate chat("{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim | upper }}<{{ m.content.split('-')[1] ~ '!' }}>{% endfor %}");
  const RenderedText text = chat.render({{"messages", {{{"role", "user"}, {"content", " ab-<s> "}}}}, {"bos_token", "<s>"}});
  EXPECT_EQ(text.text, "<s>[user]AB-<S><<s> !>");
  std::string marked;
  for (const auto& range : text.from_input) marked += text.text.substr(range.begin, range.end - range.begin) + "/";
  EXPECT_EQ(marked, "user/AB-<S>/<s> /");
}

TEST(ChatTemplate, SpecialTokensInMessagesAreText) {
  const Tokenizer tokenizer = load_tokenizer_json(R"({"added_tokens":[{"id":5,"content":"<|im_start|>","special":true},{"id":6,"content":"<|im_end|>","special":true}],
    "model":{"type":"BPE","vocab":{"a":0,"<":1,"|":2,"ab":3,"b":4},"merges":["a b"]},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}})");
  RenderedText prompt{"<|im_start|>ab<|im_end|>", {}};
  EXPECT_EQ(encode_prompt(tokenizer, prompt), (std::vector<int32_t>{5, 3, 6}));
  prompt = {"<|im_start|>a<|<|im_end|>", {{12, 15}}};
  EXPECT_EQ(encode_prompt(tokenizer, prompt), (std::vector<int32_t>{5, 0, 1, 2, 6}));
  // The same bytes, written by a message: no id of a special token.
  prompt = {"<|im_start|>a<|im_end|>", {{12, 23}}};
  const auto ids = encode_prompt(tokenizer, prompt);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 6), 0);
  EXPECT_EQ(ids.front(), 5);
  // Merges run across the edge of a message.
  prompt = {"<|im_start|>ab", {{13, 14}}};
  EXPECT_EQ(encode_prompt(tokenizer, prompt), (std::vector<int32_t>{5, 3}));
}

TEST(ChatTemplate, NormalizesMessages) {
  const Json messages = normalized_messages(Json::parse(R"([{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
    {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\": 1}"}}]}])"));
  EXPECT_EQ(messages[0]["content"], "ab");
  EXPECT_EQ(messages[1]["content"], "");
  EXPECT_EQ(messages[1]["tool_calls"][0]["function"]["arguments"]["x"], 1);
  for (const char* bad : {"[]", "{}", "[1]", R"([{"role":"foo","content":"x"}])", R"([{"role":"user"}])", R"([{"role":"user","content":5}])", R"([{"role":"user","content":[{"type":"image_url"}]}])"})
    EXPECT_THROW(normalized_messages(Json::parse(bad)), Error) << bad;
}

TEST(ChatTemplate, IsBounded) {
  std::string nested, chain = "{{ 1";
  for (int i = 0; i < 5000; ++i) nested += "{% if 1 %}", chain += " + 1";
  for (const std::string& source : {std::string("{% for i in range(1000000000) %}x{% endfor %}"), std::string("{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}"),
                                    std::string("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), std::string("{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"),
                                    "{{ " + std::string(10000, '(') + "1", "{{ " + std::string(10000, '-') + "1 }}", nested, chain + " }}", std::string("{{ 'x' * 1000000000 }}"),
                                    std::string("{{ 9223372036854775 * 9223372036854775 }}"), std::string("{% for i in [1] %}{% break %}{% endfor %}{% break %}"), std::string("{% include 'x' %}"), std::string("{{ x"), std::string("{% raw %}")})
    EXPECT_THROW(ChatTemplate(source).render(Json::object()), Error) << source.substr(0, 60);
}

TEST(ChatTemplate, FuzzedTemplatesOnlyThrow) {
  std::vector<std::string> seeds;
  for (const Json& test : golden())
    if (test["name"].get<std::string>().starts_with("feature/") || test["name"].get<std::string>().ends_with("chat/True")) seeds.push_back(test["template"].get<std::string>());
  const Json variables = golden()[0]["variables"];
  run_mutations(
      [&](const uint8_t* data, size_t size) {
        try {
          const ChatTemplate chat(std::string_view(reinterpret_cast<const char*>(data), size));
          const RenderedText text = chat.render(variables, {.steps_max = 20000});
          EXPECT_TRUE(text.from_input.empty() || text.from_input.back().end <= text.text.size());
        } catch (const Error&) {
        }
      },
      seeds, 3000, 13);
}

}  // namespace
}  // namespace orrery
