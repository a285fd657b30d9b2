// kKvWrite and kPagedAttention: serving attention over a cache of blocks (NUMERICS rule 13).
//
// Keys and values are read from the cache only, the current chunk's too, in blocks of 64 positions anchored at position 0 and
// folded in order; the products follow the arithmetic id, over a cache in 8 bits that of paged_int8.h. A query row's bits therefore depend neither on how many rows its
// sequence brings (decoded alone or prefilled in a chunk), nor on cache block size or placement, nor on other sequences.
// Threads take contiguous ranges of about equal work of all (sequence, kv head) pairs, whole ones where a sequence brings few rows; what a thread has of
// such a sequence is one task.
#include <algorithm>
#include <cstring>

#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/ops.h"
#include "backend/cpu/paged_decode.h"
#include "backend/cpu/paged_int8.h"
#include "ir/kv_format.h"

namespace orrery {
namespace {

// Bytes of a token's keys, or values, in the cache.
int64_t cached_row_bytes(const AttentionAttributes& a, DType cache_dtype) {
  return a.num_kv_heads * (cache_dtype == DType::kI8 ? kv_int8_head_bytes(a.head_dim) : a.head_dim * dtype_bytes(cache_dtype));
}

void run_kv_write(const KernelContext& context, const OpCall& call) {
  const auto& a = call.attribute<AttentionAttributes>();
  const TensorView &k = call.in(0), &v = call.in(1), &slots = call.in(2), &k_cache = call.out(0), &v_cache = call.out(1);
  const int64_t row_bytes = cached_row_bytes(a, k_cache.dtype), num_slots = k_cache.dims[0] * k_cache.dims[1];
  const int64_t head_bytes = row_bytes / a.num_kv_heads;
  const bool int8 = k_cache.dtype == DType::kI8;
  ORRERY_CHECK(k_cache.dims[1] % kKeyTileTokens == 0 && head_bytes % 4 == 0, "kv_write: blocks of {}, heads of {} bytes", k_cache.dims[1], head_bytes);
  ORRERY_CHECK(k_cache.num_dims == 3 && k_cache.dims[2] * dtype_bytes(k_cache.dtype) == row_bytes && (int8 || k_cache.dtype == k.dtype) && k.row_width() == a.num_kv_heads * a.head_dim,
               "kv_write of {} to {}", k.row_width(), k_cache.dims[2]);
  ORRERY_CHECK(k_cache.contiguous() && v_cache.contiguous() && v.row_width() == k.row_width(), "kv_write: caches");
  const int32_t* slot = slots.as<int32_t>();
  const AttentionKernels& kernels = attention_kernels(context.isa, k.dtype);
  // A head as the cache has it, in `codes` where that is not how it comes.
  const auto stored_head = [&](const TensorView& from, int64_t row, int64_t head, std::byte* codes) -> const std::byte* {
    const std::byte* numbers = row_at(from, row) + head * a.head_dim * dtype_bytes(from.dtype);
    if (!int8) return numbers;
    const float scale = kernels.quantize_head(numbers, a.head_dim, reinterpret_cast<int8_t*>(codes));
    std::memcpy(codes + head_bytes - sizeof scale, &scale, sizeof scale);
    return codes;
  };
  parallel_rows(*context.pool, k.rows(), 2 * row_bytes, [&](int64_t begin, int64_t end) {
    std::byte codes[kv_int8_head_bytes(kKvInt8HeadMost)] = {};
    for (int64_t row = begin; row < end; ++row) {
      ORRERY_CHECK(slot[row] >= 0 && slot[row] < num_slots, "slot {} of {}", slot[row], num_slots);
      const int64_t lane = slot[row] % kKeyTileTokens;
      std::byte* key = k_cache.data + (slot[row] - lane) * row_bytes + 4 * lane;
      std::byte* value = v_cache.data + slot[row] * row_bytes;
      for (int64_t head = 0; head < a.num_kv_heads; ++head, key += kKeyTileTokens * head_bytes, value += head_bytes) {
        const std::byte* words = stored_head(k, row, head, codes);
        for (int64_t at = 0; at < head_bytes; at += 4) std::memcpy(key + kKeyTileTokens * at, words + at, 4);
        std::memcpy(value, stored_head(v, row, head, codes), static_cast<size_t>(head_bytes));
      }
    }
  });
}

int64_t scratch_bytes(const OpCall& call) {
  const auto& a = call.attribute<AttentionAttributes>();
  const int64_t element_bytes = dtype_bytes(call.in(0).dtype);
  const int64_t block = call.in(1).dtype == DType::kI8 ? paged_int8_scratch_bytes(a.head_dim, element_bytes) : paged_scratch_bytes(a.head_dim, element_bytes);
  return std::max(block, paged_decode_scratch_bytes(a.num_heads, a.head_dim));
}
int64_t paged_workspace(const DeviceSpec& device, const OpCall& call) { return device.num_threads * scratch_bytes(call); }

// Key blocks times column blocks of 16, about proportional to time; reading the keys counts as one column block.
double sequence_work(int64_t context, int64_t columns) {
  return static_cast<double>(context / kAttentionBlock + 1) * (static_cast<double>((columns + 15) / 16) + 1);
}

/// Rows of a sequence that take part `fraction` of its work, from its first row on: 0 for 0, all for 1 and above, or a multiple of kRowUnit. A row's work
/// goes with the blocks of keys that it sees.
int64_t rows_of_work(double fraction, int64_t rows, int64_t context) {
  constexpr int64_t kRowUnit = 16;
  if (fraction <= 0) return 0;
  const auto work = [&](int64_t count) {
    const double before = static_cast<double>(context - rows) / kAttentionBlock + 1, own = static_cast<double>(count) / (2 * kAttentionBlock);
    return static_cast<double>(count) * (before + own);
  };
  int64_t count = 0;
  while (count < rows && work(count) < fraction * work(rows)) count += kRowUnit;
  return std::min(count, rows);
}

void run_paged_attention(const KernelContext& context, const OpCall& call) {
  const auto& a = call.attribute<AttentionAttributes>();
  const TensorView &q = call.in(0), &k_cache = call.in(1), &v_cache = call.in(2), &block_table = call.in(3), &o = call.out(0);
  const int32_t* context_lens = call.in(4).as<int32_t>();
  const int32_t* starts = call.in(5).as<int32_t>();
  const int64_t num_sequences = call.in(4).rows(), group = a.num_heads / a.num_kv_heads, H = a.head_dim;
  ORRERY_CHECK(a.num_heads % a.num_kv_heads == 0 && H % 2 == 0 && a.scale > 0 && a.block_tokens > 0 && a.block_tokens % kKeyTileTokens == 0,
               "paged_attention attributes");
  const bool int8 = k_cache.dtype == DType::kI8;
  const int64_t row_bytes = cached_row_bytes(a, k_cache.dtype), head_bytes = row_bytes / a.num_kv_heads;
  ORRERY_CHECK(k_cache.num_dims == 3 && k_cache.dims[1] == a.block_tokens && k_cache.dims[2] * dtype_bytes(k_cache.dtype) == row_bytes && (int8 || k_cache.dtype == q.dtype),
               "cache of {} x {}", k_cache.dims[1], k_cache.dims[2]);
  ORRERY_CHECK(!int8 || H <= kKvInt8HeadMost, "a cache in 8 bits with heads of {}", H);
  const int64_t scratch = scratch_bytes(call);
  ORRERY_CHECK(context.pool->num_threads() * scratch <= static_cast<int64_t>(call.workspace.size()),
               "paged_attention: workspace");
  double total = 0;
  for (int64_t s = 0; s < num_sequences; ++s) {
    const int64_t rows = starts[s + 1] - starts[s];
    ORRERY_CHECK(rows >= 0 && rows <= context_lens[s] && context_lens[s] <= block_table.row_width() * a.block_tokens,
                 "sequence {}: {} rows, {} tokens, {} blocks of {}", s, rows, context_lens[s], block_table.row_width(),
                 a.block_tokens);
    if (rows > 0) total += sequence_work(context_lens[s], rows * group) * static_cast<double>(a.num_kv_heads);
  }
  ORRERY_CHECK(starts[0] == 0 && starts[num_sequences] <= q.rows(), "paged_attention: {} of {} rows", starts[num_sequences],
               q.rows());
  const AttentionKernels& kernels = attention_kernels(context.isa, q.dtype);
  const PagedDecode decode = paged_decode(context, q.dtype, k_cache.dtype, H);
  const int64_t size = dtype_bytes(q.dtype);
  context.pool->run([&](int thread_index, int num_threads) {
    // A task runs when the thread's next one is known.
    PagedTask task;
    bool waiting = false;
    const auto run_task = [&](const PagedTask* next) {
      PagedTask one = task;
      if (decode == nullptr || task.num_queries > kDecodeRows) {
        one.num_kv_heads = 1;
        for (int64_t head = 0; head < task.num_kv_heads; ++head) {
          one.q = static_cast<const std::byte*>(task.q) + head * group * H * size;
          one.o = static_cast<std::byte*>(task.o) + head * group * H * size;
          one.k_cache = static_cast<const std::byte*>(task.k_cache) + head * kKeyTileTokens * head_bytes;
          one.v_cache = static_cast<const std::byte*>(task.v_cache) + head * head_bytes;
          int8 ? kernels.paged_int8(one) : kernels.paged(one);
        }
        return;
      }
      one.num_queries = 1;
      for (int64_t row = 0; row < task.num_queries; ++row) {
        one.context = task.context - task.num_queries + 1 + row;
        one.q = static_cast<const std::byte*>(task.q) + row * q.row_stride * size;
        one.o = static_cast<std::byte*>(task.o) + row * o.row_stride * size;
        one.next = row + 1 == task.num_queries ? next : nullptr;
        decode(one);
      }
    };
    const auto add_task = [&](int64_t s, int64_t first_row, int64_t end_row, int64_t first_head, int64_t end_head) {
      if (first_row >= end_row || first_head >= end_head) return;
      PagedTask next;
      next.num_queries = end_row - first_row;
      next.context = context_lens[s] - (starts[s + 1] - starts[s] - end_row);
      next.num_kv_heads = end_head - first_head;
      next.head_dim = H;
      next.group = group;
      next.window = a.window;
      next.scale = a.scale;
      next.q = row_at(q, starts[s] + first_row) + first_head * group * H * size;
      next.q_stride = q.row_stride;
      next.o = row_at(o, starts[s] + first_row) + first_head * group * H * size;
      next.o_stride = o.row_stride;
      next.k_cache = k_cache.data + first_head * kKeyTileTokens * head_bytes;
      next.v_cache = v_cache.data + first_head * head_bytes;
      next.token_stride = k_cache.dims[2];
      next.block_tokens = a.block_tokens;
      next.block_table = block_table.as<int32_t>() + s * block_table.row_stride;
      next.tile = &tile_gemm(context);
      next.scratch = call.workspace.data() + thread_index * scratch;
      if (waiting) run_task(&next);
      task = next;
      waiting = true;
    };
    // The thread's part of the work, in that of all pairs one after the other.
    const double begin = total * thread_index / num_threads, end = total * (thread_index + 1) / num_threads;
    double before = 0;
    for (int64_t s = 0; s < num_sequences; ++s) {
      const int64_t rows = starts[s + 1] - starts[s];
      if (rows == 0) continue;
      const double work = sequence_work(context_lens[s], rows * group);
      if (rows > kDecodeRows) {
        for (int64_t head = 0; head < a.num_kv_heads; ++head, before += work)
          add_task(s, rows_of_work((begin - before) / work, rows, context_lens[s]), thread_index == num_threads - 1 ? rows : rows_of_work((end - before) / work, rows, context_lens[s]),
                   head, head + 1);
        continue;
      }
      int64_t first_head = a.num_kv_heads, end_head = 0;
      for (int64_t head = 0; head < a.num_kv_heads; ++head, before += work)
        if (std::min(num_threads - 1, static_cast<int>((before + work / 2) / total * num_threads)) == thread_index) {
          first_head = std::min(first_head, head);
          end_head = head + 1;
        }
      add_task(s, 0, rows, first_head, end_head);
    }
    if (waiting) run_task(nullptr);
  });
}

constexpr KernelEntry kEntries[] = {
    {OpKind::kKvWrite, DType::kBF16, run_kv_write},
    {OpKind::kKvWrite, DType::kF32, run_kv_write},
    {OpKind::kPagedAttention, DType::kBF16, run_paged_attention, paged_workspace},
    {OpKind::kPagedAttention, DType::kF32, run_paged_attention, paged_workspace},
};

}  // namespace

std::span<const KernelEntry> paged_attention_entries() { return kEntries; }

}  // namespace orrery
