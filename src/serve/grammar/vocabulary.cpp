// A tokenizer's tokens as a trie of bytes in preorder.
#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "serve/grammar/grammar.h"

namespace orrery {

GrammarVocabulary::GrammarVocabulary(const Tokenizer& tokenizer, std::vector<int32_t> end_ids) : end_ids_(std::move(end_ids)) {
  if (tokenizer.eos_id() >= 0) end_ids_.push_back(tokenizer.eos_id());
  tokens_.resize(static_cast<size_t>(tokenizer.vocab_size()));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    if (!tokenizer.is_special(id)) tokens_[static_cast<size_t>(id)] = tokenizer.token_bytes(id);
  build();
}

GrammarVocabulary::GrammarVocabulary(std::vector<std::string> tokens, std::vector<int32_t> end_ids) : tokens_(std::move(tokens)), end_ids_(std::move(end_ids)) { build(); }

bool GrammarVocabulary::is_end(int32_t id) const { return std::binary_search(end_ids_.begin(), end_ids_.end(), id); }

void GrammarVocabulary::build() {
  std::sort(end_ids_.begin(), end_ids_.end());
  end_ids_.erase(std::unique(end_ids_.begin(), end_ids_.end()), end_ids_.end());
  std::erase_if(end_ids_, [&](int32_t id) { return id < 0 || id >= size(); });
  for (const int32_t id : end_ids_) tokens_[static_cast<size_t>(id)].clear();
  next_same_.assign(tokens_.size(), -1);
  std::vector<int32_t> order(tokens_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return tokens_[static_cast<size_t>(a)] < tokens_[static_cast<size_t>(b)]; });
  std::vector<uint32_t> path;  // nodes from depth 1
  std::string_view previous;
  for (const int32_t id : order) {
    const std::string_view bytes = tokens_[static_cast<size_t>(id)];
    if (bytes.empty()) continue;
    token_bytes_max_ = std::max(token_bytes_max_, bytes.size());
    if (bytes.size() == 1) has_byte_[static_cast<uint8_t>(bytes[0])] = true;
    if (bytes == previous) {
      int32_t last = nodes_.back().token;
      while (next_same_[static_cast<size_t>(last)] >= 0) last = next_same_[static_cast<size_t>(last)];
      next_same_[static_cast<size_t>(last)] = id;
      continue;
    }
    const auto shared = static_cast<size_t>(std::mismatch(previous.begin(), previous.end(), bytes.begin(), bytes.end()).first - previous.begin());
    while (path.size() > shared) {
      nodes_[path.back()].end = static_cast<uint32_t>(nodes_.size());
      path.pop_back();
    }
    for (size_t i = shared; i < bytes.size(); ++i) {
      path.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({0, -1, static_cast<uint32_t>(i + 1), static_cast<uint8_t>(bytes[i])});
    }
    nodes_.back().token = id;
    previous = bytes;
  }
  for (const uint32_t node : path) nodes_[node].end = static_cast<uint32_t>(nodes_.size());
}

}  // namespace orrery
