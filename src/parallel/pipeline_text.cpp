// The text form of a PipelineOrder, a schedule file: written and read back.
#include <algorithm>
#include <charconv>
#include <map>

#include "base/error.h"
#include "parallel/pipeline.h"

namespace orrery {
namespace {

// Where stage = rank the stage need not be written.
bool writes_stages(const PipelineOrder& order) {
  for (int32_t stage = 0; stage < order.num_stages(); ++stage)
    if (order.rank_of_stage[static_cast<size_t>(stage)] != stage) return true;
  return false;
}

class OrderParser {
 public:
  explicit OrderParser(std::string_view text) : text_(text) {}

  PipelineOrder run() {
    while (!text_.empty()) {
      ++line_number_;
      std::string_view line = text_.substr(0, text_.find('\n'));
      text_.remove_prefix(std::min(text_.size(), line.size() + 1));
      line = line.substr(0, line.find('#'));
      if (line.find_first_not_of(kBlanks) != std::string_view::npos) parse_line(line);
    }
    if (order_.steps.empty()) refuse("has no line like `rank 0: F0 B0`");
    for (size_t rank = 0; rank < order_.steps.size(); ++rank)
      if (order_.steps[rank].empty()) refuse(fmt::format("rank {} computes nothing", rank));
    for (int32_t stage = 0; stage < static_cast<int32_t>(rank_of_stage_.size()); ++stage) {
      const auto found = rank_of_stage_.find(stage);
      if (found == rank_of_stage_.end()) refuse(fmt::format("names {} stages but not stage {}", rank_of_stage_.size(), stage));
      order_.rank_of_stage.push_back(found->second);
    }
    return std::move(order_);
  }

 private:
  static constexpr std::string_view kBlanks = " \t\r";
  static constexpr int32_t kLargest = 1 << 20;  // ranks, stages, micro-batches: more is a slip of the pen

  [[noreturn]] void refuse(const std::string& what) const { throw Error(ErrorCode::kInvalidConfig, "schedule file, line {}: {}", line_number_, what); }

  std::string_view next_word(std::string_view& line) const {
    line.remove_prefix(std::min(line.size(), line.find_first_not_of(kBlanks)));
    const std::string_view word = line.substr(0, line.find_first_of(kBlanks));
    line.remove_prefix(word.size());
    return word;
  }

  // A number at the front of `text`, removed from it.
  int32_t number(std::string_view& text, std::string_view word) const {
    int32_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || value < 0 || value > kLargest) refuse(fmt::format("\"{}\" is not an action like F0, B0, I0, W0 or 3F0", word));
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    return value;
  }

  void parse_line(std::string_view line) {
    const auto rank = static_cast<int32_t>(order_.steps.size());
    const std::string_view head = next_word(line), label = next_word(line);
    if (head != "rank" || label != fmt::format("{}:", rank)) refuse(fmt::format("wanted \"rank {}:\"", rank));
    order_.steps.emplace_back();
    for (std::string_view word = next_word(line); !word.empty(); word = next_word(line)) parse_step(word, rank);
  }

  void parse_step(std::string_view word, int32_t rank) {
    static const std::map<char, ActionKind> kKinds = {
        {'F', ActionKind::kForward}, {'B', ActionKind::kBackward}, {'I', ActionKind::kBackwardInput}, {'W', ActionKind::kBackwardWeight}};
    std::string_view rest = word;
    ComputeStep step;
    step.stage = rest.front() >= '0' && rest.front() <= '9' ? number(rest, word) : rank;
    const auto kind = rest.empty() ? kKinds.end() : kKinds.find(rest.front());
    if (kind == kKinds.end()) refuse(fmt::format("\"{}\" is not an action like F0, B0, I0, W0 or 3F0", word));
    step.kind = kind->second;
    rest.remove_prefix(1);
    step.micro_batch = number(rest, word);
    if (!rest.empty()) refuse(fmt::format("\"{}\" is not an action like F0, B0, I0, W0 or 3F0", word));
    const auto [owner, is_new] = rank_of_stage_.emplace(step.stage, rank);
    if (owner->second != rank) refuse(fmt::format("{}: rank {} holds stage {} already", word, owner->second, step.stage));
    order_.num_micro_batches = std::max(order_.num_micro_batches, step.micro_batch + 1);
    order_.steps.back().push_back(step);
  }

  std::string_view text_;
  int line_number_ = 0;
  std::map<int32_t, int32_t> rank_of_stage_;
  PipelineOrder order_;
};

}  // namespace

std::string to_string(const PipelineOrder& order) {
  Schedule names;  // to_string of an action takes the stage from here
  names.stage_of_chunk.clear();
  for (int32_t stage = 0; stage < order.num_stages(); ++stage) names.stage_of_chunk.push_back(stage);
  if (!writes_stages(order)) names.stage_of_chunk = {0};
  std::string text;
  for (size_t rank = 0; rank < order.steps.size(); ++rank) {
    text += fmt::format("rank {}:", rank);
    for (const ComputeStep& step : order.steps[rank]) {
      Action action;
      action.kind = step.kind;
      action.chunk = writes_stages(order) ? step.stage : 0;
      action.micro_batch = step.micro_batch;
      text += ' ' + to_string(action, names);
    }
    text += '\n';
  }
  return text;
}

PipelineOrder parse_pipeline_order(std::string_view text) { return OrderParser(text).run(); }

}  // namespace orrery
