// The bridge between physical parameters in memory and the logical tensors that files hold: reads and writes any byte range of a
// logical tensor through the segments (rows, transposition, concatenation) of ParameterSpec.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ir/dtype.h"
#include "ir/parameter_spec.h"

namespace orrery {

/// A tensor whose bytes are asked for range by range, in order. `read` fills `out` with the bytes from `offset`; both are multiples
/// of the element size.
struct TensorSource {
  std::string name;
  DType dtype{};
  std::vector<int64_t> shape;
  std::function<void(uint64_t offset, std::span<std::byte> out)> read;
  int64_t num_elements() const;
  uint64_t bytes() const { return static_cast<uint64_t>(num_elements() * dtype_bytes(dtype)); }
};

/// A buffer that holds elements [element_begin, element_end) of something with the layout of `spec`: the weight, its low halves, a
/// moment, a gradient. element_end < 0: all elements. Not owned; `spec` must outlive the use.
struct PhysicalTensor {
  const ParameterSpec* spec = nullptr;
  std::byte* data = nullptr;  // of element_begin; null: `holder`, another process, has it
  DType dtype{};
  int64_t element_begin = 0, element_end = -1;
  int holder = 0;             // rank
  int64_t copy = 0;           // of a segment that n ranks hold, the one of holder copy % n is meant; the others are not looked at
};

/// One logical tensor held by physical tensors.
class LogicalView {
 public:
  const std::string& name() const { return name_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  int64_t num_elements() const { return rows_ * columns_; }

  /// Copies elements [begin, begin + out bytes / element size) of the logical tensor out of, or into, physical memory. What other
  /// processes hold is left alone. No heap.
  void read(int64_t begin, std::span<std::byte> out) const;
  void write(int64_t begin, std::span<const std::byte> in) const;

  /// What `holder` holds of elements [begin, begin + count), for its way to another process: how much it is, the same elements packed
  /// one after the other (from this process's memory), and packed elements put into their places in `out`, which starts at `begin`.
  bool holds_any(int64_t begin, int64_t count) const;  // this process
  int64_t held_elements(int holder, int64_t begin, int64_t count) const;
  void pack(int holder, int64_t begin, int64_t count, std::byte* packed) const;
  void unpack(int holder, int64_t begin, const std::byte* packed, std::span<std::byte> out) const;

 private:
  friend std::vector<LogicalView> logical_views(std::span<const PhysicalTensor>);
  struct Piece {
    std::byte* data = nullptr;  // of physical element held_begin; null in another process
    int holder = 0;
    int64_t held_begin = 0, held_end = 0;
    bool transpose = false;
    int64_t tensor_begin = 0, count = 0;  // logical rows, or columns when transposed
    int64_t column_begin = 0, width = 0;  // logical columns of a physical row, or rows when transposed
    int64_t row_begin = 0;                // first physical row
  };
  // Calls visit(piece, element from piece.held_begin, logical element from `begin`, count, logical stride) for each run of physically
  // consecutive elements, always in the same order.
  template <typename Visit>
  void for_each_run(int64_t begin, int64_t count, Visit&& visit) const;
  template <typename Visit>
  void for_each_row(const Piece& piece, int64_t begin, int64_t end, Visit&& visit) const;
  void check_cover();
  template <typename Visit>
  void for_each_column(const Piece& piece, int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end, int64_t at, Visit&& visit) const;

  std::string name_;
  std::vector<int64_t> shape_;
  DType dtype_{};
  int64_t rows_ = 0, columns_ = 1;
  std::vector<Piece> pieces_;
};

/// The logical tensors of these parameters, in order of first appearance; a parameter may come in several buffers, the shards of a
/// data-parallel group. Aborts when a tensor's elements are not covered exactly once: a bug in a model builder or a plan.
std::vector<LogicalView> logical_views(std::span<const PhysicalTensor> tensors);

/// As sources for a writer, their names followed by `suffix` ("", ".low", ".m", ".v").
std::vector<TensorSource> tensor_sources(std::span<const PhysicalTensor> tensors, std::string_view suffix);

}  // namespace orrery
