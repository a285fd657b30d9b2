#include "runtime/ring_attention.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "backend/cpu/attention_pieces.h"
#include "base/bfloat16.h"

namespace orrery {
namespace {

constexpr int kKeysTag = 0, kGradientsTag = 1;

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// The workspace of a call, in order.
struct Layout {
  int64_t block_bytes = 0;     // keys and values of one rank, twice: the block in use and the one that comes
  int64_t gradient_bytes = 0;  // backward: their gradients in f32, twice
  int64_t query_bytes = 0;     // f32: o, or dq
  int64_t piece_bytes = 0;
  int64_t total() const { return 2 * block_bytes + 2 * gradient_bytes + query_bytes + piece_bytes; }
};

struct Operands {
  bool backward;
  const TensorView &q, &k, &v;
};
Operands operands_of(const OpCall& call) {
  const bool backward = call.kind == OpKind::kRingAttentionGrad;
  return {backward, call.in(backward ? 1 : 0), call.in(backward ? 2 : 1), call.in(backward ? 3 : 2)};
}

TokenShares shares_of(const OpCall& call, int64_t num_ranks, int64_t num_sequences) { return {num_ranks, operands_of(call).q.rows() / num_sequences * num_ranks}; }

Layout layout_of(const DeviceSpec& device, const OpCall& call, int64_t num_ranks, int64_t num_sequences) {
  const Operands in = operands_of(call);
  const int64_t elements = 2 * in.k.num_elements();
  Layout layout;
  layout.block_bytes = aligned(elements * dtype_bytes(in.k.dtype));
  layout.gradient_bytes = in.backward ? aligned(elements * 4) : 0;
  layout.query_bytes = aligned(in.q.num_elements() * 4);
  layout.piece_bytes = attention_piece_workspace_bytes(device, shares_of(call, num_ranks, num_sequences), call.attribute<AttentionAttributes>(), in.q.dtype, in.backward);
  return layout;
}

void copy_rows(const TensorView& x, std::byte* out) {
  const int64_t bytes = x.row_width() * dtype_bytes(x.dtype);
  for (int64_t row = 0; row < x.rows(); ++row) std::memcpy(out + row * bytes, x.data + row * x.row_stride * dtype_bytes(x.dtype), static_cast<size_t>(bytes));
}

// Rounds f32 rows, `stride` apart, into a view.
void write_rows(const KernelContext& context, const float* x, int64_t stride, const TensorView& out) {
  const int64_t width = out.row_width();
  context.pool->parallel_for(out.rows(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = x + row * stride;
      if (out.dtype == DType::kF32)
        std::copy(from, from + width, out.as<float>() + row * out.row_stride);
      else
        for (int64_t i = 0; i < width; ++i) out.as<uint16_t>()[row * out.row_stride + i] = f32_to_bf16(from[i]);
    }
  });
}

class Ring {
 public:
  Ring(Communicator& group, const KernelContext& context, const OpCall& call, std::string_view label)
      : group_(group), context_(context), call_(call), label_(label), in_(operands_of(call)), size_(group.size()), rank_(group.rank()) {
    const DeviceSpec device{context.isa, context.arithmetic, context.native_arithmetic, context.pool->num_threads()};
    const Layout layout = layout_of(device, call, size_, call.fold->num_sequences);
    ORRERY_CHECK(static_cast<int64_t>(call.workspace.size()) >= layout.total(), "{}: workspace of {}, wanted {}", op_name(call.kind), call.workspace.size(), layout.total());
    std::byte* next = call.workspace.data();
    const auto take = [&](int64_t bytes) { return std::exchange(next, next + bytes); };
    for (std::byte*& block : blocks_) block = take(layout.block_bytes);
    for (float*& gradients : gradients_) gradients = reinterpret_cast<float*>(take(layout.gradient_bytes));
    queries_ = reinterpret_cast<float*>(take(layout.query_bytes));
    piece_workspace_ = {next, static_cast<size_t>(layout.piece_bytes)};
    tensor_bytes_ = in_.k.num_elements() * dtype_bytes(in_.k.dtype);
    piece_.shares = shares_of(call, size_, call.fold->num_sequences);
    piece_.query_rank = rank_;
    piece_.attributes = call.attribute<AttentionAttributes>();
    const TensorView& cu_seqlens = call.in(in_.backward ? 6 : 3);
    piece_.cu_seqlens = {cu_seqlens.as<int32_t>(), static_cast<size_t>(cu_seqlens.rows())};
    piece_.q = in_.q;
    copy_rows(in_.k, blocks_[0]);
    copy_rows(in_.v, blocks_[0] + tensor_bytes_);
  }

