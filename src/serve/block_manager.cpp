#include "serve/block_manager.h"

#include <algorithm>

#include "base/error.h"

namespace orrery {

BlockManager::BlockManager(int64_t num_blocks, int64_t block_tokens, bool prefix_cache)
    : block_tokens_(block_tokens), prefix_cache_(prefix_cache), blocks_(static_cast<size_t>(num_blocks)) {
  ORRERY_CHECK(num_blocks > 0 && block_tokens > 0, "{} blocks of {}", num_blocks, block_tokens);
  for (int64_t i = num_blocks; i-- > 0;) unused_.push_back(static_cast<int32_t>(i));
}

// FNV-1a over words; equality is decided by content, so the hash needs no strength.
uint64_t BlockManager::key_of(uint64_t parent, std::span<const int32_t> tokens, const std::string& salt) const {
  uint64_t hash = 0xcbf29ce484222325ull ^ parent;
  const auto mix = [&hash](uint64_t word) { hash = (hash ^ word) * 0x100000001b3ull; hash ^= hash >> 29; };
  if (parent == 0)
    for (const char c : salt) mix(static_cast<unsigned char>(c));
  for (const int32_t token : tokens) mix(static_cast<uint32_t>(token));
  return hash;
}

int32_t BlockManager::find(uint64_t parent, std::span<const int32_t> tokens, const std::string& salt) const {
  const auto [begin, end] = tree_.equal_range(key_of(parent, tokens, salt));
  for (auto it = begin; it != end; ++it) {
    const Block& block = blocks_[static_cast<size_t>(it->second)];
    if (block.parent == parent && std::equal(block.tokens.begin(), block.tokens.end(), tokens.begin(), tokens.end()) &&
        (parent != 0 || block.salt == salt))
      return it->second;
  }
  return -1;
}

int64_t BlockManager::match_prefix(std::span<const int32_t> tokens, const std::string& salt, BlockTable* table) {
  ORRERY_CHECK(table->blocks.empty(), "a table of {} blocks", table->blocks.size());
  if (!prefix_cache_) return 0;
  const auto size = static_cast<size_t>(block_tokens_);
  for (size_t first = 0; first + size < tokens.size(); first += size) {
    const int32_t index = find(table->node, tokens.subspan(first, size), salt);
    if (index < 0) break;
    Block& block = blocks_[static_cast<size_t>(index)];
    if (block.references++ == 0) evictable_.erase(block.place);
    table->blocks.push_back(index);
    table->node = block.node;
  }
  table->num_cached_blocks = static_cast<int64_t>(table->blocks.size());
  return table->num_cached_blocks * block_tokens_;
}

void BlockManager::forget(Block& block, int32_t index) {
  const auto [begin, end] = tree_.equal_range(block.key);
  for (auto it = begin; it != end; ++it)
    if (it->second == index) {
      tree_.erase(it);
      break;
    }
  block.node = 0;
  block.tokens.clear();
  block.salt.clear();
}

int32_t BlockManager::take_free() {
  int32_t index;
  if (!unused_.empty()) {
    index = unused_.back();
    unused_.pop_back();
  } else {
    index = evictable_.front();
    evictable_.pop_front();
    forget(blocks_[static_cast<size_t>(index)], index);
  }
  blocks_[static_cast<size_t>(index)].references = 1;
  return index;
}

bool BlockManager::grow(BlockTable* table, int64_t num_tokens) {
  const int64_t wanted = (num_tokens + block_tokens_ - 1) / block_tokens_ - static_cast<int64_t>(table->blocks.size());
  if (wanted > num_free()) return false;
  for (int64_t i = 0; i < wanted; ++i) table->blocks.push_back(take_free());
  return true;
}

void BlockManager::commit(BlockTable* table, std::span<const int32_t> tokens, int64_t num_computed, const std::string& salt) {
  if (!prefix_cache_) return;
  ORRERY_CHECK(num_computed <= static_cast<int64_t>(tokens.size()), "{} of {} tokens", num_computed, tokens.size());
  while ((table->num_cached_blocks + 1) * block_tokens_ <= num_computed) {
    const auto content = tokens.subspan(static_cast<size_t>(table->num_cached_blocks * block_tokens_), static_cast<size_t>(block_tokens_));
    const int32_t index = table->blocks[static_cast<size_t>(table->num_cached_blocks)];
    const int32_t known = find(table->node, content, salt);
    if (known >= 0 && known != index) {
      // Another sequence computed the same block meanwhile, with the same bits: read that one from now on.
      Block& shared = blocks_[static_cast<size_t>(known)];
      if (shared.references++ == 0) evictable_.erase(shared.place);
      Block& own = blocks_[static_cast<size_t>(index)];
      ORRERY_CHECK(own.references == 1 && own.node == 0, "block {} is shared and not in the tree", index);
      own.references = 0;
      unused_.push_back(index);
      table->blocks[static_cast<size_t>(table->num_cached_blocks)] = known;
      table->node = shared.node;
    } else {
      Block& block = blocks_[static_cast<size_t>(index)];
      block.node = next_node_++;
      block.parent = table->node;
      block.tokens.assign(content.begin(), content.end());
      if (block.parent == 0) block.salt = salt;
      block.key = key_of(block.parent, content, salt);
      tree_.emplace(block.key, index);
      table->node = block.node;
    }
    ++table->num_cached_blocks;
  }
}

void BlockManager::release(BlockTable* table) {
  for (size_t i = table->blocks.size(); i-- > 0;) {
    const int32_t index = table->blocks[i];
    Block& block = blocks_[static_cast<size_t>(index)];
    ORRERY_CHECK(block.references > 0, "block {} is released twice", index);
    if (--block.references > 0) continue;
    if (block.node == 0)
      unused_.push_back(index);
    else
      block.place = evictable_.insert(evictable_.end(), index);
  }
  *table = {};
}

void BlockManager::check_invariants() const {
  std::vector<int> seen(blocks_.size(), 0);
  for (const int32_t index : unused_) {
    ++seen[static_cast<size_t>(index)];
    ORRERY_CHECK(blocks_[static_cast<size_t>(index)].references == 0 && blocks_[static_cast<size_t>(index)].node == 0, "unused block {}", index);
  }
  for (const int32_t index : evictable_) {
    ++seen[static_cast<size_t>(index)];
    ORRERY_CHECK(blocks_[static_cast<size_t>(index)].references == 0 && blocks_[static_cast<size_t>(index)].node != 0, "evictable block {}", index);
  }
  size_t in_tree = 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    ORRERY_CHECK(seen[i] == (blocks_[i].references == 0 ? 1 : 0), "block {} stands in {} free lists", i, seen[i]);
    in_tree += blocks_[i].node != 0;
  }
  ORRERY_CHECK(in_tree == tree_.size(), "{} blocks know a node, the tree has {}", in_tree, tree_.size());
}

}  // namespace orrery
