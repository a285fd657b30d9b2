// kLinearCrossEntropy, its gradient, and both in one: the head's logits exist only here, in the compute dtype, in workspace.
//
// The forward op alone takes rows in chunks that fit kLogitsBytes; a row's logits, lse and loss depend on no other row, so the
// chunk changes no bit. The ops with gradients keep the logits of all rows of the micro-batch and turn them into dlogits in
// place: dweight's fold over sequences then happens tile by tile in cache (NUMERICS rules 3 and 9), where a chunk per sequence
// would move partial sums of the size of the head through memory.
#include "backend/cpu/gemm.h"
#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/gemm_rows.h"

namespace orrery {
namespace {

constexpr int64_t kLogitsBytes = 64 << 20;

template <typename T>
struct Head {
  int64_t num_rows, width, vocab;
  int64_t padded_vocab;  // the gradient product's granule; zeros behind vocab
  int64_t stride;        // of the logits' rows
  int64_t chunk_rows;
  const TensorView &x, &weight;
  const int32_t* targets;
  T* logits = nullptr;

  Head(const OpCall& call, bool whole) : x(call.in(0)), weight(call.in(1)), targets(call.in(2).as<int32_t>()) {
    num_rows = x.rows();
    width = x.row_width();
    vocab = weight.rows();
    ORRERY_CHECK(weight.row_width() == width && call.in(2).num_elements() == num_rows, "{}: x [{}, {}], weight [{}, {}], {} targets",
                 op_name(call.kind), num_rows, width, vocab, weight.row_width(), call.in(2).num_elements());
    padded_vocab = round_up(vocab, kGranuleK);
    // An odd number of cache lines: with a vocabulary like 49,152 all rows would fall on the same few cache sets (a third slower).
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
    stride = (padded_vocab / kLine | 1) * kLine;
    const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(T));
    chunk_rows = whole ? num_rows : std::min(num_rows, std::max<int64_t>(64, kLogitsBytes / row_bytes / 64 * 64));
  }

  Product<T> logits_product(int64_t first, int64_t rows) const {
    return {rows, vocab, width, x.as<T>() + first * x.row_stride, x.row_stride, false, weight.as<T>(), weight.row_stride, Operand::kTransposed};
  }
  Product<T> dx_product() const {
    return {num_rows, width, vocab, logits, stride, true, weight.as<T>(), weight.row_stride, Operand::kRows};
  }
  FoldProduct<T> dweight_product(const TensorView& dweight) const {
    return {vocab, width, logits, stride, x.as<T>(), x.row_stride, dweight.as<float>(), dweight.row_stride};
  }
};

template <typename T>
constexpr DType kDTypeOf = sizeof(T) == 2 ? DType::kBF16 : DType::kF32;

// The products run one after the other in the same memory behind the logits.
template <typename T>
int64_t head_workspace(const DeviceSpec& device, const OpCall& call) {
  const bool whole = call.kind != OpKind::kLinearCrossEntropy;
  const Head<T> head(call, whole);
  Workspace workspace;
  workspace.take<T>(head.chunk_rows * head.stride);
  if (call.kind == OpKind::kLinearCrossEntropyWithGrad) workspace.take<float>(head.num_rows);  // lse
  int64_t product = product_workspace_bytes(head.logits_product(0, head.chunk_rows), device.num_threads);
  if (whole) {
    product = std::max(product, product_workspace_bytes(head.dx_product(), device.num_threads));
    product = std::max(product, fold_product_workspace_bytes(head.dweight_product(call.outputs.back()), *call.fold, device.num_threads));
  }
  return workspace.used() + product;
}

template <typename T>
void compute_logits(const KernelContext& context, const Head<T>& head, int64_t first, int64_t rows, Workspace workspace) {
  Destination to;
  to.block.y = head.logits;
  to.block.ldy = head.stride;
  multiply(context, head.logits_product(first, rows), workspace, to);
}

// token_loss = lse - logit of the target; 0 where there is no target.
template <typename T>
void loss_rows(const KernelContext& context, const Head<T>& head, int64_t first, int64_t rows, float* token_loss, float* lse) {
  const GemmRows& functions = gemm_rows(context.isa, kDTypeOf<T>);
  context.pool->parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* logits = head.logits + i * head.stride;
      const int32_t target = head.targets[first + i];
      ORRERY_CHECK(target >= -1 && target < head.vocab, "target {} of a vocabulary of {}", target, head.vocab);
      lse[first + i] = functions.log_sum_exp(logits, head.vocab);
      if (token_loss == nullptr) continue;
      float logit = 0;
      if (target >= 0) {
        if constexpr (sizeof(T) == 2)
          logit = std::bit_cast<float>(static_cast<uint32_t>(logits[target]) << 16);
        else
          logit = logits[target];
      }
      token_loss[first + i] = target < 0 ? 0.0f : lse[first + i] - logit;
    }
  });
}

