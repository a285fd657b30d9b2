// The block kernel over a cache in 8 bits; part of attention_kernels.inl. Codes are whole numbers of 8 bits and so exact in bf16 and f32, and all
// sums stay below 2^24: the products of tile_gemm.h give them exactly, whatever their arithmetic id. The 15 bits of a weighed probability go as
// two products, of the upper 7 and the lower 8; fma(256, upper, lower) rounds their exact sum once, as the conversion of an i32 does.

ORRERY_INLINE F32x16 load_codes(const int8_t* p) {
#if ORRERY_SIMD_AVX512
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
#else
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)))};
#endif
}

// H codes as numbers, zeros up to Hp.
template <typename T>
ORRERY_INLINE void widen_codes(const int8_t* codes, int64_t H, int64_t Hp, T* out) {
  for (int64_t i = 0; i < Hp; i += kLanes) {
    alignas(16) int8_t last[16] = {};
    const int8_t* from = codes + i;
    if (H - i < kLanes) {
      if (H > i) __builtin_memcpy(last, from, static_cast<size_t>(H - i));
      from = last;
    }
    store_same(out + i, load_codes(from));
  }
}

// 64 heads in 8 bits as numbers, and their scales: codes(s) is where the s-th stands; zeros from `rows` on.
template <typename T, typename Codes>
ORRERY_INLINE void widen_rows(int64_t H, int64_t rows, int64_t Hp, T* out, float (&scales)[B], Codes&& codes) {
  for (int64_t s = 0; s < B; ++s) {
    if (s >= rows) {
      scales[s] = 0;
      for (int64_t i = 0; i < Hp; i += kLanes) store_same(out + s * Hp + i, zero());
      continue;
    }
    const int8_t* row = codes(s);
    widen_codes(row, H, Hp, out + s * Hp);
    scales[s] = scale_of_head(row, H);
  }
}

template <typename T>
ORRERY_INLINE void gather_value_codes(const PagedTask& t, int64_t first_key, int64_t rows, int64_t Hp, T* out, float (&scales)[B]) {
  widen_rows(t.head_dim, rows, Hp, out, scales, [&](int64_t s) { return cached<int8_t>(t, t.v_cache, first_key + s); });
}

template <typename T>
ORRERY_INLINE void gather_key_codes(const PagedTask& t, int64_t first_key, int64_t rows, int64_t Hp, T* out, float (&scales)[B]) {
  alignas(64) int8_t tile[kKeyTileTokens * pad_to(kv_int8_head_bytes(kKvInt8HeadMost), 64)];
  const int64_t words = kv_int8_head_bytes(t.head_dim) / 4, row_words = padded(words, kLanes);
  widen_rows(t.head_dim, rows, Hp, out, scales, [&](int64_t s) {
    if (s % kKeyTileTokens == 0) rows_of_tile(cached<int8_t>(t, t.k_cache, first_key + s), words, tile, row_words);
    return tile + s % kKeyTileTokens * row_words * 4;
  });
}

// For 16 columns: the codes of w[s] = p[s] * scale[s], their upper and lower part as panels of [64, 16]; returns the codes' unit. p is lost.
template <typename T>
ORRERY_INLINE F32x16 weigh_columns(float (&p)[B * kLanes], const float (&scales)[B], T* upper, T* lower) {
  F32x16 top = zero(), poison = zero();
  for (int64_t s = 0; s < B; ++s) {
    const F32x16 w = load(p + s * kLanes) * splat(scales[s]);
    top = max(top, w);
    poison = fma(w, zero(), poison);
    store(p + s * kLanes, w);
  }
  const F32x16 inverse = select(zero() < top, splat(kInt16Most) / top, zero());
  for (int64_t s = 0; s < B; s += 2) {
    const I32x16 even = to_i32(load(p + s * kLanes) * inverse), odd = to_i32(load(p + (s + 1) * kLanes) * inverse);
    store_panel_pair(upper, s, to_f32(shift_right<8>(even)), to_f32(shift_right<8>(odd)));
    store_panel_pair(lower, s, to_f32(even & splat_i32(255)), to_f32(odd & splat_i32(255)));
  }
  return top / splat(kInt16Most) + poison;
}

// What column blocks share: a block of keys and values, and what is made of it.
template <typename T>
struct Int8Block {
  T *k_rows, *v_transposed;        // [64, Hp], [Hp, 64]
  T *p_upper, *p_lower;            // panels of [64, 64]
  float* scores;                   // [64, 64]
  float *sums_upper, *sums_lower;  // [Hp, 64]
  alignas(64) float k_scales[B], v_scales[B];
};

