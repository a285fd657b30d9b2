// kLinear, kLinearGelu, kLinearGradInput, kLinearGradInputGelu and the product with a packed weight: one blocked product each,
// with what follows it done while the accumulators are in cache.
#include "backend/cpu/gemm.h"
#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/quantized_linear.h"

namespace orrery {
namespace {

template <typename T>
Product<T> forward_product(const OpCall& call) {
  const TensorView &x = call.in(0), &weight = call.in(1), &y = call.out(0);
  ORRERY_CHECK(x.row_width() == weight.row_width() && y.row_width() == weight.rows() && y.rows() == x.rows(),
               "{}: x [{}, {}], weight [{}, {}], y [{}, {}]", op_name(call.kind), x.rows(), x.row_width(), weight.rows(),
               weight.row_width(), y.rows(), y.row_width());
  return {x.rows(), weight.rows(), x.row_width(), x.as<T>(), x.row_stride, false, weight.as<T>(), weight.row_stride, Operand::kTransposed};
}

template <typename T>
Product<T> grad_input_product(const OpCall& call) {
  const TensorView &dy = call.in(0), &weight = call.in(1), &dx = call.out(0);
  ORRERY_CHECK(dy.row_width() == weight.rows() && dx.row_width() == weight.row_width() && dx.rows() == dy.rows(),
               "{}: dy [{}, {}], weight [{}, {}], dx [{}, {}]", op_name(call.kind), dy.rows(), dy.row_width(), weight.rows(),
               weight.row_width(), dx.rows(), dx.row_width());
  return {dy.rows(), weight.row_width(), weight.rows(), dy.as<T>(), dy.row_stride, false, weight.as<T>(), weight.row_stride, Operand::kRows};
}

template <typename T>
Product<T> product_of(const OpCall& call) {
  return call.kind == OpKind::kLinear || call.kind == OpKind::kLinearGelu ? forward_product<T>(call) : grad_input_product<T>(call);
}

template <typename T>
int64_t linear_workspace(const DeviceSpec& device, const OpCall& call) {
  return product_workspace_bytes(product_of<T>(call), device.num_threads);
}

template <typename T>
void run_linear(const KernelContext& context, const OpCall& call) {
  const Product<T> product = product_of<T>(call);
  const DType dtype = sizeof(T) == 2 ? DType::kBF16 : DType::kF32;
  ORRERY_CHECK(static_cast<int64_t>(call.workspace.size()) >= product_workspace_bytes(product, context.pool->num_threads()),
               "{}: workspace of {}", op_name(call.kind), call.workspace.size());
  const DType out_dtype = call.out(0).dtype;
  ORRERY_CHECK(out_dtype == dtype || (call.kind == OpKind::kLinear && out_dtype == DType::kF32), "{}: output in {}", op_name(call.kind),
               dtype_name(out_dtype));
  Destination to;
  to.kind = out_dtype == dtype ? FinishKind::kPlain : FinishKind::kF32;
  to.block.y = call.out(0).data;
  to.block.ldy = call.out(0).row_stride;
  const bool forward = call.kind == OpKind::kLinear || call.kind == OpKind::kLinearGelu;
  const auto* attributes = std::get_if<LinearAttributes>(call.attributes);
  const bool adds_bias = attributes == nullptr || attributes->adds_bias;
  if (forward && adds_bias && call.inputs.size() > 2) {
    ORRERY_CHECK(call.in(2).num_elements() == product.n, "{}: bias of {}, not {}", op_name(call.kind), call.in(2).num_elements(), product.n);
    to.block.bias = call.in(2).data;
  }
  if (call.kind == OpKind::kLinearGelu) {
    to.kind = FinishKind::kGelu;
    to.block.gelu_y = call.out(1).data;
    to.block.ld_gelu = call.out(1).row_stride;
  } else if (call.kind == OpKind::kLinearGradInputGelu) {
    to.kind = FinishKind::kGeluGrad;
    to.block.u = call.in(2).data;
    to.block.ldu = call.in(2).row_stride;
  }
  Workspace workspace(call.workspace.data());
  multiply(context, product, workspace, to);
}

constexpr KernelEntry entry_of(OpKind kind, DType dtype) {
  if (dtype == DType::kBF16) return {kind, dtype, run_linear<uint16_t>, linear_workspace<uint16_t>};
  return {kind, dtype, run_linear<float>, linear_workspace<float>};
}

template <typename T>
void pack_weight_of(const KernelContext& context, const TensorView& weight, T* packed) {
  const TileOf<T> tile{tile_gemm(context)};
  const int64_t k = weight.row_width(), stride = TileOf<T>::panel_elements(k);
  context.pool->parallel_for(weight.rows(), kPanelColumns, [&](int64_t begin, int64_t end) {
    tile.pack_transposed(end - begin, k, weight.as<T>() + begin * weight.row_stride, weight.row_stride, packed + begin / kPanelColumns * stride,
                         stride);
  });
}

template <typename T>
Product<T> packed_product(const TensorView& x, const std::byte* packed, int64_t n) {
  return {x.rows(), n, x.row_width(), x.as<T>(), x.row_stride, false, reinterpret_cast<const T*>(packed), 0, Operand::kPacked};
}

template <typename T>
void run_packed(const KernelContext& context, const TensorView& x, const std::byte* packed, int64_t n, const TensorView* bias,
                const TensorView& y, std::span<std::byte> memory) {
  const Product<T> product = packed_product<T>(x, packed, n);
  ORRERY_CHECK(static_cast<int64_t>(memory.size()) >= product_workspace_bytes(product, context.pool->num_threads()), "workspace of {}",
               memory.size());
  Workspace workspace(memory.data());
  Destination to;
  to.kind = y.dtype == x.dtype ? FinishKind::kPlain : FinishKind::kF32;
  to.block.y = y.data;
  to.block.ldy = y.row_stride;
  if (bias != nullptr) to.block.bias = bias->data;
  multiply(context, product, workspace, to);
}

// kLinearPacked: the weight is a byte vector, N comes from the attributes.
int64_t packed_workspace(const DeviceSpec& device, const OpCall& call) {
  if (!call.attribute<PackedLinearAttributes>().segments.empty()) return quantized_linear_workspace_bytes(device, call.in(0).rows(), call.in(0).row_width());
  return linear_packed_workspace_bytes(device, call.in(0).dtype, call.in(0).rows(), call.attribute<PackedLinearAttributes>().num_columns,
                                       call.in(0).row_width());
}

void run_linear_packed(const KernelContext& context, const OpCall& call) {
  if (!call.attribute<PackedLinearAttributes>().segments.empty()) return quantized_linear(context, call);
  const int64_t n = call.attribute<PackedLinearAttributes>().num_columns;
  ORRERY_CHECK(call.in(1).num_elements() >= packed_weight_bytes(call.in(0).dtype, n, call.in(0).row_width()), "packed weight of {} bytes",
               call.in(1).num_elements());
  if (call.in(0).rows() <= kStreamRows) context.pool->set_read_ahead(call.next_weights);
  linear_packed(context, call.in(0), call.in(1).data, n, call.inputs.size() > 2 ? &call.in(2) : nullptr, call.out(0), call.workspace);
}

}  // namespace

std::span<const KernelEntry> linear_kernels() {
  static constexpr KernelEntry kEntries[] = {
      entry_of(OpKind::kLinear, DType::kBF16),          entry_of(OpKind::kLinear, DType::kF32),
      entry_of(OpKind::kLinearGelu, DType::kBF16),      entry_of(OpKind::kLinearGelu, DType::kF32),
      entry_of(OpKind::kLinearGradInput, DType::kBF16), entry_of(OpKind::kLinearGradInput, DType::kF32),
      entry_of(OpKind::kLinearGradInputGelu, DType::kBF16), entry_of(OpKind::kLinearGradInputGelu, DType::kF32),
      {OpKind::kLinearPacked, DType::kBF16, run_linear_packed, packed_workspace},
      {OpKind::kLinearPacked, DType::kF32, run_linear_packed, packed_workspace},
  };
  return kEntries;
}

int64_t packed_weight_bytes(DType dtype, int64_t n, int64_t k) {
  const int64_t panels = round_up(n, kPanelColumns) / kPanelColumns;
  return panels * (dtype == DType::kBF16 ? 2 * panel_elements_bf16(k) : 4 * panel_elements_f32(k));
}

ReadAhead packed_weight_stream(DType dtype, int64_t n, int64_t k, const std::byte* packed) {
  return {packed, round_up(n, kPanelColumns) / kPanelColumns, packed_weight_bytes(dtype, kPanelColumns, k)};
}

void pack_weight(const KernelContext& context, const TensorView& weight, std::byte* packed) {
  if (weight.dtype == DType::kBF16)
    pack_weight_of(context, weight, reinterpret_cast<uint16_t*>(packed));
  else
    pack_weight_of(context, weight, reinterpret_cast<float*>(packed));
}

int64_t linear_packed_workspace_bytes(const DeviceSpec& device, DType dtype, int64_t m, int64_t n, int64_t k) {
  TensorView x;
  x.dtype = dtype;
  x.num_dims = 2;
  x.dims = {m, k};
  if (dtype == DType::kBF16) return product_workspace_bytes(packed_product<uint16_t>(x, nullptr, n), device.num_threads);
  return product_workspace_bytes(packed_product<float>(x, nullptr, n), device.num_threads);
}

void linear_packed(const KernelContext& context, const TensorView& x, const std::byte* packed, int64_t n, const TensorView* bias,
                   const TensorView& y, std::span<std::byte> workspace) {
  ORRERY_CHECK(y.row_width() == n && y.rows() == x.rows() && (y.dtype == x.dtype || y.dtype == DType::kF32),
               "linear_packed: y [{}, {}] {} of {}", y.rows(), y.row_width(), dtype_name(y.dtype), n);
  if (x.dtype == DType::kBF16)
    run_packed<uint16_t>(context, x, packed, n, bias, y, workspace);
  else
    run_packed<float>(context, x, packed, n, bias, y, workspace);
}

}  // namespace orrery