  void forward() {
    const TensorView &o = call_.out(0), &lse = call_.out(1);
    std::fill(lse.as<float>(), lse.as<float>() + lse.num_elements(), -std::numeric_limits<float>::infinity());
    for (int step = 0; step < size_; ++step) {
      Shift shift = pass_keys(step);
      add_attention_piece(context_, piece_, queries_, lse.as<float>(), piece_workspace_);
      shift.wait();
    }
    write_rows(context_, queries_, o.row_width(), o);
  }

  void backward() {
    const TensorView &dq = call_.out(0), &dk = call_.out(1), &dv = call_.out(2);
    const int64_t elements = in_.k.num_elements();
    std::fill(queries_, queries_ + in_.q.num_elements(), 0.0f);
    std::fill(gradients_[0], gradients_[0] + 2 * elements, 0.0f);
    Shift gradients;
    for (int step = 0; step < size_; ++step) {
      Shift keys = pass_keys(step);
      // They come with the keys, and take this rank's part along to the next.
      gradients.wait();
      float* const here = gradients_[static_cast<size_t>(step % 2)];
      add_attention_piece_grad(context_, piece_, call_.in(0), call_.in(4), call_.in(5).as<float>(), queries_, here, here + elements, piece_workspace_);
      gradients = pass({reinterpret_cast<std::byte*>(here), static_cast<size_t>(8 * elements)},
                       {reinterpret_cast<std::byte*>(gradients_[static_cast<size_t>((step + 1) % 2)]), static_cast<size_t>(8 * elements)}, kGradientsTag);
      keys.wait();
    }
    gradients.wait();
    const float* const home = gradients_[static_cast<size_t>(size_ % 2)];
    write_rows(context_, queries_, dq.row_width(), dq);
    write_rows(context_, home, dk.row_width(), dk);
    write_rows(context_, home + elements, dv.row_width(), dv);
  }

 private:
  // A block on its way to the next rank, and another one on its way here.
  struct Shift {
    Work send, receive;
    void wait() {
      if (receive.active()) receive.wait();
      if (send.active()) send.wait();
    }
  };
  Shift pass(std::span<const std::byte> out, std::span<std::byte> in, int tag) {
    Shift shift;
    shift.receive = group_.post_recv(in, (rank_ - 1 + size_) % size_, tag, label_);
    shift.send = group_.post_send(out, (rank_ + 1) % size_, tag, label_);
    return shift;
  }
  // Makes the block of this step the piece's keys, and sends it on unless this rank is the last to see it.
  Shift pass_keys(int step) {
    std::byte* const here = blocks_[static_cast<size_t>(step % 2)];
    piece_.key_rank = (rank_ - step + size_) % size_;
    piece_.k = piece_.v = in_.k;
    piece_.k.row_stride = piece_.v.row_stride = in_.k.row_width();
    piece_.k.data = here;
    piece_.v.data = here + tensor_bytes_;
    if (step + 1 == size_) return {};
    const auto bytes = static_cast<size_t>(2 * tensor_bytes_);
    return pass({here, bytes}, {blocks_[static_cast<size_t>((step + 1) % 2)], bytes}, kKeysTag);
  }

  Communicator& group_;
  const KernelContext& context_;
  const OpCall& call_;
  const std::string_view label_;
  const Operands in_;
  const int size_, rank_;
  std::array<std::byte*, 2> blocks_{};
  std::array<float*, 2> gradients_{};
  float* queries_ = nullptr;
  std::span<std::byte> piece_workspace_;
  int64_t tensor_bytes_ = 0;  // of a block's keys, and of its values
  AttentionPiece piece_;
};

}  // namespace

int64_t ring_attention_workspace_bytes(const DeviceSpec& device, const OpCall& shapes, int64_t num_ranks, int64_t num_sequences) {
  return layout_of(device, shapes, num_ranks, num_sequences).total();
}

void run_ring_attention(Communicator& group, const KernelContext& context, const OpCall& call, std::string_view label) {
  Ring ring(group, context, call, label);
  if (call.kind == OpKind::kRingAttention)
    ring.forward();
  else
    ring.backward();
}

}  // namespace orrery
