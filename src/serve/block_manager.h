// Who owns which block of the paged cache, and which blocks hold a prefix that another request may read. Pure bookkeeping: it never
// sees a tensor. One thread uses it; the scheduler decides when blocks are taken, the engine hands the tables to the model.
//
// The prefix cache is a tree: a full block's node is (parent node, its tokens); the root is the request's cache salt. Nodes are compared
// by content, not by hash alone, so no collision can show one tenant another's cache. A node whose block nobody uses stays readable until
// the block is wanted for something else; the one unused for longest goes first, and of one sequence its last blocks first.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace orrery {

/// The blocks of one sequence, in order of position.
struct BlockTable {
  std::vector<int32_t> blocks;
  int64_t num_cached_blocks = 0;  // leading blocks that stand in the prefix tree
  uint64_t node = 0;              // of the last of them; 0: the root
};

class BlockManager {
 public:
  BlockManager(int64_t num_blocks, int64_t block_tokens, bool prefix_cache);

  /// Takes the longest known prefix of `tokens` into the empty `table`, in whole blocks; returns its tokens. The last token is never
  /// taken from the cache: at least one has to run, or there are no logits to sample from.
  int64_t match_prefix(std::span<const int32_t> tokens, const std::string& salt, BlockTable* table);
  /// Makes room for `num_tokens` tokens in all. False, and nothing taken, when there are not enough free blocks.
  [[nodiscard]] bool grow(BlockTable* table, int64_t num_tokens);
  /// The first `num_computed` of `tokens` are in the cache's blocks now: full blocks become readable for others.
  void commit(BlockTable* table, std::span<const int32_t> tokens, int64_t num_computed, const std::string& salt);
  void release(BlockTable* table);

  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(unused_.size() + evictable_.size()); }  // readable ones included
  int64_t num_used() const { return num_blocks() - num_free(); }
  int64_t block_tokens() const { return block_tokens_; }
  /// Every block is used, unused or evictable, exactly once, and counts add up. For tests.
  void check_invariants() const;

 private:
  struct Block {
    int64_t references = 0;
    uint64_t node = 0;    // 0: not in the tree
    uint64_t parent = 0;
    uint64_t key = 0;
    std::string salt;     // of a first block
    std::vector<int32_t> tokens;
    std::list<int32_t>::iterator place;  // in evictable_, when references == 0 and node != 0
  };
  uint64_t key_of(uint64_t parent, std::span<const int32_t> tokens, const std::string& salt) const;
  int32_t find(uint64_t parent, std::span<const int32_t> tokens, const std::string& salt) const;  // -1: none
  int32_t take_free();
  void forget(Block& block, int32_t index);

  int64_t block_tokens_;
  bool prefix_cache_;
  uint64_t next_node_ = 1;
  std::vector<Block> blocks_;
  std::vector<int32_t> unused_;
  std::list<int32_t> evictable_;  // front: unused for longest
  std::unordered_multimap<uint64_t, int32_t> tree_;
};

}  // namespace orrery
