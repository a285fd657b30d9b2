// For tests of kernels: tensors with guard bytes, running an op on a chosen instruction set and thread count, and comparison
// with an f64 reference.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "backend/kernel.h"
#include "base/bfloat16.h"
#include "base/philox.h"
#include "base/thread_pool.h"

namespace orrery::test {

/// A dense tensor whose memory is followed by guard bytes that no kernel may touch.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::vector<int64_t> dims) : dtype_(dtype), dims_(std::move(dims)) {
    bytes_.assign(size() * dtype_bytes(dtype) + 64 + kGuard, 0xA5);
  }

  static Tensor random(DType dtype, std::vector<int64_t> dims, uint32_t id, double amplitude = 2.0) {
    Tensor tensor(dtype, std::move(dims));
    const PhiloxStream stream(5, RandomPurpose::kInit, id, 0);
    for (int64_t i = 0; i < tensor.size(); ++i) tensor.set(i, amplitude * (2.0 * stream.uniform(i) - 1.0));
    return tensor;
  }
  static Tensor ids(const std::vector<int32_t>& values) {
    Tensor tensor(DType::kI32, {static_cast<int64_t>(values.size())});
    for (size_t i = 0; i < values.size(); ++i) tensor.set(static_cast<int64_t>(i), values[i]);
    return tensor;
  }
  static Tensor filled(DType dtype, std::vector<int64_t> dims, double value) {
    Tensor tensor(dtype, std::move(dims));
    for (int64_t i = 0; i < tensor.size(); ++i) tensor.set(i, value);
    return tensor;
  }

  DType dtype() const { return dtype_; }
  const std::vector<int64_t>& dims() const { return dims_; }
  int64_t size() const {
    int64_t n = 1;
    for (int64_t dim : dims_) n *= dim;
    return n;
  }
  std::byte* data() const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(bytes_.data());
    return reinterpret_cast<std::byte*>((address + 63) / 64 * 64);
  }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data());
  }
  TensorView view() const {
    TensorView view;
    view.data = data();
    view.dtype = dtype_;
    view.num_dims = static_cast<int8_t>(dims_.size());
    for (size_t i = 0; i < dims_.size(); ++i) view.dims[i] = dims_[i];
    view.row_stride = view.row_width();
    return view;
  }
  /// Rows [begin, end) as a view.
  TensorView rows(int64_t begin, int64_t end) const {
    TensorView part = view();
    part.data += begin * part.row_stride * dtype_bytes(dtype_);
    part.dims[0] = end - begin;
    return part;
  }

  double get(int64_t i) const {
    switch (dtype_) {
      case DType::kBF16:
        return bf16_to_f32(as<uint16_t>()[i]);
      case DType::kF32:
        return as<float>()[i];
      case DType::kF64:
        return as<double>()[i];
      case DType::kI32:
        return as<int32_t>()[i];
      default:
        ADD_FAILURE();
        return 0;
    }
  }
  void set(int64_t i, double value) {
    switch (dtype_) {
      case DType::kBF16:
        as<uint16_t>()[i] = f32_to_bf16(static_cast<float>(value));
        break;
      case DType::kF32:
        as<float>()[i] = static_cast<float>(value);
        break;
      case DType::kF64:
        as<double>()[i] = value;
        break;
      case DType::kI32:
        as<int32_t>()[i] = static_cast<int32_t>(value);
        break;
      default:
        ADD_FAILURE();
    }
  }
  std::vector<double> array() const {
    std::vector<double> values(size());
    for (int64_t i = 0; i < size(); ++i) values[i] = get(i);
    return values;
  }
  std::vector<int32_t> id_vector() const { return {as<int32_t>(), as<int32_t>() + size()}; }

  bool same_bits(const Tensor& other) const {
    return size() == other.size() && (size() == 0 || std::memcmp(data(), other.data(), size() * dtype_bytes(dtype_)) == 0);
  }
  bool guard_intact() const {
    const std::byte* end = data() + size() * dtype_bytes(dtype_);
    for (int i = 0; i < kGuard; ++i)
      if (end[i] != std::byte{0xA5}) return false;
    return true;
  }
  // Copies move to memory of another alignment offset modulo 64, so the guard and the values are copied apart.
  Tensor(const Tensor& other) { *this = other; }
  Tensor& operator=(const Tensor& other) {
    dtype_ = other.dtype_;
    dims_ = other.dims_;
    bytes_.assign(other.bytes_.size(), 0xA5);
    if (!other.bytes_.empty()) std::memcpy(data(), other.data(), size() * dtype_bytes(dtype_) + kGuard);
    return *this;
  }
  Tensor(Tensor&&) = default;
  Tensor& operator=(Tensor&&) = default;

 private:
  static constexpr int kGuard = 64;
  DType dtype_ = DType::kF32;
  std::vector<int64_t> dims_;
  mutable std::vector<uint8_t> bytes_;
};

struct Machine {
  VectorIsa isa = VectorIsa::kAvx2;
  int num_threads = 1;
  Arithmetic arithmetic = Arithmetic::kFma1;
  bool native_arithmetic = false;
};

/// Every machine that this processor can play, the first being the plainest.
inline std::vector<Machine> machines(Arithmetic arithmetic = Arithmetic::kFma1) {
  std::vector<Machine> list;
  for (VectorIsa isa : {VectorIsa::kAvx2, VectorIsa::kAvx512})
    for (int threads : {1, 2, 3})
      if (isa == VectorIsa::kAvx2 || cpu_features().avx512) list.push_back({isa, threads, arithmetic, false});
  return list;
}

inline ThreadPool& pool_of(int num_threads) {
  static std::unique_ptr<ThreadPool> pools[8];
  if (!pools[num_threads]) pools[num_threads] = std::make_unique<ThreadPool>(num_threads, false);
  return *pools[num_threads];
}