template <typename T>
struct Int8Columns : PagedColumns<T> {
  alignas(64) float q_scales[B];

  // `o_transposed` starts from zeros: each block is added by the same FMA.
  void begin_columns(const PagedTask& t, int64_t column, int64_t Hp, T* rows) {
    this->begin(t, column, t.num_queries * t.group, Hp, rows, [&](int64_t c, const T* query, T* row) {
      alignas(64) int8_t codes[kKvInt8HeadMost];
      q_scales[c] = quantize_head(query, t.head_dim, codes);
      widen_codes(codes, t.head_dim, Hp, row);
    });
    for (int64_t i = 0; i < B * Hp; i += kLanes) store(this->o_transposed + i, zero());
  }

  void add(const PagedTask& t, int64_t j, int64_t Hp, const Int8Block<T>& block) {
    const float scale = t.scale * kLog2E;
    const int64_t num_columns = this->wide;
    float* scores = block.scores;
    alignas(64) float shrinks[B], units[B];
    product(t.tile, B, num_columns, Hp, block.k_rows, Hp, this->q_packed, kLanes * Hp, scores, B, false);
    const bool masked = j < this->first_unmasked || j > this->last_unmasked;
    for (int64_t c = 0; c < num_columns; c += kLanes) {
      const F32x16 of_queries = load(q_scales + c), lowest = load(this->first + c), highest = load(this->last + c);
      for (int64_t s = 0; s < B; ++s) store(scores + s * B + c, load(scores + s * B + c) * (of_queries * splat(block.k_scales[s])));
      alignas(64) float p[B * kLanes];
      const auto emit = [&](int64_t s, F32x16 even, F32x16 odd) {
        store(p + s * kLanes, even);
        store(p + (s + 1) * kLanes, odd);
      };
      F32x16 &maximum = this->statistics.maximum[c / kLanes], &sum = this->statistics.sum[c / kLanes];
      store(shrinks + c, masked ? softmax_block<true>(scores + c, B, j * B, scale, lowest, highest, maximum, sum, emit)
                                : softmax_block<false>(scores + c, B, j * B, scale, lowest, highest, maximum, sum, emit));
      store(units + c, weigh_columns(p, block.v_scales, block.p_upper + c * B, block.p_lower + c * B));
    }
    product(t.tile, Hp, num_columns, B, block.v_transposed, B, block.p_upper, kLanes * B, block.sums_upper, B, false);
    product(t.tile, Hp, num_columns, B, block.v_transposed, B, block.p_lower, kLanes * B, block.sums_lower, B, false);
    for (int64_t c = 0; c < num_columns; c += kLanes) {
      const F32x16 unit = load(units + c), shrink = load(shrinks + c);
      for (int64_t at = c; at < Hp * B; at += B) {
        const F32x16 sum = fma(splat(256.0f), load(block.sums_upper + at), load(block.sums_lower + at));
        store(this->o_transposed + at, fma(sum, unit, load(this->o_transposed + at) * shrink));
      }
    }
  }
};

template <typename T>
void paged_int8(const PagedTask& t) {
  const int64_t Hp = padded(t.head_dim, 32);
  Scratch scratch{t.scratch};
  Int8Block<T> block;
  block.k_rows = scratch.take<T>(B * Hp);
  block.v_transposed = scratch.take<T>(B * Hp);
  block.p_upper = scratch.take<T>(B * B);
  block.p_lower = scratch.take<T>(B * B);
  block.scores = scratch.take<float>(B * B);
  block.sums_upper = scratch.take<float>(B * Hp);
  block.sums_lower = scratch.take<float>(B * Hp);
  Int8Columns<T> columns[kPagedColumnBlocks];
  for (Int8Columns<T>& part : columns) {
    part.q_packed = scratch.take<T>(B * Hp);
    part.o_transposed = scratch.take<float>(B * Hp);
  }
  const auto begin = [&](Int8Columns<T>& part, int64_t column) { part.begin_columns(t, column, Hp, block.k_rows); };
  const auto gather = [&](int64_t first_key, int64_t rows) {
    gather_value_codes(t, first_key, rows, Hp, block.k_rows, block.v_scales);
    transpose_rows(block.k_rows, Hp, B, Hp, B, Hp, block.v_transposed, B);
    gather_key_codes(t, first_key, rows, Hp, block.k_rows, block.k_scales);
  };
  fold_keys(t, columns, begin, gather, [&](Int8Columns<T>& part, int64_t j) { part.add(t, j, Hp, block); });
}

template <typename T>
float quantized_head(const void* x, int64_t H, int8_t* codes) {
  return quantize_head(static_cast<const T*>(x), H, codes);
}
