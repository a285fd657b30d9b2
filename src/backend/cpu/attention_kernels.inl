// Body of attention_kernels_avx2.cpp and attention_kernels_avx512.cpp.
//
// Source  Dao 2023, "FlashAttention-2", arXiv:2307.08691, Algorithms 1 and 2. Differs: scores are kept transposed, blocks are
//         anchored at the segment start, all sums go in the order of blocks on one thread.
#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/int8_rows.h"
#include "backend/cpu/paged_cache.h"
#include "backend/cpu/transpose.h"
#include "backend/cpu/vector_math.h"

namespace orrery::ORRERY_SIMD {
namespace {

constexpr int64_t B = kAttentionBlock;
constexpr int64_t kVectors = B / kLanes;
// Softmax is computed in base 2: e^x = 2^(x log2 e).
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

ORRERY_INLINE int64_t padded(int64_t n, int64_t granule) { return (n + granule - 1) / granule * granule; }
ORRERY_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
ORRERY_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

ORRERY_INLINE void product(const TileGemm* tile, int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda,
                           const uint16_t* b, int64_t panel_stride, float* c, int64_t ldc, bool accumulate) {
  tile->bf16(m, n, k, a, lda, b, panel_stride, c, ldc, accumulate);
}
ORRERY_INLINE void product(const TileGemm* tile, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                           int64_t panel_stride, float* c, int64_t ldc, bool accumulate) {
  tile->f32(m, n, k, a, lda, b, panel_stride, c, ldc, accumulate);
}

// Hands out parts of the scratch memory; each is a multiple of 64 bytes because B is.
struct Scratch {
  std::byte* next;
  template <typename T>
  T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(next);
    next += count * static_cast<int64_t>(sizeof(T));
    return part;
  }
};

// Which keys the 64 queries of a block see, as numbers in lanes (exact below 2^24): first <= s <= last.
struct Visible {
  F32x16 first[kVectors], last[kVectors];
};

// Running softmax statistics of 64 queries: maximum of the scores times scale * log2 e, sum of 2^(that - maximum).
struct Statistics {
  F32x16 maximum[kVectors], sum[kVectors];
  void reset() {
    for (int64_t c = 0; c < kVectors; ++c) {
      maximum[c] = splat(-__builtin_inff());
      sum[c] = zero();
    }
  }
};

// Writes the pair of rows (s, s + 1) of a [B, 16] panel of the next product's right-hand operand.
ORRERY_INLINE void store_panel_pair(uint16_t* panel, int64_t s, F32x16 even, F32x16 odd) {
  store(reinterpret_cast<int32_t*>(panel + s * 16), pair_words(number_to_bf16_bits(even), number_to_bf16_bits(odd)));
}
ORRERY_INLINE void store_panel_pair(float* panel, int64_t s, F32x16 even, F32x16 odd) {
  store(panel + s * 16, even);
  store(panel + (s + 1) * 16, odd);
}

ORRERY_INLINE void store_number(uint16_t* out, F32x16 a) { store_u16(out, number_to_bf16_bits(a)); }
ORRERY_INLINE void store_number(float* out, F32x16 a) { store(out, a); }

// One block of 64 keys for 16 queries: `emit(s, p, p_next)` receives the probabilities exp(scale * score - maximum) of keys s
// and s + 1; returns the factor by which what was summed before has to shrink. Probabilities are summed before they are
// rounded, in four chains over s mod 4. A query that sees no key yet keeps maximum -inf and sum 0.
template <bool kMasked, typename Emit>
ORRERY_INLINE F32x16 softmax_block(float* scores, int64_t stride, int64_t first_key, float scale, F32x16 first, F32x16 last,
                                   F32x16& maximum, F32x16& sum, Emit&& emit) {
  const F32x16 hidden = splat(-__builtin_inff());
  F32x16 top0 = hidden, top1 = hidden;
  for (int64_t s = 0; s < B; s += 2) {
    F32x16 a = load(scores + s * stride), b = load(scores + (s + 1) * stride);
    if constexpr (kMasked) {
      const F32x16 key = splat(static_cast<float>(first_key + s)), next = splat(static_cast<float>(first_key + s + 1));
      a = select(last < key, hidden, select(key < first, hidden, a));
      b = select(last < next, hidden, select(next < first, hidden, b));
      store(scores + s * stride, a);
      store(scores + (s + 1) * stride, b);
    }
    top0 = max(top0, a);
    top1 = max(top1, b);
  }
  const F32x16 scales = splat(scale);
  const F32x16 next_maximum = max(maximum, max(top0, top1) * scales);
  const F32x16 base = select(next_maximum < splat(-3.0e38f), zero(), next_maximum);
  const F32x16 shrink = exp2_nonpositive(maximum - base);
  const F32x16 minus_base = zero() - base;
  F32x16 sum0 = zero(), sum1 = zero(), sum2 = zero(), sum3 = zero();
  for (int64_t s = 0; s < B; s += 4) {
    const F32x16 p0 = exp2_nonpositive(fma(load(scores + s * stride), scales, minus_base));
    const F32x16 p1 = exp2_nonpositive(fma(load(scores + (s + 1) * stride), scales, minus_base));
    const F32x16 p2 = exp2_nonpositive(fma(load(scores + (s + 2) * stride), scales, minus_base));
    const F32x16 p3 = exp2_nonpositive(fma(load(scores + (s + 3) * stride), scales, minus_base));
    sum0 = sum0 + p0;
    sum1 = sum1 + p1;
    sum2 = sum2 + p2;
    sum3 = sum3 + p3;
    emit(s, p0, p1);
    emit(s + 2, p2, p3);
  }
  maximum = next_maximum;
  sum = fma(sum, shrink, (sum0 + sum1) + (sum2 + sum3));
  return shrink;
}

ORRERY_INLINE F32x16 lane_numbers(int64_t first) {
  alignas(64) float numbers[16];
  for (int i = 0; i < 16; ++i) numbers[i] = static_cast<float>(first + i);
  return load(numbers);
}

// What the 64 queries of a block see, none of it behind the last key.
ORRERY_INLINE Visible visible_keys(const AttentionTask& t, int64_t query_block) {
  Visible visible;
  const F32x16 last_key = splat(static_cast<float>(t.num_keys - 1));
  for (int64_t c = 0; c < kVectors; ++c) {
    const F32x16 query = lane_numbers(t.first_query + query_block * B + c * kLanes);
    visible.last[c] = select(last_key < query, last_key, query);
    visible.first[c] = t.window > 0 ? query - splat(static_cast<float>(t.window - 1)) : zero();
  }
  return visible;
}

// The blocks of keys that a block of queries sees, and the blocks of queries that see a block of keys: the same pairs. Then whether all
// queries of a pair see all its keys.
struct Blocks {
  int64_t first, last;  // inclusive; none when last < first
};
ORRERY_INLINE Blocks key_blocks(const AttentionTask& t, int64_t query_block) {
  const int64_t query = t.first_query + query_block * B;
  return {t.window > 0 ? larger(0, query - t.window + 1) / B : 0, smaller(query + B - 1, t.num_keys - 1) / B};
}
ORRERY_INLINE Blocks query_blocks(const AttentionTask& t, int64_t key_block) {
  const int64_t last = (t.num_tokens - 1) / B, last_seeing = key_block * B + B - 1 + t.window - 1 - t.first_query;
  return {larger(0, key_block * B - t.first_query) / B, t.window == 0 ? last : last_seeing < 0 ? -1 : smaller(last, last_seeing / B)};
}
ORRERY_INLINE bool needs_mask(const AttentionTask& t, int64_t query_block, int64_t key_block) {
  const int64_t query = t.first_query + query_block * B;
  return key_block * B + B - 1 > query || key_block * B + B > t.num_keys || (t.window > 0 && key_block * B <= query + B - 1 - t.window);
}

// Each block of 64 rows transposed on its own, [Hp, 64]: rows a segment apart would share few cache sets.
template <typename T>
ORRERY_INLINE void transpose_blocks(const T* x, int64_t stride, int64_t rows, int64_t width, int64_t padded_width, T* out) {
  for (int64_t row = 0; row < rows; row += B)
    transpose_rows(x + row * stride, stride, smaller(B, rows - row), width, B, padded_width, out + row * padded_width, B);
}

template <typename T>
void forward(const AttentionTask& t) {
  const int64_t L = t.num_tokens, keys = t.num_keys, padded_keys = padded(keys, B), H = t.head_dim, Hp = padded(H, 32);
  Scratch scratch{t.scratch};
  T* k_rows = scratch.take<T>(padded_keys * Hp);
  T* v_transposed = scratch.take<T>(Hp * padded_keys);
  T* q_packed = scratch.take<T>(Hp * B);
  T* p_packed = scratch.take<T>(B * B);
  float* scores = scratch.take<float>(B * B);
  float* o_transposed = scratch.take<float>(Hp * B);
  copy_rows(static_cast<const T*>(t.k), t.k_stride, keys, H, padded_keys, Hp, k_rows);
  transpose_blocks(static_cast<const T*>(t.v), t.v_stride, keys, H, Hp, v_transposed);
  const float scale = t.scale * kLog2E;
  t.tile->begin_thread();
  for (int64_t head = 0; head < t.group; ++head)
    for (int64_t i = 0; i * B < L; ++i) {
      const int64_t rows = smaller(B, L - i * B);
      pack_transposed(static_cast<const T*>(t.q) + i * B * t.q_stride + head * H, t.q_stride, rows, H, B, Hp, q_packed);
      const Visible visible = visible_keys(t, i);
      const Blocks blocks = key_blocks(t, i);
      Statistics statistics;
      statistics.reset();
      for (int64_t j = blocks.first; j <= blocks.last; ++j) {
        product(t.tile, B, B, Hp, k_rows + j * B * Hp, Hp, q_packed, 16 * Hp, scores, B, false);
        const bool masked = needs_mask(t, i, j);
        for (int64_t c = 0; c < kVectors; ++c) {
          T* panel = p_packed + c * 16 * B;
          const auto emit = [&](int64_t s, F32x16 even, F32x16 odd) { store_panel_pair(panel, s, even, odd); };
          const F32x16 shrink = masked ? softmax_block<true>(scores + c * kLanes, B, j * B, scale, visible.first[c],
                                                             visible.last[c], statistics.maximum[c], statistics.sum[c], emit)
                                       : softmax_block<false>(scores + c * kLanes, B, j * B, scale, visible.first[c],
                                                              visible.last[c], statistics.maximum[c], statistics.sum[c], emit);
          if (j > blocks.first)
            for (int64_t h = 0; h < Hp; ++h) {
              float* o = o_transposed + h * B + c * kLanes;
              store(o, load(o) * shrink);
            }
        }
        product(t.tile, Hp, B, B, v_transposed + j * B * Hp, B, p_packed, 16 * B, o_transposed, B, j > blocks.first);
      }
      if (blocks.last < blocks.first)
        for (int64_t h = 0; h < Hp * B; h += kLanes) store(o_transposed + h, zero());
      for (int64_t c = 0; c * kLanes < rows; ++c) {
        const F32x16 sum = statistics.sum[c];
        F32x16 inverse = splat(1.0f) / sum, lse = fma(statistics.maximum[c], splat(kLn2), log(sum));
        if (t.is_piece) {
          inverse = select(zero() < sum, inverse, zero());
          lse = select(zero() < sum, lse, splat(-__builtin_inff()));
        }
        const int64_t count = smaller(kLanes, rows - c * kLanes), row = i * B + c * kLanes;
        store_n(t.lse + head * t.lse_stride + row, lse, count);
        for (int64_t h = 0; h < H; h += 16) {
          F32x16 block[16];
          for (int64_t x = 0; x < 16; ++x) block[x] = load(o_transposed + (h + x) * B + c * kLanes) * inverse;
          transpose_16x16(block);
          const int64_t at = row * t.o_stride + head * H + h, width = smaller(kLanes, H - h);
          for (int64_t x = 0; x < count; ++x) {
            if (t.is_piece)
              store_n(static_cast<float*>(t.o) + at + x * t.o_stride, block[x], width);
            else
              store_n(static_cast<T*>(t.o) + at + x * t.o_stride, block[x], width);
          }
        }
      }
    }
  t.tile->end_thread();
}

// P and dS of one block, from scores and dP: both as left operands (rows of keys), dS as right operand too.
//   P = exp(scale * S - lse),   dS = P (dP - D) scale
template <typename T, bool kMasked>
ORRERY_INLINE void gradient_block(const float* scores, const float* dp, int64_t first_key, float scale, const Visible& visible,
                                  const float* lse, const float* d, T* p_rows, T* ds_rows, T* ds_packed) {
  const F32x16 scales = splat(scale), scales2 = splat(scale * kLog2E);
  for (int64_t c = 0; c < kVectors; ++c) {
    const F32x16 minus_lse = load(lse + c * kLanes) * splat(-kLog2E), mean = load(d + c * kLanes);
    const auto one = [&](int64_t s, F32x16& p, F32x16& ds) {
      const int64_t at = s * B + c * kLanes;
      p = exp2_nonpositive(fma(load(scores + at), scales2, minus_lse));
      if constexpr (kMasked) {
        const F32x16 key = splat(static_cast<float>(first_key + s));
        p = select(visible.last[c] < key, zero(), select(key < visible.first[c], zero(), p));
      }
      ds = (p * (load(dp + at) - mean)) * scales;
      store_number(p_rows + at, p);
      store_number(ds_rows + at, ds);
    };
    for (int64_t s = 0; s < B; s += 2) {
      F32x16 p0, p1, ds0, ds1;
      one(s, p0, ds0);
      one(s + 1, p1, ds1);
      store_panel_pair(ds_packed + c * 16 * B, s, ds0, ds1);
    }
  }
}

// total = block for the first head of the group, total + block after: heads in order.
ORRERY_INLINE void add_block(const float* block, int64_t count, bool first, float* total) {
  for (int64_t i = 0; i < count; i += kLanes) store(total + i, first ? load(block + i) : load(total + i) + load(block + i));
}

// Writes f32 rows [rows, width] (rows `stride` apart) as T.
template <typename T>
ORRERY_INLINE void store_rows(const float* x, int64_t stride, int64_t rows, int64_t width, T* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for_lanes(width, [&](int64_t i, int64_t n) { store_n(out + r * out_stride + i, load_n(x + r * stride + i, n), n); });
}

// Adds to what is there.
ORRERY_INLINE void add_numbers(float* out, F32x16 a, int64_t count) { store_n(out, load_n(out, count) + a, count); }
ORRERY_INLINE void add_rows(const float* x, int64_t stride, int64_t rows, int64_t width, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for_lanes(width, [&](int64_t i, int64_t n) { add_numbers(out + r * out_stride + i, load_n(x + r * stride + i, n), n); });
}

template <typename T>
void backward(const AttentionTask& t) {
  const int64_t L = t.num_tokens, Lp = padded(L, B), keys = t.num_keys, padded_keys = padded(keys, B), H = t.head_dim, Hp = padded(H, 32);
  Scratch scratch{t.scratch};
  T* k_rows = scratch.take<T>(padded_keys * Hp);
  T* v_rows = scratch.take<T>(padded_keys * Hp);
  T* k_transposed = scratch.take<T>(Hp * padded_keys);
  T* q_columns = scratch.take<T>(Lp * Hp);
  T* do_columns = scratch.take<T>(Lp * Hp);
  T* q_packed = scratch.take<T>(Lp * Hp);
  T* do_packed = scratch.take<T>(Lp * Hp);
  T* p_rows = scratch.take<T>(B * B);
  T* ds_rows = scratch.take<T>(B * B);
  T* ds_packed = scratch.take<T>(B * B);
  float* lse = scratch.take<float>(Lp);
  float* d = scratch.take<float>(Lp);
  float* scores = scratch.take<float>(B * B);
  float* dp = scratch.take<float>(B * B);
  float* dk_block = scratch.take<float>(B * Hp);
  float* dv_block = scratch.take<float>(B * Hp);
  float* dk = scratch.take<float>(padded_keys * Hp);
  float* dv = scratch.take<float>(padded_keys * Hp);
  float* dq_transposed = scratch.take<float>(Hp * Lp);
  copy_rows(static_cast<const T*>(t.k), t.k_stride, keys, H, padded_keys, Hp, k_rows);
  copy_rows(static_cast<const T*>(t.v), t.v_stride, keys, H, padded_keys, Hp, v_rows);
  transpose_blocks(static_cast<const T*>(t.k), t.k_stride, keys, H, Hp, k_transposed);
  t.tile->begin_thread();
  for (int64_t head = 0; head < t.group; ++head) {
    const T* q = static_cast<const T*>(t.q) + head * H;
    const T* dout = static_cast<const T*>(t.dout) + head * H;
    pack_transposed(q, t.q_stride, L, H, Lp, Hp, q_columns);
    pack_transposed(dout, t.dout_stride, L, H, Lp, Hp, do_columns);
    for (int64_t row = 0; row < L; row += B) {
      pack_rows(q + row * t.q_stride, t.q_stride, smaller(B, L - row), H, B, Hp, q_packed + row * Hp);
      pack_rows(dout + row * t.dout_stride, t.dout_stride, smaller(B, L - row), H, B, Hp, do_packed + row * Hp);
    }
    for (int64_t row = 0; row < Lp; ++row) {
      // Rows past the end see nothing: their probabilities become 0.
      lse[row] = row < L ? t.lse[head * t.lse_stride + row] : 1e30f;
      F32x16 dot = zero();
      if (row < L) {
        const T* o = static_cast<const T*>(t.o) + row * t.o_stride + head * H;
        for_lanes(H,
                  [&](int64_t i, int64_t n) { dot = fma(load_n(o + i, n), load_n(dout + row * t.dout_stride + i, n), dot); });
      }
      d[row] = reduce_add(dot);
    }
    for (int64_t i = 0; i * B < L; ++i)
      if (const Blocks seen = key_blocks(t, i); seen.last < seen.first)
        for (int64_t h = 0; h < Hp * B; h += kLanes) store(dq_transposed + i * B * Hp + h, zero());
    for (int64_t j = 0; j * B < keys; ++j) {
      const Blocks seeing = query_blocks(t, j);
      if (seeing.last < seeing.first)
        for (int64_t h = 0; h < B * Hp; h += kLanes) {
          store(dk_block + h, zero());
          store(dv_block + h, zero());
        }
      for (int64_t i = seeing.first; i <= seeing.last; ++i) {
        product(t.tile, B, B, Hp, k_rows + j * B * Hp, Hp, q_columns + i * B * Hp, 16 * Hp, scores, B, false);
        product(t.tile, B, B, Hp, v_rows + j * B * Hp, Hp, do_columns + i * B * Hp, 16 * Hp, dp, B, false);
        if (needs_mask(t, i, j))
          gradient_block<T, true>(scores, dp, j * B, t.scale, visible_keys(t, i), lse + i * B, d + i * B, p_rows,
                                  ds_rows, ds_packed);
        else
          gradient_block<T, false>(scores, dp, j * B, t.scale, {}, lse + i * B, d + i * B, p_rows, ds_rows, ds_packed);
        product(t.tile, B, Hp, B, p_rows, B, do_packed + i * B * Hp, 16 * B, dv_block, Hp, i > seeing.first);
        product(t.tile, B, Hp, B, ds_rows, B, q_packed + i * B * Hp, 16 * B, dk_block, Hp, i > seeing.first);
        product(t.tile, Hp, B, B, k_transposed + j * B * Hp, B, ds_packed, 16 * B, dq_transposed + i * B * Hp, B,
                j > key_blocks(t, i).first);
      }
      add_block(dk_block, B * Hp, head == 0, dk + j * B * Hp);
      add_block(dv_block, B * Hp, head == 0, dv + j * B * Hp);
    }
    for (int64_t row = 0; row < L; row += 16)
      for (int64_t h = 0; h < H; h += 16) {
        F32x16 block[16];
        for (int64_t x = 0; x < 16; ++x) block[x] = load(dq_transposed + row / B * B * Hp + (h + x) * B + row % B);
        transpose_16x16(block);
        for (int64_t x = 0; x < smaller(16, L - row); ++x) {
          const int64_t at = (row + x) * t.dq_stride + head * H + h, width = smaller(kLanes, H - h);
          if (t.is_piece)
            add_numbers(static_cast<float*>(t.dq) + at, block[x], width);
          else
            store_n(static_cast<T*>(t.dq) + at, block[x], width);
        }
      }
  }
  t.tile->end_thread();
  if (t.is_piece) {
    add_rows(dk, Hp, keys, H, static_cast<float*>(t.dk), t.dk_stride);
    add_rows(dv, Hp, keys, H, static_cast<float*>(t.dv), t.dv_stride);
    return;
  }
  store_rows(dk, Hp, keys, H, static_cast<T*>(t.dk), t.dk_stride);
  store_rows(dv, Hp, keys, H, static_cast<T*>(t.dv), t.dv_stride);
}

// 64 keys of one kv head, from `first_key` on, as rows; zeros from `rows` on.
template <typename T>
ORRERY_INLINE void gather_keys(const PagedTask& t, int64_t first_key, int64_t rows, int64_t Hp, T* out) {
  constexpr int64_t kPerWord = 4 / sizeof(T);
  for (int64_t s = 0; s < rows; s += kKeyTileTokens) rows_of_tile(cached<T>(t, t.k_cache, first_key + s), t.head_dim / kPerWord, out + s * Hp, Hp / kPerWord);
  copy_rows(out, Hp, 0, 0, B - rows, Hp, out + rows * Hp);
}

// 64 values of one kv head.
template <typename T>
ORRERY_INLINE void gather_values(const PagedTask& t, int64_t first_key, int64_t rows, int64_t Hp, T* out) {
  int64_t s = 0;
  while (s < rows) {
    const int64_t count = smaller(rows - s, t.block_tokens - (first_key + s) % t.block_tokens);
    copy_rows(cached<T>(t, t.v_cache, first_key + s), t.token_stride, count, t.head_dim, count, Hp, out + s * Hp);
    s += count;
  }
  copy_rows(out, Hp, 0, 0, B - rows, Hp, out + rows * Hp);
}

// A block of up to 64 columns: pairs (query row, head of the group), in steps of 16, and what was summed for them.
template <typename T>
struct PagedColumns {
  T* q_packed;  // [Hp, 64]
  float* o_transposed;  // [Hp, 64]
  alignas(64) float first[B], last[B];  // keys that each column sees
  Statistics statistics;
  int64_t first_column, columns, wide;  // wide: with those that fill up the last sixteen
  int64_t first_block, last_block, first_unmasked, last_unmasked;  // of keys, inclusive; all columns see all keys of the unmasked ones

