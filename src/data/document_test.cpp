// Random mutations of JSON lines, of questions and of manifests end in a value or in an Error.
#include "data/document.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/fuzz_util.h"
#include "data/manifest.h"
#include "data/multiple_choice.h"

namespace orrery {
namespace {

template <typename Parse>
void expect_errors_only(const std::vector<std::string>& seeds, Parse&& parse) {
  run_mutations(
      [&](const uint8_t* data, size_t size) {
        try {
          parse(std::string_view(reinterpret_cast<const char*>(data), size));
        } catch (const Error&) {
        }
      },
      seeds, 20000, 3);
}

TEST(DocumentMutations, JsonLines) {
  JsonDocumentParser parser;
  expect_errors_only(
      {R"({"text": "plain \u00e9 \ud83d\ude00"})",
       R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]})",
       R"({"prompt": "p", "completion": "c"})", R"({"instruction": "do", "input": "it", "output": "done"})"},
      [&](std::string_view line) { parser.parse(line, {}); });
  const std::string deep = "{\"text\": " + std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_THROW(parser.parse(deep, {}), Error);
}

TEST(DocumentMutations, Questions) {
  expect_errors_only({R"({"context": "c", "choices": ["x", "y"], "answer": 1})",
                      R"({"question": "c", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"})"},
                     [](std::string_view line) { parse_multiple_choice(line); });
}

TEST(DocumentMutations, Manifests) {
  expect_errors_only(
      {R"({"format":"orrery token shards","version":1,"inputs_hash":"a","tokenizer_hash":"b","vocab_size":3,"val_fraction":0,"seed":1,"inputs":[],)"
       R"("train":{"shards":["train-00000.orrtok"],"tokens":1,"documents":1,"masked_tokens":0},"validation":{"shards":[],"tokens":0,"documents":0,"masked_tokens":0}})"},
      [](std::string_view text) { parse_manifest(text, "fuzz"); });
}

}  // namespace
}  // namespace orrery
