// Calls come out of an answer in whatever pieces it arrives, and what is no call stays content to the byte.
#include "serve/chat/tool_calls.h"

#include <gtest/gtest.h>

#include <random>

namespace orrery {
namespace {

struct Parsed {
  std::string content;
  std::vector<std::pair<std::string, std::string>> calls;
  bool operator==(const Parsed&) const = default;
};

void add(const ToolCallDelta& delta, Parsed* parsed) {
  parsed->content += delta.content;
  for (const auto& piece : delta.pieces) {
    if (!piece.name.empty()) parsed->calls.push_back({piece.name, ""});
    ASSERT_EQ(piece.index, static_cast<int>(parsed->calls.size()) - 1);
    parsed->calls.back().second += piece.arguments;
  }
}

Parsed parse(ToolCallFormat format, const std::string& text, size_t piece, bool inside = false) {
  ToolCallParser parser(format, inside);
  Parsed parsed;
  for (size_t at = 0; at < text.size(); at += piece) add(parser.push(std::string_view(text).substr(at, piece)), &parsed);
  add(parser.finish(), &parsed);
  return parsed;
}

TEST(ToolCalls, AllFormatsInAllPieces) {
  const std::string arguments = R"({"city": "O}s\"lo{", "n": [1, {"x": 2}]})";
  struct Case {
    ToolCallFormat format;
    std::string text;
    Parsed expected;
    bool inside = false;
  };
  const Case cases[] = {
      {ToolCallFormat::kHermes, "Let me see.<tool_call>\n{\"name\": \"f\", \"arguments\": " + arguments + "}\n</tool_call>", {"Let me see.", {{"f", arguments}}}},
      {ToolCallFormat::kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {\"a\": 1}}\n</tool_call>\n", {"", {{"f", "{}"}, {"g", "{\"a\": 1}"}}}},
      {ToolCallFormat::kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>", {"", {{"f", "{}"}}}, true},
      {ToolCallFormat::kHermes, "a < b <tool_cal and no call", {"a < b <tool_cal and no call", {}}},
      {ToolCallFormat::kHermes, "<tool_call>not json", {"<tool_call>not json", {}}},
      {ToolCallFormat::kHermes, "<tool_call>{\"other\": 1}</tool_call>", {"<tool_call>{\"other\": 1}</tool_call>", {}}},
      {ToolCallFormat::kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"cut", {"", {{"f", "{\"cut"}}}},
      {ToolCallFormat::kLlama3Json, "{\"name\": \"f\", \"parameters\": " + arguments + "}", {"", {{"f", arguments}}}},
      {ToolCallFormat::kLlama3Json, "{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}", {"", {{"f", "{}"}, {"g", "{}"}}}},
      {ToolCallFormat::kLlama3Json, "Hello {\"name\": 1}", {"Hello {\"name\": 1}", {}}},
      {ToolCallFormat::kLlama3Json, "{\"answer\": 42}", {"{\"answer\": 42}", {}}},
      {ToolCallFormat::kMistral, "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": " + arguments + "}, {\"name\": \"g\", \"arguments\": {}, \"id\": \"abc\"}]", {"", {{"f", arguments}, {"g", "{}"}}}},
      {ToolCallFormat::kMistral, "[{\"name\": \"f\", \"arguments\": {}}]", {"", {{"f", "{}"}}}, true},
      {ToolCallFormat::kMistral, "plain [TOOL", {"plain [TOOL", {}}},
  };
  for (const Case& test : cases)
    for (const size_t piece : {1, 2, 3, 7, 1000}) EXPECT_EQ(parse(test.format, test.text, piece, test.inside), test.expected) << test.text << " in pieces of " << piece;
}

TEST(ToolCalls, FormatFromTemplate) {
  EXPECT_EQ(tool_call_format("... '\\n<tool_call>\\n' ..."), ToolCallFormat::kHermes);
  EXPECT_EQ(tool_call_format("<|start_header_id|> {{ tools }}"), ToolCallFormat::kLlama3Json);
  EXPECT_EQ(tool_call_format("[TOOL_CALLS] ["), ToolCallFormat::kMistral);
}

// Any text in any pieces: no crash, and without a call every byte is content.
TEST(ToolCalls, NothingIsLost) {
  std::mt19937_64 random(7);
  const char* parts[] = {"<tool_call>", "</tool_call>", "{", "}", "\"name\"", ":", "\"f\"", ",", " ", "[TOOL_CALLS]", "[", "]", "x", "\"arguments\"", "\\"};
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (uint64_t i = 0, n = random() % 12; i < n; ++i) text += parts[random() % std::size(parts)];
    for (const ToolCallFormat format : {ToolCallFormat::kHermes, ToolCallFormat::kLlama3Json, ToolCallFormat::kMistral}) {
      const Parsed whole = parse(format, text, 1000), bytes = parse(format, text, 1);
      EXPECT_EQ(whole.calls, bytes.calls) << text;
      EXPECT_TRUE(!bytes.calls.empty() || format != ToolCallFormat::kHermes || bytes.content == text) << text;
    }
  }
}

}  // namespace
}  // namespace orrery