  // `rows`: scratch of [64, Hp]. read_query(c, query, row) makes a query of H numbers the row of column c, with zeros up to Hp.
  template <typename ReadQuery>
  ORRERY_MEMBER void begin(const PagedTask& t, int64_t begin_column, int64_t num_columns, int64_t Hp, T* rows, ReadQuery&& read_query) {
    const int64_t H = t.head_dim;
    first_column = begin_column;
    columns = smaller(B, num_columns - first_column);
    wide = padded(columns, kLanes);
    int64_t least_first = t.context, most_first = 0, least_last = t.context, most_last = 0;
    for (int64_t c = 0; c < wide; ++c) {
      const int64_t column = smaller(first_column + c, num_columns - 1), row = column / t.group, position = t.context - t.num_queries + row;
      const int64_t lowest = t.window > 0 ? larger(0, position - t.window + 1) : 0;
      first[c] = static_cast<float>(lowest);
      last[c] = static_cast<float>(position);
      least_first = smaller(least_first, lowest);
      most_first = larger(most_first, lowest);
      least_last = smaller(least_last, position);
      most_last = larger(most_last, position);
      read_query(c, static_cast<const T*>(t.q) + row * t.q_stride + column % t.group * H, rows + c * Hp);
    }
    pack_transposed(rows, Hp, wide, Hp, wide, Hp, q_packed);
    statistics.reset();
    first_block = least_first / B;
    last_block = most_last / B;
    first_unmasked = (most_first + B - 1) / B;
    last_unmasked = (least_last + 1) / B - 1;
  }

