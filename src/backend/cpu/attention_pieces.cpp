#include "backend/cpu/attention_pieces.h"

#include <algorithm>
#include <cmath>

#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/gemm.h"
#include "backend/cpu/ops.h"
#include "base/portable_math.h"

namespace orrery {
namespace {

// Queries and keys of one segment in one pair of chunks: rows of this rank's and of the other's operands.
struct Pair {
  int64_t first_query = 0, num_queries = 0;  // rows of q
  int64_t first_key = 0, num_keys = 0;       // rows of k
  int64_t distance = 0;                      // from the first key to the first query
};

// Calls visit(pair) for each pair of chunks with queries that see keys, in order.
template <typename Visit>
void for_pairs(const AttentionPiece& piece, int64_t segment, Visit&& visit) {
  const TokenShares& shares = piece.shares;
  const int64_t begin = piece.cu_seqlens[static_cast<size_t>(segment)], end = piece.cu_seqlens[static_cast<size_t>(segment) + 1], c = shares.chunk();
  if (begin == end) return;
  const int64_t sequence = begin / shares.sequence_tokens, origin = sequence * shares.sequence_tokens;
  for (int64_t query_half = 0; query_half < 2; ++query_half)
    for (int64_t key_half = 0; key_half < 2; ++key_half) {
      const int64_t query_chunk = shares.chunk_of(piece.query_rank, query_half), key_chunk = shares.chunk_of(piece.key_rank, key_half);
      if (key_chunk > query_chunk) continue;
      const int64_t query_origin = origin + query_chunk * c, key_origin = origin + key_chunk * c;
      const int64_t query = std::max(begin, query_origin), query_end = std::min(end, query_origin + c);
      const int64_t key = std::max(begin, key_origin), key_end = std::min(end, key_origin + c);
      if (query >= query_end || key >= key_end) continue;
      if (piece.attributes.window > 0 && key_end - 1 <= query - piece.attributes.window) continue;
      const auto row = [&](int64_t half, int64_t chunk_origin, int64_t token) { return sequence * shares.local_tokens() + half * c + token - chunk_origin; };
      visit(Pair{row(query_half, query_origin, query), query_end - query, row(key_half, key_origin, key), key_end - key, query - key});
    }
}

double work_of(const AttentionPiece& piece, int64_t segment) {
  double work = 0;
  for_pairs(piece, segment, [&](const Pair& pair) {
    const auto blocks = [](int64_t tokens) { return static_cast<double>((tokens + kAttentionBlock - 1) / kAttentionBlock); };
    work += blocks(pair.num_queries) * (pair.distance == 0 ? (blocks(pair.num_keys) + 1) / 2 : blocks(pair.num_keys));
  });
  return work;
}

// Calls body(segment, kv head, thread index): each thread takes the (segment, kv head) whose middle falls in its share of the work.
template <typename Body>
void for_tasks(const KernelContext& context, const AttentionPiece& piece, Body&& body) {
  const auto num_segments = static_cast<int64_t>(piece.cu_seqlens.size()) - 1;
  const int64_t num_kv_heads = piece.attributes.num_kv_heads;
  double total = 0;
  for (int64_t segment = 0; segment < num_segments; ++segment) total += work_of(piece, segment) * static_cast<double>(num_kv_heads);
  if (total == 0) return;
  context.pool->run([&](int thread_index, int num_threads) {
    double before = 0;
    for (int64_t segment = 0; segment < num_segments; ++segment) {
      const double work = work_of(piece, segment);
      if (work == 0) continue;
      for (int64_t head = 0; head < num_kv_heads; ++head, before += work)
        if (std::min(num_threads - 1, static_cast<int>((before + work / 2) / total * num_threads)) == thread_index) body(segment, head, thread_index);
    }
  });
}

std::byte* at(const TensorView& view, int64_t row, int64_t column) { return view.data + (row * view.row_stride + column) * dtype_bytes(view.dtype); }

AttentionTask task_of(const KernelContext& context, const AttentionPiece& piece, const Pair& pair, int64_t kv_head) {
  const AttentionAttributes& a = piece.attributes;
  AttentionTask task;
  task.num_tokens = pair.num_queries;
  task.num_keys = pair.num_keys;
  task.first_query = pair.distance;
  task.is_piece = true;
  task.head_dim = a.head_dim;
  task.group = a.num_heads / a.num_kv_heads;
  task.window = a.window;
  task.scale = a.scale;
  task.q = at(piece.q, pair.first_query, kv_head * task.group * a.head_dim);
  task.k = at(piece.k, pair.first_key, kv_head * a.head_dim);
  task.v = at(piece.v, pair.first_key, kv_head * a.head_dim);
  task.q_stride = piece.q.row_stride, task.k_stride = piece.k.row_stride, task.v_stride = piece.v.row_stride;
  task.tile = &tile_gemm(context);
  return task;
}

int64_t kernel_scratch_bytes(const TokenShares& shares, const AttentionAttributes& a, DType dtype, bool backward) {
  return (backward ? backward_scratch_bytes : forward_scratch_bytes)(shares.chunk(), a.head_dim, dtype_bytes(dtype));
}

// The result of one pair, before it meets the others.
int64_t partial_bytes(const TokenShares& shares, const AttentionAttributes& a) {
  return pad_to(shares.chunk() * (a.num_heads / a.num_kv_heads) * (a.head_dim + 1) * 4, 64);
}

int64_t thread_bytes(const TokenShares& shares, const AttentionAttributes& a, DType dtype, bool backward) {
  return kernel_scratch_bytes(shares, a, dtype, backward) + (backward ? 0 : partial_bytes(shares, a));
}

// o and lse of the queries so far meet those of more keys.
void meet(float* o, float& lse, const float* more_o, float more_lse, int64_t width) {
  if (std::isinf(more_lse)) return;
  if (std::isinf(lse)) {
    std::copy(more_o, more_o + width, o);
    lse = more_lse;
    return;
  }
  const double a = static_cast<double>(lse), b = static_cast<double>(more_lse), top = std::max(a, b);
  const double mass_a = portable_exp(std::max(-700.0, a - top)), mass_b = portable_exp(std::max(-700.0, b - top)), mass = mass_a + mass_b;
  const auto share = static_cast<float>(mass_a / mass), more_share = static_cast<float>(mass_b / mass);
  for (int64_t i = 0; i < width; ++i) o[i] = o[i] * share + more_o[i] * more_share;
  lse = static_cast<float>(top + portable_log(mass));
}

}  // namespace

int64_t attention_piece_workspace_bytes(const DeviceSpec& device, const TokenShares& shares, const AttentionAttributes& attributes, DType dtype, bool backward) {
  return device.num_threads * thread_bytes(shares, attributes, dtype, backward);
}

void add_attention_piece(const KernelContext& context, const AttentionPiece& piece, float* o, float* lse, std::span<std::byte> workspace) {
  const AttentionAttributes& a = piece.attributes;
  const AttentionKernels& kernels = attention_kernels(context.isa, piece.q.dtype);
  const int64_t bytes = thread_bytes(piece.shares, a, piece.q.dtype, false), group = a.num_heads / a.num_kv_heads, width = group * a.head_dim, num_rows = piece.q.rows();
  ORRERY_CHECK(static_cast<int64_t>(workspace.size()) >= bytes * context.pool->num_threads(), "attention piece: workspace of {}", workspace.size());
  for_tasks(context, piece, [&](int64_t segment, int64_t kv_head, int thread_index) {
    std::byte* scratch = workspace.data() + thread_index * bytes;
    auto* part_o = reinterpret_cast<float*>(scratch + kernel_scratch_bytes(piece.shares, a, piece.q.dtype, false));
    float* part_lse = part_o + piece.shares.chunk() * width;
    for_pairs(piece, segment, [&](const Pair& pair) {
      AttentionTask task = task_of(context, piece, pair, kv_head);
      task.scratch = scratch;
      task.o = part_o, task.o_stride = width;
      task.lse = part_lse, task.lse_stride = piece.shares.chunk();
      kernels.forward(task);
      for (int64_t row = 0; row < pair.num_queries; ++row)
        for (int64_t head = 0; head < group; ++head)
          meet(o + (pair.first_query + row) * a.num_heads * a.head_dim + (kv_head * group + head) * a.head_dim, lse[(kv_head * group + head) * num_rows + pair.first_query + row],
               part_o + row * width + head * a.head_dim, part_lse[head * piece.shares.chunk() + row], a.head_dim);
    });
  });
}

void add_attention_piece_grad(const KernelContext& context, const AttentionPiece& piece, const TensorView& dout, const TensorView& o, const float* lse, float* dq, float* dk, float* dv,
                              std::span<std::byte> workspace) {
  const AttentionAttributes& a = piece.attributes;
  const AttentionKernels& kernels = attention_kernels(context.isa, piece.q.dtype);
  const int64_t bytes = thread_bytes(piece.shares, a, piece.q.dtype, true), group = a.num_heads / a.num_kv_heads, num_rows = piece.q.rows();
  ORRERY_CHECK(static_cast<int64_t>(workspace.size()) >= bytes * context.pool->num_threads(), "attention piece: workspace of {}", workspace.size());
  for_tasks(context, piece, [&](int64_t segment, int64_t kv_head, int thread_index) {
    for_pairs(piece, segment, [&](const Pair& pair) {
      AttentionTask task = task_of(context, piece, pair, kv_head);
      const int64_t column = kv_head * group * a.head_dim, width = a.num_heads * a.head_dim, kv_width = a.num_kv_heads * a.head_dim;
      task.scratch = workspace.data() + thread_index * bytes;
      task.o = at(o, pair.first_query, column), task.o_stride = o.row_stride;
      task.lse = const_cast<float*>(lse) + kv_head * group * num_rows + pair.first_query, task.lse_stride = num_rows;
      task.dout = at(dout, pair.first_query, column), task.dout_stride = dout.row_stride;
      task.dq = dq + pair.first_query * width + column, task.dq_stride = width;
      task.dk = dk + pair.first_key * kv_width + kv_head * a.head_dim, task.dk_stride = kv_width;
      task.dv = dv + pair.first_key * kv_width + kv_head * a.head_dim, task.dv_stride = kv_width;
      kernels.backward(task);
    });
  });
}

}  // namespace orrery
