#include "tokenizer/bpe_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "tokenizer/utf8.h"

namespace orrery {
namespace {

constexpr size_t kShortPiece = 40;  // symbols; above it the heap wins over scanning

}  // namespace

BpeModel::BpeModel(const TokenizerSpec& spec, const std::vector<std::string>* tokens, const StringIndex* index, bool byte_level)
    : tokens_(tokens),
      index_(index),
      merges_(spec.merges.size()),
      byte_level_(byte_level),
      byte_fallback_(spec.byte_fallback),
      ignore_merges_(spec.ignore_merges),
      fuse_unk_(spec.fuse_unk),
      unk_id_(spec.unk_id) {
  for (const Merge& merge : spec.merges) {
    const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(merge.left)) << 32 | static_cast<uint32_t>(merge.right);
    // A pair that is written twice counts where it stands last, as in the `tokenizers` package.
    merges_.get_or_insert(key, 0) = static_cast<uint64_t>(merge.rank) << 32 | static_cast<uint32_t>(merge.result);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const std::string name = byte_level ? std::string(1, static_cast<char>(byte)) : fmt::format("<0x{:02X}>", byte);
    byte_ids_[byte] = index->find(*tokens, name);
  }
}

void BpeModel::encode(std::string_view piece, BpeScratch* scratch, std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    if (const int32_t id = index_->find(*tokens_, piece); id >= 0) {
      ids->push_back(id);
      return;
    }
  }
  scratch->symbols.clear();
  if (byte_level_) {
    split_bytes(piece, &scratch->symbols);
  } else {
    split_characters(piece, &scratch->symbols);
  }
  if (scratch->symbols.size() <= kShortPiece) {
    merge_short(&scratch->symbols);
  } else {
    merge_long(scratch);
  }
  ids->insert(ids->end(), scratch->symbols.begin(), scratch->symbols.end());
}

void BpeModel::push_unknown(bool after_unknown, std::vector<int32_t>* symbols) const {
  if (unk_id_ >= 0 && !(fuse_unk_ && after_unknown)) symbols->push_back(unk_id_);
}

void BpeModel::split_bytes(std::string_view piece, std::vector<int32_t>* symbols) const {
  bool after_unknown = false;
  for (const char c : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    if (id >= 0) {
      symbols->push_back(id);
    } else {
      push_unknown(after_unknown, symbols);
    }
    after_unknown = id < 0;
  }
}

void BpeModel::split_characters(std::string_view piece, std::vector<int32_t>* symbols) const {
  bool after_unknown = false;
  for (const char *p = piece.data(), *end = p + piece.size(); p < end;) {
    const DecodedChar c = decode_utf8(p, end);
    const std::string_view character(p, c.length);
    p += c.length;
    const int32_t id = index_->find(*tokens_, character);
    if (id >= 0) {
      symbols->push_back(id);
      after_unknown = false;
      continue;
    }
    const auto has_token = [&](char byte) { return byte_ids_[static_cast<uint8_t>(byte)] >= 0; };
    if (byte_fallback_ && std::all_of(character.begin(), character.end(), has_token)) {
      for (const char byte : character) symbols->push_back(byte_ids_[static_cast<uint8_t>(byte)]);
      after_unknown = false;
      continue;
    }
    push_unknown(after_unknown, symbols);
    after_unknown = true;
  }
}

void BpeModel::merge_short(std::vector<int32_t>* symbols) const {
  constexpr uint64_t kNone = ~uint64_t{0};
  uint64_t merge_at[kShortPiece];  // of symbols i and i + 1: rank << 32 | result
  size_t n = symbols->size();
  if (n < 2) return;
  int32_t* s = symbols->data();
  const auto look_up = [&](size_t i) {
    const uint64_t* merge = find_merge(s[i], s[i + 1]);
    return merge ? *merge : kNone;
  };
  for (size_t i = 0; i + 1 < n; ++i) merge_at[i] = look_up(i);
  while (n > 1) {
    // Strictly below: among equal ranks the leftmost is merged.
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (merge_at[i] >> 32 < merge_at[best] >> 32) best = i;
    }
    if (merge_at[best] == kNone) break;
    s[best] = static_cast<int32_t>(static_cast<uint32_t>(merge_at[best]));
    std::copy(s + best + 2, s + n, s + best + 1);
    if (best + 2 < n) std::copy(merge_at + best + 2, merge_at + n - 1, merge_at + best + 1);
    --n;
    if (best + 1 < n) merge_at[best] = look_up(best);
    if (best > 0) merge_at[best - 1] = look_up(best - 1);
  }
  symbols->resize(n);
}

void BpeModel::merge_long(BpeScratch* scratch) const {
  using Candidate = BpeScratch::Candidate;
  auto& nodes = scratch->nodes;
  auto& heap = scratch->heap;
  const auto num_symbols = static_cast<int32_t>(scratch->symbols.size());
  nodes.resize(scratch->symbols.size());
  heap.clear();
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto candidate = [&](int32_t position) {
    const auto& node = nodes[static_cast<size_t>(position)];
    if (node.next < 0) return false;
    const int32_t right = nodes[static_cast<size_t>(node.next)].id;
    const uint64_t* merge = find_merge(node.id, right);
    if (!merge) return false;
    heap.push_back(
        {static_cast<uint32_t>(*merge >> 32), position, node.id, right, static_cast<int32_t>(static_cast<uint32_t>(*merge))});
    return true;
  };
  for (int32_t i = 0; i < num_symbols; ++i) {
    nodes[static_cast<size_t>(i)] = {scratch->symbols[static_cast<size_t>(i)], i - 1, i + 1 < num_symbols ? i + 1 : -1};
  }
  for (int32_t i = 0; i < num_symbols; ++i) candidate(i);
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate top = heap.back();
    heap.pop_back();
    auto& left = nodes[static_cast<size_t>(top.position)];
    if (left.id != top.left || left.next < 0 || nodes[static_cast<size_t>(left.next)].id != top.right) continue;
    auto& right = nodes[static_cast<size_t>(left.next)];
    left.id = top.result;
    left.next = right.next;
    right.id = -1;  // dead: no candidate names it any more
    if (left.next >= 0) nodes[static_cast<size_t>(left.next)].previous = top.position;
    if (candidate(top.position)) std::push_heap(heap.begin(), heap.end(), later);
    if (left.previous >= 0 && candidate(left.previous)) std::push_heap(heap.begin(), heap.end(), later);
  }
  scratch->symbols.clear();
  for (int32_t i = 0; i >= 0; i = nodes[static_cast<size_t>(i)].next)
    scratch->symbols.push_back(nodes[static_cast<size_t>(i)].id);
}

}  // namespace orrery
