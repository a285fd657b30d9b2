// Byte pair encoding of one piece of text: the lowest-ranked pair is merged until none is left. Short pieces by scanning, long
// ones with a heap over a linked list, so that a hostile piece of n bytes costs O(n log n).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/flat_map.h"
#include "tokenizer/spec.h"

namespace orrery {

struct BpeScratch {
  struct Node {
    int32_t id;
    int32_t previous, next;  // -1: none
  };
  struct Candidate {
    uint32_t rank;
    int32_t position;
    int32_t left, right;  // the ids seen when it was pushed: stale when they have changed
    int32_t result;
  };
  std::vector<int32_t> symbols;
  std::vector<Node> nodes;
  std::vector<Candidate> heap;
};

class BpeModel {
 public:
  /// `tokens`: as pieces hold them (bytes for byte-level models). They are kept by the caller and must stay.
  BpeModel(const TokenizerSpec& spec, const std::vector<std::string>* tokens, const StringIndex* index, bool byte_level);

  /// Appends the ids of `piece`. A byte or character that is not in the vocabulary becomes the unknown token, or nothing where
  /// there is none, as in the `tokenizers` package.
  void encode(std::string_view piece, BpeScratch* scratch, std::vector<int32_t>* ids) const;

 private:
  void split_bytes(std::string_view piece, std::vector<int32_t>* symbols) const;
  void split_characters(std::string_view piece, std::vector<int32_t>* symbols) const;
  void push_unknown(bool after_unknown, std::vector<int32_t>* symbols) const;
  void merge_short(std::vector<int32_t>* symbols) const;
  void merge_long(BpeScratch* scratch) const;
  const uint64_t* find_merge(int32_t left, int32_t right) const {
    return merges_.find(static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right));
  }

  const std::vector<std::string>* tokens_;
  const StringIndex* index_;
  FlatMap merges_;         // left << 32 | right -> rank << 32 | result
  int32_t byte_ids_[256];  // byte-level: the byte's token; else the <0xXX> token
  bool byte_level_, byte_fallback_, ignore_merges_, fuse_unk_;
  int32_t unk_id_;
};

}  // namespace orrery
