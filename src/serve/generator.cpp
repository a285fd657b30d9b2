#include "serve/generator.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace orrery {

Generator::Generator(const ModelSource& source, const GeneratorOptions& options)
    : model_(source, {.num_threads = options.num_threads, .max_context = options.max_context, .compute_dtype = options.compute_dtype}) {
  // One sequence owns every block, in order.
  int32_t* blocks = model_.field<int32_t>(BatchField::kBlockTable);
  std::iota(blocks, blocks + plan().blocks_per_sequence, 0);
}

std::span<const float> Generator::append(std::span<const int32_t> tokens) {
  ORRERY_CHECK(!tokens.empty(), "append of no tokens");
  if (length_ + static_cast<int64_t>(tokens.size()) > max_context())
    throw Error(ErrorCode::kInvalidArgument, "{} tokens do not fit into the context of {}", length_ + static_cast<int64_t>(tokens.size()), max_context());
  const auto chunk = static_cast<size_t>(plan().options.max_tokens);
  for (size_t first = 0; first < tokens.size(); first += chunk) forward(tokens.subspan(first, std::min(chunk, tokens.size() - first)));
  return model_.logits(0);
}

void Generator::forward(std::span<const int32_t> tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  std::copy(tokens.begin(), tokens.end(), model_.field<int32_t>(BatchField::kIds));
  // gpt2's positions index a table; every family's cache slots follow the position, because the blocks are in order.
  int32_t* positions = model_.field<int32_t>(BatchField::kPositions);
  int32_t* slots = model_.field<int32_t>(BatchField::kSlots);
  std::iota(positions, positions + count, static_cast<int32_t>(length_));
  std::iota(slots, slots + count, static_cast<int32_t>(length_));
  model_.field<int32_t>(BatchField::kCuSeqlens)[0] = 0;
  model_.field<int32_t>(BatchField::kCuSeqlens)[1] = static_cast<int32_t>(count);
  model_.field<int32_t>(BatchField::kContextLens)[0] = static_cast<int32_t>(length_ + count);
  model_.field<int32_t>(BatchField::kRows)[0] = static_cast<int32_t>(count - 1);
  model_.forward(count, 1, 1);
  length_ += count;
}

}  // namespace orrery
