#include "data/multiple_choice.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/document_reader.h"

namespace orrery {
namespace {

using Json = nlohmann::json;

[[noreturn]] void malformed(const std::string& what) { throw Error(ErrorCode::kCorruptData, what); }

const Json* first_of(const Json& object, std::initializer_list<const char*> keys) {
  for (const char* key : keys)
    if (const auto found = object.find(key); found != object.end()) return &*found;
  return nullptr;
}

std::vector<std::string> strings(const Json* list, const char* what) {
  if (list == nullptr || !list->is_array()) malformed(fmt::format("{} is not a list of strings", what));
  std::vector<std::string> out;
  for (const Json& item : *list) {
    if (!item.is_string()) malformed(fmt::format("{} is not a list of strings", what));
    out.push_back(item.get<std::string>());
  }
  return out;
}

int answer_index(const Json& answer, const std::vector<std::string>& labels, size_t num_choices) {
  int64_t index = -1;
  if (answer.is_number_integer()) {
    index = answer.is_number_unsigned() && answer.get<uint64_t>() > 1'000'000 ? -1 : answer.get<int64_t>();
  } else if (answer.is_string()) {
    const auto text = answer.get<std::string>();
    for (size_t i = 0; i < labels.size(); ++i)
      if (labels[i] == text) index = static_cast<int64_t>(i);
    if (labels.empty() && text.size() == 1 && text[0] >= 'A' && text[0] <= 'Z') index = text[0] - 'A';
    if (labels.empty() && text.size() == 1 && text[0] >= '0' && text[0] <= '9') index = text[0] - '0';
  }
  if (index < 0 || index >= static_cast<int64_t>(num_choices))
    malformed(fmt::format("the answer {} is none of the {} choices", answer.dump().substr(0, 40), num_choices));
  return static_cast<int>(index);
}

}  // namespace

MultipleChoiceQuestion parse_multiple_choice(std::string_view line) {
  Json json;
  try {
    json = Json::parse(line);
  } catch (const Json::exception& error) {
    malformed(fmt::format("not valid JSON: {}", error.what()));
  }
  if (!json.is_object()) malformed("not a JSON object");
  MultipleChoiceQuestion question;
  const Json* context = first_of(json, {"context", "question", "query", "prompt", "ctx"});
  if (context == nullptr || !context->is_string()) malformed("no \"context\" or \"question\" string");
  question.context = context->get<std::string>();
  const Json* choices = first_of(json, {"choices", "endings"});
  if (choices == nullptr) malformed("no \"choices\"");
  std::vector<std::string> labels;
  if (choices->is_object()) {
    labels = strings(first_of(*choices, {"label"}), "\"choices\".\"label\"");
    question.choices = strings(first_of(*choices, {"text"}), "\"choices\".\"text\"");
    if (labels.size() != question.choices.size())
      malformed(fmt::format("\"choices\" has {} labels for {} texts", labels.size(), question.choices.size()));
  } else {
    question.choices = strings(choices, "\"choices\"");
  }
  if (question.choices.size() < 2) malformed(fmt::format("{} choices, wanted at least 2", question.choices.size()));
  for (const std::string& choice : question.choices)
    if (choice.empty()) malformed("an empty choice");
  const Json* answer = first_of(json, {"answer", "gold", "label", "answerKey"});
  if (answer == nullptr) malformed("no \"answer\" (an index from 0 or a label)");
  question.answer = answer_index(*answer, labels, question.choices.size());
  return question;
}

TokenizedQuestion tokenize(const MultipleChoiceQuestion& question, const TokenEncoder& encoder,
                           const TokenEncoder::Session& session) {
  TokenizedQuestion out;
  out.answer = question.answer;
  out.context_ids = encoder.document_begin;
  // A space at the context's end belongs to the choice: "Answer: " + "yes" is tokenized as "Answer:" + " yes".
  std::string context = question.context;
  while (!context.empty() && context.back() == ' ') context.pop_back();
  const bool ends_line = !context.empty() && (context.back() == '\n' || context.back() == '\t');
  session(context, false, &out.context_ids);
  for (const std::string& choice : question.choices) {
    const bool add_space = !context.empty() && !ends_line && choice[0] != ' ' && choice[0] != '\n';
    out.choice_ids.emplace_back();
    session(add_space ? " " + choice : choice, false, &out.choice_ids.back());
    out.choice_bytes.push_back(static_cast<uint32_t>(choice.size()));
  }
  // Without a begin token an empty context still needs one id to continue from.
  if (out.context_ids.empty()) out.context_ids = encoder.document_end;
  if (out.context_ids.empty()) malformed("an empty context, and the tokenizer has no begin or end token to stand for it");
  return out;
}

std::vector<TokenizedQuestion> load_multiple_choice(const std::string& path, const TokenEncoder& encoder) {
  std::vector<InputFile> inputs = find_inputs({path});
  for (InputFile& input : inputs) input.kind = InputKind::kJsonl;
  DocumentReader reader(inputs, 0);
  RawBatch batch;
  std::vector<TokenizedQuestion> questions;
  const TokenEncoder::Session session = encoder.new_session();
  while (reader.next(&batch))
    for (const RawBatch::Item& item : batch.items) try {
        questions.push_back(
            tokenize(parse_multiple_choice(std::string_view(batch.bytes).substr(item.begin, item.size)), encoder, session));
      } catch (const Error& error) {
        throw Error(error.code(), fmt::format("{}:{}: {}", inputs[item.file_index].path, item.line, error.what()));
      }
  if (questions.empty()) throw Error(ErrorCode::kCorruptData, "{}: no questions in it", path);
  return questions;
}

}  // namespace orrery
