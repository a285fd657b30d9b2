// What the executor hands to a kernel, and the table that finds it. A kernel computes and returns: it allocates nothing, decides
// nothing, keeps no state, and takes its scratch memory from `workspace`, whose size it declared as a pure function.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/cpu_features.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "ir/dtype.h"
#include "ir/op.h"

namespace orrery {

/// NUMERICS rule 1: the order of the products inside a bf16 dot product. f32 products have one order
/// everywhere: chains of 256 FMAs from +0, met in order.
///   kAmx32  K in granules of 32: an even and an odd chain of f32 FMAs from +0 over the 16 pairs, then c += even + odd
///   kDp2    vdpbf16ps: per pair of K, in order
///   kFma1   one f32 FMA chain over K
enum class Arithmetic : uint8_t { kAmx32, kDp2, kFma1 };
std::string_view arithmetic_name(Arithmetic arithmetic);
std::optional<Arithmetic> parse_arithmetic(std::string_view name);
/// What `arithmetic = "auto"` means here: the one that this processor runs natively.
Arithmetic native_arithmetic(const CpuFeatures& features);

/// A view of a tensor in the arena. Rows (dims[0]) may be strided; everything behind is contiguous.
struct TensorView {
  std::byte* data = nullptr;
  DType dtype = DType::kF32;
  int8_t num_dims = 0;
  std::array<int64_t, 4> dims{};
  int64_t row_stride = 0;  // elements from one row to the next; the product of dims[1..] when contiguous

  int64_t rows() const { return num_dims == 0 ? 1 : dims[0]; }
  int64_t row_width() const {
    int64_t width = 1;
    for (int i = 1; i < num_dims; ++i) width *= dims[i];
    return width;
  }
  int64_t num_elements() const { return rows() * row_width(); }
  bool contiguous() const { return rows() <= 1 || row_stride == row_width(); }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

/// How the gradient sums of a micro-batch's sequences meet (NUMERICS rules 3 and 4). The rows of the micro-batch are
/// `num_sequences` packed sequences of `sequence_tokens` rows. A kernel that sums over rows works with a small stack of partial
/// sums (tiles, rows, whatever unit it keeps in cache). When add_to_destination is set the stack starts with the destination's
/// present contents as its bottom entry, else it starts empty. For each sequence i, in order, the kernel computes the sequence's
/// own sum from +0 and pushes it; then merges[i] times it replaces the two top entries (lower, upper) by lower + upper. One
/// entry remains and is written to the destination. So {merges 0,1,1} continues a lane sequence by sequence, ((s0 + s1) + s2),
/// and with add_to_destination {1,1} goes on: ((d + s0) + s1); {0,1,0,2} is the tree (s0 + s1) + (s2 + s3).
struct GradFold {
  static constexpr int kMaxDepth = 16;
  int64_t num_sequences = 0;
  int64_t sequence_tokens = 0;
  const uint8_t* merges = nullptr;
  bool add_to_destination = false;
};

struct KernelContext {
  ThreadPool* pool = nullptr;
  VectorIsa isa = VectorIsa::kAvx2;
  Arithmetic arithmetic = Arithmetic::kFma1;
  bool native_arithmetic = true;  // false: emulate `arithmetic` with f32 FMAs even where the instruction exists
};

/// One op of a block with its operands resolved. `fold` is set for ops with gradient outputs; where it is set for others, its
/// sequence_tokens bounds the length of a segment (0: unknown).
struct OpCall {
  OpKind kind{};
  std::span<const TensorView> inputs;
  std::span<const TensorView> outputs;
  const Attributes* attributes = nullptr;
  const GradFold* fold = nullptr;
  std::span<std::byte> workspace;  // 64-byte aligned
  ReadAhead next_weights;          // what the block's next product with packed weights reads; empty: unknown

  const TensorView& in(size_t index) const { return inputs[index]; }
  const TensorView& out(size_t index) const { return outputs[index]; }
  template <typename A>
  const A& attribute() const {
    return std::get<A>(*attributes);
  }
};

using KernelFn = void (*)(const KernelContext&, const OpCall&);

/// What a workspace size may depend on: the machine the kernel will run on, not the one that asks.
struct DeviceSpec {
  VectorIsa isa = VectorIsa::kAvx2;
  Arithmetic arithmetic = Arithmetic::kFma1;
  bool native_arithmetic = true;
  int num_threads = 1;
};

/// Bytes of workspace for a call with these operand shapes (data pointers are null). Pure; asserted by the kernel.
using WorkspaceFn = int64_t (*)(const DeviceSpec&, const OpCall&);

struct KernelEntry {
  OpKind kind{};
  DType dtype{};  // the block's compute dtype: bf16 or f32
  KernelFn run = nullptr;
  WorkspaceFn workspace_bytes = nullptr;  // null: none
};

/// The CPU kernel for (op, compute dtype). Errors: kUnsupported, naming op and dtype.
const KernelEntry& cpu_kernel(OpKind kind, DType compute_dtype);

}  // namespace orrery
