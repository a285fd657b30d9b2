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

// 64 keys or values of one kv head from their cache blocks, and their scales; zeros from `rows` on.
template <typename T>
ORRERY_INLINE void gather_codes(const PagedTask& t, const void* cache, int64_t first_key, int64_t rows, int64_t Hp, T* out, float (&scales)[B]) {
  for (int64_t s = 0; s < B; ++s) {
    if (s >= rows) {
      scales[s] = 0;
      for (int64_t i = 0; i < Hp; i += kLanes) store_same(out + s * Hp + i, zero());
      continue;
    }
    const int64_t position = first_key + s, slot = t.block_table[position / t.block_tokens] * t.block_tokens + position % t.block_tokens;
    const int8_t* codes = static_cast<const int8_t*>(cache) + slot * t.token_stride;
    widen_codes(codes, t.head_dim, Hp, out + s * Hp);
    scales[s] = scale_of_head(codes, t.head_dim);
  }
}

// In place, for 16 columns: w[s] = p[s] * scale[s] becomes the upper and the lower part of its code; returns the unit of the codes.
ORRERY_INLINE F32x16 weigh_column(float* p, float* upper, const float (&scales)[B]) {
  F32x16 top = zero(), poison = zero();
  for (int64_t s = 0; s < B; ++s) {
    const F32x16 w = load(p + s * B) * splat(scales[s]);
    top = max(top, w);
    poison = fma(w, zero(), poison);
    store(p + s * B, w);
  }
  const F32x16 inverse = select(zero() < top, splat(kInt16Most) / top, zero());
  for (int64_t s = 0; s < B; ++s) {
    const I32x16 code = to_i32(load(p + s * B) * inverse);
    store(upper + s * B, to_f32(shift_right<8>(code)));
    store(p + s * B, to_f32(code & splat_i32(255)));
  }
  return top / splat(kInt16Most) + poison;
}

// Columns as in paged().
template <typename T>
void paged_int8(const PagedTask& t) {
  const int64_t H = t.head_dim, Hp = padded(H, 32), num_columns = t.num_queries * t.group;
  Scratch scratch{t.scratch};
  T* rows_of_block = scratch.take<T>(B * Hp);
  T* v_packed = scratch.take<T>(B * Hp);
  T* q_packed = scratch.take<T>(B * Hp);
  T* p_upper = scratch.take<T>(B * B);
  T* p_lower = scratch.take<T>(B * B);
  float* scores = scratch.take<float>(B * B);
  float* p_transposed = scratch.take<float>(B * B);
  float* turned = scratch.take<float>(B * B);
  float* o = scratch.take<float>(B * Hp);
  float* o_upper = scratch.take<float>(B * Hp);
  float* o_lower = scratch.take<float>(B * Hp);
  const float scale = t.scale * kLog2E;
  alignas(64) int8_t codes[kKvInt8HeadMost];
  t.tile->begin_thread();
  for (int64_t first_column = 0; first_column < num_columns; first_column += B) {
    const int64_t columns = smaller(B, num_columns - first_column), wide = padded(columns, 16), tall = padded(columns, 32);
    alignas(64) float last[B], first[B], shrinks[B], units[B], q_scales[B], k_scales[B], v_scales[B];
    int64_t first_key = t.context;
    for (int64_t c = 0; c < wide; ++c) {
      const int64_t column = smaller(first_column + c, num_columns - 1), row = column / t.group;
      const int64_t position = t.context - t.num_queries + row;
      const int64_t lowest = t.window > 0 ? larger(0, position - t.window + 1) : 0;
      last[c] = static_cast<float>(position);
      first[c] = static_cast<float>(lowest);
      first_key = smaller(first_key, lowest);
      q_scales[c] = quantize_head(static_cast<const T*>(t.q) + row * t.q_stride + column % t.group * H, H, codes);
      widen_codes(codes, H, Hp, rows_of_block + c * Hp);
    }
    pack_transposed(rows_of_block, Hp, wide, Hp, wide, Hp, q_packed);
    Statistics statistics;
    statistics.reset();
    for (int64_t i = 0; i < B * Hp; i += kLanes) store(o + i, zero());
    const int64_t first_block = first_key / B, last_block = static_cast<int64_t>(last[wide - 1]) / B;
    for (int64_t j = first_block; j <= last_block; ++j) {
      const int64_t rows = smaller(B, t.context - j * B);
      gather_codes(t, t.v_cache, j * B, rows, Hp, rows_of_block, v_scales);
      pack_rows(rows_of_block, Hp, B, Hp, B, Hp, v_packed);
      gather_codes(t, t.k_cache, j * B, rows, Hp, rows_of_block, k_scales);
      product(t.tile, B, wide, Hp, rows_of_block, Hp, q_packed, 16 * Hp, scores, B, false);
      for (int64_t c = 0; c < wide; c += kLanes) {
        const F32x16 of_queries = load(q_scales + c);
        for (int64_t s = 0; s < B; ++s) store(scores + s * B + c, load(scores + s * B + c) * (of_queries * splat(k_scales[s])));
        const auto emit = [&](int64_t s, F32x16 even, F32x16 odd) {
          store(p_transposed + s * B + c, even);
          store(p_transposed + (s + 1) * B + c, odd);
        };
        const int64_t v = c / kLanes;
        store(shrinks + c, softmax_block<true>(scores + c, B, j * B, scale, load(first + c), load(last + c), statistics.maximum[v], statistics.sum[v], emit));
        store(units + c, weigh_column(p_transposed + c, scores + c, v_scales));
      }
      for (int64_t c = wide; c < tall; c += kLanes)
        for (int64_t s = 0; s < B; ++s) {
          store(p_transposed + s * B + c, zero());
          store(scores + s * B + c, zero());
        }
      const auto as_rows = [&](const float* from, T* to) {
        transpose_rows(from, B, B, tall, B, tall, turned, B);
        for (int64_t i = 0; i < tall * B; i += kLanes) store_number(to + i, load(turned + i));
      };
      as_rows(scores, p_upper);
      as_rows(p_transposed, p_lower);
      product(t.tile, tall, Hp, B, p_upper, B, v_packed, 16 * B, o_upper, Hp, false);
      product(t.tile, tall, Hp, B, p_lower, B, v_packed, 16 * B, o_lower, Hp, false);
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t h = c * Hp; h < (c + 1) * Hp; h += kLanes) {
          const F32x16 sum = fma(splat(256.0f), load(o_upper + h), load(o_lower + h));
          store(o + h, fma(sum, splat(units[c]), load(o + h) * splat(shrinks[c])));
        }
    }
    alignas(64) float inverse[B];
    for (int64_t c = 0; c < wide; c += kLanes) store(inverse + c, splat(1.0f) / statistics.sum[c / kLanes]);
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t column = first_column + c;
      T* out = static_cast<T*>(t.o) + column / t.group * t.o_stride + column % t.group * H;
      for_lanes(H, [&](int64_t h, int64_t n) { store_n(out + h, load_n(o + c * Hp + h, n) * splat(inverse[c]), n); });
    }
  }
  t.tile->end_thread();
}

template <typename T>
float quantized_head(const void* x, int64_t H, int8_t* codes) {
  return quantize_head(static_cast<const T*>(x), H, codes);
}
