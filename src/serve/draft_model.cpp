#include "serve/draft_model.h"

#include <algorithm>

#include "base/error.h"

namespace orrery {

bool DraftGovernor::use() const {
  for (const bool arm : {false, true})
    if (steps_[arm] < kTrialSteps) return arm;
  const bool better = seconds_per_token_[true] < seconds_per_token_[false];
  return (steps_[false] + steps_[true]) % kStepsBetweenTrials < kTrialSteps ? !better : better;
}

void DraftGovernor::record(bool drafted, double seconds, int64_t tokens) {
  if (tokens <= 0) return;
  double& mean = seconds_per_token_[drafted];
  const double value = seconds / static_cast<double>(tokens);
  mean = steps_[drafted]++ == 0 ? value : mean + 0.25 * (value - mean);
}

DraftModel::DraftModel(ServingModel& model) : model_(model), places_(static_cast<size_t>(model.plan().options.max_sequences)) {}

size_t DraftModel::place_of(uint64_t id, std::span<const Request> requests) {
  size_t free = places_.size();
  for (size_t i = 0; i < places_.size(); ++i) {
    if (places_[i].taken && places_[i].id == id) return i;
    const bool wanted = places_[i].taken && std::any_of(requests.begin(), requests.end(), [&](const Request& request) { return request.id == places_[i].id; });
    if (!wanted && (free == places_.size() || !places_[i].taken)) free = i;
  }
  ORRERY_CHECK(free < places_.size(), "{} requests for {} places", requests.size(), places_.size());
  places_[free] = {id, true, {}};
  return free;
}

// One step: each piece behind what its place has read; the logits of each piece's last token, in order.
void DraftModel::forward(std::span<const Piece> pieces) {
  const int64_t block_tokens = model_.plan().options.block_tokens, width = model_.plan().blocks_per_sequence;
  int32_t row = 0, sequence = 0;
  model_.field<int32_t>(BatchField::kCuSeqlens)[0] = 0;
  for (const Piece& piece : pieces) {
    std::vector<int32_t>& read = places_[piece.place].read;
    const int64_t first_block = static_cast<int64_t>(piece.place) * width;
    for (const int32_t token : piece.tokens) {
      const auto position = static_cast<int64_t>(read.size());
      model_.field<int32_t>(BatchField::kIds)[row] = token;
      model_.field<int32_t>(BatchField::kPositions)[row] = static_cast<int32_t>(position);
      model_.field<int32_t>(BatchField::kSlots)[row] = static_cast<int32_t>((first_block + position / block_tokens) * block_tokens + position % block_tokens);
      read.push_back(token);
      ++row;
    }
    for (int64_t block = 0; block < width; ++block) model_.field<int32_t>(BatchField::kBlockTable)[sequence * width + block] = static_cast<int32_t>(first_block + block);
    model_.field<int32_t>(BatchField::kRows)[sequence] = row - 1;
    model_.field<int32_t>(BatchField::kContextLens)[sequence] = static_cast<int32_t>(read.size());
    model_.field<int32_t>(BatchField::kCuSeqlens)[++sequence] = row;
  }
  model_.forward(row, sequence, sequence);
}

std::vector<std::vector<int32_t>> DraftModel::propose(std::span<const Request> requests) {
  const auto context = static_cast<size_t>(model_.plan().options.max_context);
  const auto budget = static_cast<size_t>(model_.plan().options.max_tokens);
  std::vector<std::vector<int32_t>> drafts(requests.size());
  std::vector<size_t> places;
  for (const Request& request : requests) {
    Place& place = places_[places.emplace_back(place_of(request.id, requests))];
    // What was read and then refused is read over; the last token is always read, for its logits.
    const std::vector<int32_t>& tokens = *request.tokens;
    const auto equal = static_cast<size_t>(std::mismatch(place.read.begin(), place.read.end(), tokens.begin(), tokens.end()).first - place.read.begin());
    place.read.resize(std::min(equal, tokens.size() - 1));
  }
  std::vector<Piece> pieces;
  std::vector<size_t> drawing;  // the request of each piece
  while (true) {
    pieces.clear();
    drawing.clear();
    size_t left = budget;
    for (size_t i = 0; i < requests.size() && left > 0; ++i) {
      const std::vector<int32_t>&tokens = *requests[i].tokens, &read = places_[places[i]].read;
      const size_t wanted = tokens.size() + drafts[i].size();
      if (static_cast<int64_t>(drafts[i].size()) >= requests[i].limit || wanted >= context) continue;
      Piece piece{places[i], {}};
      for (size_t at = read.size(); at < wanted && piece.tokens.size() < left; ++at) piece.tokens.push_back(at < tokens.size() ? tokens[at] : drafts[i][at - tokens.size()]);
      left -= piece.tokens.size();
      drawing.push_back(i);
      pieces.push_back(std::move(piece));
    }
    if (pieces.empty()) return drafts;
    forward(pieces);
    for (size_t p = 0; p < pieces.size(); ++p) {
      const Request& request = requests[drawing[p]];
      std::vector<int32_t>& draft = drafts[drawing[p]];
      if (places_[pieces[p].place].read.size() < request.tokens->size() + draft.size()) continue;  // in the middle of a long prompt
      const auto position = static_cast<int64_t>(request.tokens->size() + draft.size());
      const int32_t id = request.sampler->sample(model_.logits(static_cast<int64_t>(p)), position, {}, &scratch_).id;
      if (id < 0) return std::vector<std::vector<int32_t>>(requests.size());
      draft.push_back(id);
    }
  }
}

}  // namespace orrery
