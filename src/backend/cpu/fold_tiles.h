// The weight gradient's fold inside a cache: tiles of dweight, each the fold over sequences of dy^T x, with dy already
// transposed or packed and x in panels (NUMERICS rules 3 and 4). Used by the weight gradients of linear layers and of the head.
#pragma once

#include <cstring>

#include "backend/cpu/fold.h"
#include "backend/cpu/gemm.h"

namespace orrery {

/// Where the sequences stand in the packed x and the transposed dy, and the largest tile.
template <typename T>
struct FoldTiles {
  int64_t k = 0;              // columns of dweight
  int64_t padded_tokens = 0;  // of a sequence
  int64_t panel_stride = 0, sequence_elements = 0;
  int64_t dy_stride = 0;          // elements from one row of the transposed dy to the next; packed: from one panel to the next
  int64_t dy_sequence = 0;        // from one sequence to the next
  bool dy_is_packed = false;      // in panels, as TileFoldBf16 takes it
  int64_t rows = 0, columns = 0;  // of a tile
  T* x = nullptr;                 // [sequences][panels]

  /// All but dy_stride, rows and x.
  static FoldTiles of(int64_t k, const GradFold& fold) {
    FoldTiles tiles;
    tiles.k = k;
    tiles.padded_tokens = round_up(fold.sequence_tokens, kGranuleK);
    tiles.columns = std::min<int64_t>(96, round_up(k, kPanelColumns));
    tiles.panel_stride = TileOf<T>::panel_elements(fold.sequence_tokens);
    tiles.sequence_elements = round_up(k, kPanelColumns) / kPanelColumns * tiles.panel_stride;
    return tiles;
  }
};

/// tiles.x = the panels of x [sequences * tokens, k].
template <typename T>
void pack_sequences(const KernelContext& context, const FoldTiles<T>& tiles, const T* x, int64_t ldx, const GradFold& fold) {
  // 256 columns at a time: whole cache lines of x, and enough pieces for every thread.
  constexpr int64_t kColumns = 256;
  const TileOf<T> tile{tile_gemm(context)};
  const int64_t pieces = (tiles.k + kColumns - 1) / kColumns;
  context.pool->parallel_for(fold.num_sequences * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sequence = i / pieces, column = i % pieces * kColumns;
      tile.pack_rows(
          fold.sequence_tokens, std::min(kColumns, tiles.k - column), x + sequence * fold.sequence_tokens * ldx + column, ldx,
          tiles.x + sequence * tiles.sequence_elements + column / kPanelColumns * tiles.panel_stride, tiles.panel_stride);
    }
  });
}

inline void copy_block(int64_t rows, int64_t columns, const float* from, int64_t ld_from, float* to, int64_t ld_to) {
  for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * ld_to, from + i * ld_from, columns * sizeof(float));
}

/// One tile of dweight, columns [column, column + columns) of `rows` rows. Where the tile is whole panels wide the bottom of
/// the stack is the destination itself.
template <typename T>
void fold_tile(const TileOf<T>& tile, const GemmRows& functions, const FoldTiles<T>& tiles, const GradFold& fold,
               const T* transposed, int64_t rows, int64_t column, int64_t columns, float* destination, int64_t ldw,
               float* stack) {
  const bool in_place = columns % kPanelColumns == 0;
  const auto entry = [&](int64_t i) { return i == 0 && in_place ? destination : stack + i * tiles.rows * tiles.columns; };
  const auto stride = [&](int64_t i) { return i == 0 && in_place ? ldw : tiles.columns; };
  int64_t depth = 0;
  if (fold.add_to_destination) {
    if (!in_place) copy_block(rows, columns, destination, ldw, entry(0), stride(0));
    depth = 1;
  }
  const int64_t summed = round_up(fold.sequence_tokens, TileOf<T>::kGranule), padded_columns = round_up(columns, kPanelColumns);
  for (int64_t s = 0; s < fold.num_sequences; ++s) {
    ORRERY_CHECK(depth < kFoldEntries, "fold deeper than {}", kFoldEntries);
    const T* dy = transposed + s * tiles.dy_sequence;
    const T* x = tiles.x + s * tiles.sequence_elements + column / kPanelColumns * tiles.panel_stride;
    // The first product fetches what the sums will be added to.
    TilePrefetch next{destination, ldw * 4, columns * 4, s == 0 ? rows : 0};
    int merges = fold.merges[s];
    if (tile.has_fold()) {
      // The first merge is in the product.
      const bool adds = merges > 0;
      ORRERY_CHECK(!adds || depth >= 1, "merge of {} entries", depth + 1);
      const int64_t at = adds ? depth - 1 : depth;
      // The others fetch the first rows of the next sequence.
      constexpr int64_t kRowsAhead = 24;
      if (s > 0 && s + 1 < fold.num_sequences && !tiles.dy_is_packed)
        next = {dy + tiles.dy_sequence, tiles.dy_stride * int64_t{sizeof(T)}, summed * int64_t{sizeof(T)}, std::min(rows, kRowsAhead)};
      tile.fold(rows, padded_columns, summed, dy, tiles.dy_stride, tiles.dy_is_packed, x, tiles.panel_stride, entry(at), stride(at), adds, next);
      depth = at + 1;
      merges -= adds;
    } else {
      tile.multiply(rows, padded_columns, summed, dy, tiles.dy_stride, x, tiles.panel_stride, entry(depth), stride(depth), false, next);
      ++depth;
    }
    for (; merges > 0; --merges) {
      ORRERY_CHECK(depth >= 2, "merge of {} entries", depth);
      functions.add_blocks(rows, columns, entry(depth - 2), stride(depth - 2), entry(depth - 1), stride(depth - 1));
      --depth;
    }
  }
  ORRERY_CHECK(depth == 1, "a fold left {} entries", depth);
  if (!in_place) copy_block(rows, columns, entry(0), stride(0), destination, ldw);
}

/// At most tiles.rows whole rows of dweight. `stack` has room for kFoldEntries tiles.
template <typename T>
void fold_rows(const TileOf<T>& tile, const GemmRows& functions, const FoldTiles<T>& tiles, const GradFold& fold,
               const T* transposed, int64_t rows, float* dweight, int64_t ldw, float* stack) {
  for (int64_t column = 0; column < tiles.k; column += tiles.columns)
    fold_tile(tile, functions, tiles, fold, transposed, rows, column, std::min(tiles.columns, tiles.k - column),
              dweight + column, ldw, stack);
}

}  // namespace orrery