template <typename T>
void run_forward(const KernelContext& context, const OpCall& call) {
  ORRERY_CHECK(static_cast<int64_t>(call.workspace.size()) >= head_workspace<T>(device_of(context), call), "{}: workspace of {}",
               op_name(call.kind), call.workspace.size());
  Head<T> head(call, false);
  Workspace workspace(call.workspace.data());
  head.logits = workspace.take<T>(head.chunk_rows * head.stride);
  for (int64_t first = 0; first < head.num_rows; first += head.chunk_rows) {
    const int64_t rows = std::min(head.chunk_rows, head.num_rows - first);
    compute_logits(context, head, first, rows, workspace);
    loss_rows(context, head, first, rows, call.out(0).as<float>(), call.out(1).as<float>());
  }
}

// Logits to dlogits, then the two products with them.
template <typename T>
void gradients(const KernelContext& context, const OpCall& call, const Head<T>& head, const float* lse, const TensorView& dx,
               const TensorView& dweight, Workspace workspace) {
  const GemmRows& functions = gemm_rows(context.isa, kDTypeOf<T>);
  context.pool->parallel_for(head.num_rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      functions.softmax_grad(head.logits + i * head.stride, head.vocab, head.padded_vocab, head.targets[i], lse[i]);
  });
  Workspace product_workspace = workspace;
  Destination to;
  to.block.y = dx.data;
  to.block.ldy = dx.row_stride;
  multiply(context, head.dx_product(), product_workspace, to);
  Workspace fold_workspace = workspace;
  fold_product(context, head.dweight_product(dweight), *call.fold, fold_workspace);
}

template <typename T>
void run_with_gradient(const KernelContext& context, const OpCall& call) {
  ORRERY_CHECK(call.fold != nullptr && call.fold->num_sequences * call.fold->sequence_tokens == call.in(0).rows(), "{}: fold of {} rows",
               op_name(call.kind), call.in(0).rows());
  ORRERY_CHECK(static_cast<int64_t>(call.workspace.size()) >= head_workspace<T>(device_of(context), call), "{}: workspace of {}",
               op_name(call.kind), call.workspace.size());
  const bool with_loss = call.kind == OpKind::kLinearCrossEntropyWithGrad;
  Head<T> head(call, true);
  Workspace workspace(call.workspace.data());
  head.logits = workspace.take<T>(head.num_rows * head.stride);
  const float* lse = nullptr;
  if (with_loss) {
    float* own_lse = workspace.take<float>(head.num_rows);
    compute_logits(context, head, 0, head.num_rows, workspace);
    loss_rows(context, head, 0, head.num_rows, call.out(0).as<float>(), own_lse);
    lse = own_lse;
  } else {
    compute_logits(context, head, 0, head.num_rows, workspace);
    lse = call.in(3).as<float>();
  }
  const size_t first_gradient = with_loss ? 1 : 0;
  gradients(context, call, head, lse, call.out(first_gradient), call.out(first_gradient + 1), workspace);
}

}  // namespace

std::span<const KernelEntry> cross_entropy_kernels() {
  static constexpr KernelEntry kEntries[] = {
      {OpKind::kLinearCrossEntropy, DType::kBF16, run_forward<uint16_t>, head_workspace<uint16_t>},
      {OpKind::kLinearCrossEntropy, DType::kF32, run_forward<float>, head_workspace<float>},
      {OpKind::kLinearCrossEntropyGrad, DType::kBF16, run_with_gradient<uint16_t>, head_workspace<uint16_t>},
      {OpKind::kLinearCrossEntropyGrad, DType::kF32, run_with_gradient<float>, head_workspace<float>},
      {OpKind::kLinearCrossEntropyWithGrad, DType::kBF16, run_with_gradient<uint16_t>, head_workspace<uint16_t>},
      {OpKind::kLinearCrossEntropyWithGrad, DType::kF32, run_with_gradient<float>, head_workspace<float>},
  };
  return kEntries;
}

}  // namespace orrery