  // Key block j: k_rows [64, Hp], v_transposed [Hp, 64].
  void add(const PagedTask& t, int64_t j, int64_t Hp, const T* k_rows, const T* v_transposed, float* scores, T* p_packed) {
    const float scale = t.scale * kLog2E;
    product(t.tile, B, wide, Hp, k_rows, Hp, q_packed, kLanes * Hp, scores, B, false);
    const bool masked = j < first_unmasked || j > last_unmasked;
    for (int64_t c = 0; c < wide; c += kLanes) {
      T* panel = p_packed + c * B;
      const int64_t v = c / kLanes;
      const auto emit = [&](int64_t s, F32x16 even, F32x16 odd) { store_panel_pair(panel, s, even, odd); };
      const F32x16 shrink = masked ? softmax_block<true>(scores + c, B, j * B, scale, load(first + c), load(last + c), statistics.maximum[v], statistics.sum[v], emit)
                                   : softmax_block<false>(scores + c, B, j * B, scale, load(first + c), load(last + c), statistics.maximum[v], statistics.sum[v], emit);
      if (j > first_block)
        for (int64_t h = 0; h < Hp; ++h) store(o_transposed + h * B + c, load(o_transposed + h * B + c) * shrink);
    }
    product(t.tile, Hp, wide, B, v_transposed, B, p_packed, kLanes * B, o_transposed, B, j > first_block);
  }

