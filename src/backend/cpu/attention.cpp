// kAttention, kAttentionGrad: causal attention over packed segments, the score matrix never stored.
//
//   o[t,n,:] = sum over s <= t, same segment, inside the window, of softmax_s(scale * q[t,n,:] . k[s,n/G,:]) * v[s,n/G,:]
//
// Legend   T tokens, N query heads, K kv heads, G = N / K, H head_dim, S segments; rows may be strided.
// Types    q, k, v, o and their gradients bf16 or f32; scores, statistics and sums f32. P and dS are rounded to the compute
// dtype
//          before the products that follow them; dS includes the scale.
// Bits     Products by arithmetic id. Key and query blocks of 64 anchored at the segment start. o: key blocks in order (a
//          running maximum rescales the earlier ones). dq: key blocks in order. dk, dv: query blocks in order per head, then
//          the heads of the group in order. All from +0 on one thread, so nothing depends on threads, packing or micro-batch.
// Threads  take whole (segment, kv head) pairs, cut in contiguous ranges of about equal work.
// Scratch  per thread for the longest segment: GradFold::sequence_tokens when the caller gives it (no segment is longer than a
//          packed window), else T.
#include <algorithm>

#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/ops.h"

namespace orrery {

namespace simd_avx2 {
extern const AttentionKernels kAttentionBf16, kAttentionF32;
}
namespace simd_avx512 {
extern const AttentionKernels kAttentionBf16, kAttentionF32;
}

const AttentionKernels& attention_kernels(VectorIsa isa, DType compute_dtype) {
  const bool bf16 = compute_dtype == DType::kBF16;
  if (isa == VectorIsa::kAvx512) return bf16 ? simd_avx512::kAttentionBf16 : simd_avx512::kAttentionF32;
  return bf16 ? simd_avx2::kAttentionBf16 : simd_avx2::kAttentionF32;
}

namespace {

int64_t longest_segment(const OpCall& call, const TensorView& q) {
  return call.fold != nullptr && call.fold->sequence_tokens > 0 ? std::min(call.fold->sequence_tokens, q.rows()) : q.rows();
}

int64_t task_scratch_bytes(const OpCall& call) {
  const bool backward = call.kind == OpKind::kAttentionGrad;
  const TensorView& q = call.in(backward ? 1 : 0);
  const int64_t tokens = longest_segment(call, q), head_dim = call.attribute<AttentionAttributes>().head_dim;
  return (backward ? backward_scratch_bytes : forward_scratch_bytes)(tokens, head_dim, dtype_bytes(q.dtype));
}

int64_t attention_workspace(const DeviceSpec& device, const OpCall& call) {
  return device.num_threads * task_scratch_bytes(call);
}

void check_attention(const AttentionAttributes& a, const TensorView& q, const TensorView& k, const TensorView& v) {
  ORRERY_CHECK(a.num_kv_heads > 0 && a.num_heads % a.num_kv_heads == 0, "{} heads, {} kv heads", a.num_heads, a.num_kv_heads);
  ORRERY_CHECK(a.head_dim > 0 && a.head_dim % 2 == 0 && a.scale > 0, "head_dim {}, scale {}", a.head_dim, a.scale);
  ORRERY_CHECK(q.row_width() == a.num_heads * a.head_dim && k.row_width() == a.num_kv_heads * a.head_dim &&
                   v.row_width() == k.row_width(),
               "attention of widths {}, {}, {}", q.row_width(), k.row_width(), v.row_width());
}

// About proportional to the time of a segment of this length.
double segment_work(int64_t tokens, int64_t window) {
  const int64_t blocks = (tokens + kAttentionBlock - 1) / kAttentionBlock;
  const int64_t seen = window > 0 ? std::min(blocks, window / kAttentionBlock + 2) : blocks;
  return static_cast<double>(blocks) * (static_cast<double>(seen) + 1);
}

// Calls body(segment, kv head, thread index) for every pair: each thread takes the pairs whose middle falls in its share of the
// work. A function of the lengths alone.
template <typename Body>
void for_tasks(const KernelContext& context, const TensorView& cu_seqlens, int64_t num_rows, const AttentionAttributes& a,
               Body&& body) {
  const int32_t* starts = cu_seqlens.as<int32_t>();
  const int64_t num_segments = cu_seqlens.rows() - 1;
  double total = 0;
  for (int64_t s = 0; s < num_segments; ++s) {
    ORRERY_CHECK(starts[s] >= 0 && starts[s] <= starts[s + 1], "cu_seqlens falls from {} to {}", starts[s], starts[s + 1]);
    total += segment_work(starts[s + 1] - starts[s], a.window) * static_cast<double>(a.num_kv_heads);
  }
  ORRERY_CHECK(num_segments >= 0 && starts[0] == 0 && starts[num_segments] == num_rows, "segments end at {} of {} rows",
               starts[num_segments], num_rows);
  context.pool->run([&](int thread_index, int num_threads) {
    double before = 0;
    for (int64_t s = 0; s < num_segments; ++s) {
      if (starts[s] == starts[s + 1]) continue;
      const double work = segment_work(starts[s + 1] - starts[s], a.window);
      for (int64_t head = 0; head < a.num_kv_heads; ++head) {
        const int owner = std::min(num_threads - 1, static_cast<int>((before + work / 2) / total * num_threads));
        if (owner == thread_index) body(s, head, thread_index);
        before += work;
      }
    }
  });
}

const std::byte* head_at(const TensorView& view, int64_t row, int64_t first_head, int64_t head_dim) {
  return row_at(view, row) + first_head * head_dim * dtype_bytes(view.dtype);
}
std::byte* mutable_head_at(const TensorView& view, int64_t row, int64_t first_head, int64_t head_dim) {
  return row_at(view, row) + first_head * head_dim * dtype_bytes(view.dtype);
}

AttentionTask make_task(const KernelContext& context, const OpCall& call, const TensorView& q, const TensorView& k,
                        const TensorView& v, const TensorView& o, const TensorView& lse, int64_t begin, int64_t end,
                        int64_t kv_head, int thread_index) {
  const auto& a = call.attribute<AttentionAttributes>();
  const int64_t group = a.num_heads / a.num_kv_heads, H = a.head_dim;
  AttentionTask task;
  task.num_tokens = task.num_keys = end - begin;
  task.head_dim = H;
  task.group = group;
  task.window = a.window;
  task.scale = a.scale;
  task.q = head_at(q, begin, kv_head * group, H);
  task.k = head_at(k, begin, kv_head, H);
  task.v = head_at(v, begin, kv_head, H);
  task.q_stride = q.row_stride;
  task.k_stride = k.row_stride;
  task.v_stride = v.row_stride;
  task.o = mutable_head_at(o, begin, kv_head * group, H);
  task.o_stride = o.row_stride;
  task.lse = lse.as<float>() + kv_head * group * lse.row_stride + begin;
  task.lse_stride = lse.row_stride;
  task.tile = &tile_gemm(context);
  const int64_t scratch = task_scratch_bytes(call);
  ORRERY_CHECK(task.num_tokens <= longest_segment(call, q), "a segment of {} tokens in windows of {}", task.num_tokens,
               longest_segment(call, q));
  ORRERY_CHECK((thread_index + 1) * scratch <= static_cast<int64_t>(call.workspace.size()), "attention workspace of {} bytes",
               call.workspace.size());
  task.scratch = call.workspace.data() + thread_index * scratch;
  return task;
}

void run_attention(const KernelContext& context, const OpCall& call) {
  const auto& a = call.attribute<AttentionAttributes>();
  const TensorView &q = call.in(0), &k = call.in(1), &v = call.in(2), &cu_seqlens = call.in(3);
  check_attention(a, q, k, v);
  const AttentionKernels& kernels = attention_kernels(context.isa, q.dtype);
  const int32_t* starts = cu_seqlens.as<int32_t>();
  for_tasks(context, cu_seqlens, q.rows(), a, [&](int64_t segment, int64_t kv_head, int thread_index) {
    kernels.forward(make_task(context, call, q, k, v, call.out(0), call.out(1), starts[segment], starts[segment + 1], kv_head,
                              thread_index));
  });
}

void run_attention_grad(const KernelContext& context, const OpCall& call) {
  const auto& a = call.attribute<AttentionAttributes>();
  const TensorView &dout = call.in(0), &q = call.in(1), &k = call.in(2), &v = call.in(3), &cu_seqlens = call.in(6);
  check_attention(a, q, k, v);
  const AttentionKernels& kernels = attention_kernels(context.isa, q.dtype);
  const int32_t* starts = cu_seqlens.as<int32_t>();
  const int64_t group = a.num_heads / a.num_kv_heads;
  for_tasks(context, cu_seqlens, q.rows(), a, [&](int64_t segment, int64_t kv_head, int thread_index) {
    const int64_t begin = starts[segment];
    AttentionTask task =
        make_task(context, call, q, k, v, call.in(4), call.in(5), begin, starts[segment + 1], kv_head, thread_index);
    task.dout = head_at(dout, begin, kv_head * group, a.head_dim);
    task.dout_stride = dout.row_stride;
    task.dq = mutable_head_at(call.out(0), begin, kv_head * group, a.head_dim);
    task.dk = mutable_head_at(call.out(1), begin, kv_head, a.head_dim);
    task.dv = mutable_head_at(call.out(2), begin, kv_head, a.head_dim);
    task.dq_stride = call.out(0).row_stride;
    task.dk_stride = call.out(1).row_stride;
    task.dv_stride = call.out(2).row_stride;
    kernels.backward(task);
  });
}

constexpr KernelEntry kEntries[] = {
    {OpKind::kAttention, DType::kBF16, run_attention, attention_workspace},
    {OpKind::kAttention, DType::kF32, run_attention, attention_workspace},
    {OpKind::kAttentionGrad, DType::kBF16, run_attention_grad, attention_workspace},
    {OpKind::kAttentionGrad, DType::kF32, run_attention_grad, attention_workspace},
};

}  // namespace

std::span<const KernelEntry> attention_kernel_entries() { return kEntries; }

}  // namespace orrery