/// Runs one op on views.
inline void run_views(OpKind kind, DType dtype, const Machine& machine, const Attributes& attributes,
                      const std::vector<TensorView>& inputs, const std::vector<TensorView>& outputs,
                      const GradFold* fold = nullptr) {
  set_floating_point_mode();
  const KernelEntry& entry = cpu_kernel(kind, dtype);
  OpCall call{kind, inputs, outputs, &attributes, fold, {}};
  const DeviceSpec device{machine.isa, machine.arithmetic, machine.native_arithmetic, machine.num_threads};
  const int64_t bytes = entry.workspace_bytes ? entry.workspace_bytes(device, call) : 0;
  // Workspace arrives with the last op's contents in it; NaN patterns show a kernel that reads what it has not written.
  std::vector<uint8_t> memory(bytes + 64 + 64, 0xFF);
  std::byte* aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  call.workspace = {aligned, static_cast<size_t>(bytes)};
  const KernelContext context{&pool_of(machine.num_threads), machine.isa, machine.arithmetic, machine.native_arithmetic};
  entry.run(context, call);
  for (int64_t i = bytes; aligned + i < reinterpret_cast<std::byte*>(memory.data() + memory.size()); ++i)
    ASSERT_EQ(aligned[i], std::byte{0xFF}) << op_name(kind) << " wrote behind its workspace of " << bytes;
}

inline void run_op(OpKind kind, DType dtype, const Machine& machine, const Attributes& attributes,
                   const std::vector<Tensor>& inputs, std::vector<Tensor>& outputs, const GradFold* fold = nullptr) {
  std::vector<TensorView> in, out;
  for (const Tensor& tensor : inputs) in.push_back(tensor.view());
  for (const Tensor& tensor : outputs) out.push_back(tensor.view());
  run_views(kind, dtype, machine, attributes, in, out, fold);
  for (const Tensor& tensor : inputs) ASSERT_TRUE(tensor.guard_intact());
  for (const Tensor& tensor : outputs) ASSERT_TRUE(tensor.guard_intact()) << op_name(kind) << " wrote behind an output";
}

/// Runs the op on every machine with fresh copies of `outputs`, expects equal bits, and leaves the results in `outputs`.
inline void run_everywhere(OpKind kind, DType dtype, const Attributes& attributes, const std::vector<Tensor>& inputs,
                           std::vector<Tensor>& outputs, const GradFold* fold = nullptr,
                           Arithmetic arithmetic = Arithmetic::kFma1) {
  const std::vector<Tensor> fresh = outputs;
  bool first = true;
  for (const Machine& machine : machines(arithmetic)) {
    std::vector<Tensor> results = fresh;
    run_op(kind, dtype, machine, attributes, inputs, results, fold);
    if (first) outputs = results;
    for (size_t i = 0; i < results.size(); ++i)
      ASSERT_TRUE(results[i].same_bits(outputs[i]))
          << op_name(kind) << " output " << i << " on " << vector_isa_name(machine.isa) << " with " << machine.num_threads
          << " threads";
    first = false;
  }
}

/// Half the distance between neighbours of 1: one rounding's relative error.
inline double unit_roundoff(DType dtype) { return dtype == DType::kBF16 ? 0x1p-8 : dtype == DType::kF32 ? 0x1p-24 : 0x1p-53; }

inline double max_abs(const std::vector<double>& values) {
  double top = 0;
  for (double v : values) top = std::max(top, std::fabs(v));
  return top;
}

/// |x - expected| <= roundings * u(dtype of x) * max|expected| + f32_steps * u(f32) * scale for every element.
///   roundings  how often a number of this size is rounded to the tensor's type on the way
///   f32_steps  length of the chain of f32 operations behind an element; scale: size of the largest intermediate (0: of the
///   result)
inline void expect_near(const Tensor& x, const std::vector<double>& expected, double roundings, double f32_steps, double scale,
                        const std::string& what) {
  ASSERT_EQ(x.size(), static_cast<int64_t>(expected.size())) << what;
  const double top = max_abs(expected);
  const double tolerance =
      1.01 * (roundings * unit_roundoff(x.dtype()) * top + f32_steps * unit_roundoff(DType::kF32) * (scale > 0 ? scale : top)) +
      1e-37;
  for (int64_t i = 0; i < x.size(); ++i) ASSERT_NEAR(x.get(i), expected[i], tolerance) << what << " element " << i;
}

/// The merges of a full binary tree over `count` sequences where subtrees of equal size meet as soon as both exist, the rest at
/// the end; and of a chain.
inline std::vector<uint8_t> tree_merges(int count, bool onto_destination) {
  std::vector<uint8_t> merges(count, 0);
  int depth = onto_destination ? 1 : 0;
  for (int i = 0; i < count; ++i) {
    ++depth;
    for (int n = i + 1; n % 2 == 0; n /= 2) {
      ++merges[i];
      --depth;
    }
    if (i + 1 == count) merges[i] += static_cast<uint8_t>(depth - 1);
  }
  return merges;
}
inline std::vector<uint8_t> chain_merges(int count, bool onto_destination) {
  std::vector<uint8_t> merges(count, 1);
  if (!onto_destination && count > 0) merges[0] = 0;
  return merges;
}

/// N query heads over K of keys and values, H wide, with the usual scale.
inline AttentionAttributes heads(int64_t N, int64_t K, int64_t H, int64_t window = 0) {
  return {.num_heads = N, .num_kv_heads = K, .head_dim = H, .scale = 1.0f / std::sqrt(static_cast<float>(H)), .window = window};
}

inline const DType kComputeTypes[] = {DType::kBF16, DType::kF32};

}  // namespace orrery::test