  void finish(const PagedTask& t) const {
    const int64_t H = t.head_dim;
    for (int64_t c = 0; c < columns; c += kLanes) {
      const F32x16 inverse = splat(1.0f) / statistics.sum[c / kLanes];
      for (int64_t h = 0; h < H; h += kLanes) {
        F32x16 block[16];
        for (int64_t x = 0; x < 16; ++x) block[x] = load(o_transposed + (h + x) * B + c) * inverse;
        transpose_16x16(block);
        for (int64_t x = 0; x < smaller(kLanes, columns - c); ++x) {
          const int64_t column = first_column + c + x;
          store_n(static_cast<T*>(t.o) + column / t.group * t.o_stride + column % t.group * H + h, block[x], smaller(kLanes, H - h));
        }
      }
    }
  }
};

// A block of keys is gathered once for kPagedColumnBlocks blocks of columns: begin(block, column), gather(first_key, rows), add(block, j).
template <typename Columns, typename Begin, typename Gather, typename Add>
ORRERY_INLINE void fold_keys(const PagedTask& t, Columns (&blocks)[kPagedColumnBlocks], Begin&& begin, Gather&& gather, Add&& add) {
  const int64_t num_columns = t.num_queries * t.group;
  t.tile->begin_thread();
  for (int64_t column = 0; column < num_columns;) {
    int64_t count = 0, first_block = t.context, last_block = 0;
    for (; count < kPagedColumnBlocks && column < num_columns; ++count, column += B) {
      begin(blocks[count], column);
      first_block = smaller(first_block, blocks[count].first_block);
      last_block = larger(last_block, blocks[count].last_block);
    }
    for (int64_t j = first_block; j <= last_block; ++j) {
      gather(j * B, smaller(B, t.context - j * B));
      for (int64_t i = 0; i < count; ++i)
        if (blocks[i].first_block <= j && j <= blocks[i].last_block) add(blocks[i], j);
    }
    for (int64_t i = 0; i < count; ++i) blocks[i].finish(t);
  }
  t.tile->end_thread();
}

// The order of every sum is that of forward(), with key blocks anchored at position 0, and does not depend on how many columns there are.
template <typename T>
void paged(const PagedTask& t) {
  const int64_t H = t.head_dim, Hp = padded(H, 32), num_columns = t.num_queries * t.group;
  Scratch scratch{t.scratch};
  T* k_rows = scratch.take<T>(B * Hp);
  T* v_rows = scratch.take<T>(B * Hp);
  T* v_transposed = scratch.take<T>(B * Hp);
  T* p_packed = scratch.take<T>(B * B);
  float* scores = scratch.take<float>(B * B);
  PagedColumns<T> blocks[kPagedColumnBlocks];
  for (PagedColumns<T>& block : blocks) {
    block.q_packed = scratch.take<T>(B * Hp);
    block.o_transposed = scratch.take<float>(B * Hp);
  }
  const auto begin = [&](PagedColumns<T>& block, int64_t column) {
    block.begin(t, column, num_columns, Hp, k_rows, [&](int64_t, const T* query, T* row) { copy_rows(query, 0, 1, H, 1, Hp, row); });
  };
  const auto gather = [&](int64_t first_key, int64_t rows) {
    gather_values(t, first_key, rows, Hp, v_rows);
    transpose_rows(v_rows, Hp, B, Hp, B, Hp, v_transposed, B);
    gather_keys(t, first_key, rows, Hp, k_rows);
  };
  fold_keys(t, blocks, begin, gather, [&](PagedColumns<T>& block, int64_t j) { block.add(t, j, Hp, k_rows, v_transposed, scores, p_packed); });
}

#include "backend/cpu/paged_int8.inl"

template <typename T>
constexpr AttentionKernels kTable = {forward<T>, backward<T>, paged<T>, paged_int8<T>, quantized_head<T>};

}  // namespace

extern const AttentionKernels kAttentionBf16, kAttentionF32;
const AttentionKernels kAttentionBf16 = kTable<uint16_t>;
const AttentionKernels kAttentionF32 = kTable<float>;

}  // namespace orrery::ORRERY_SIMD
