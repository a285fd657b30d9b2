#include "checkpoint/tensor_map.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <unordered_map>

#include "base/error.h"

namespace orrery {
namespace {

/// A column of the logical matrix: contiguous in physical memory, strided in the logical one.
template <size_t kBytes>
void move_column(const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(to + i * to_stride * static_cast<int64_t>(kBytes), from + i * from_stride * static_cast<int64_t>(kBytes), kBytes);
}

/// `count` elements of `width` bytes; strides in elements.
void move_elements(const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride, int64_t count, int64_t width) {
  if (from_stride == 1 && to_stride == 1) {
    std::memcpy(to, from, static_cast<size_t>(count * width));
    return;
  }
  switch (width) {
    case 1: move_column<1>(from, from_stride, to, to_stride, count); break;
    case 2: move_column<2>(from, from_stride, to, to_stride, count); break;
    case 4: move_column<4>(from, from_stride, to, to_stride, count); break;
    default: move_column<8>(from, from_stride, to, to_stride, count); break;
  }
}

}  // namespace

int64_t TensorSource::num_elements() const { return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()); }

// Logical (i, j) is physical (piece.row_begin + j - tensor_begin, i - piece.column_begin); `at` is logical (row_begin, column_begin), counted
// from the first element asked for.
template <typename Visit>
void LogicalView::for_each_column(const Piece& piece, int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end, int64_t at,
                                  Visit&& visit) const {
  const int64_t first = std::max(column_begin, piece.tensor_begin);
  const int64_t last = std::min(column_end, piece.tensor_begin + piece.count);
  const int64_t top = std::max(row_begin, piece.column_begin), bottom = std::min(row_end, piece.column_begin + piece.width);
  for (int64_t j = first; j < last; ++j) {
    const int64_t element = (piece.row_begin + j - piece.tensor_begin) * piece.width + top - piece.column_begin;
    const int64_t from = std::max(element, piece.held_begin), count = std::min(element + bottom - top, piece.held_end) - from;
    if (count > 0) visit(piece, from - piece.held_begin, at + (top - row_begin + from - element) * columns_ + j - column_begin, count, columns_);
  }
}

// Rows of a piece that are whole in the tensor follow each other in both memories; rows of which it has a part do not.
template <typename Visit>
void LogicalView::for_each_row(const Piece& piece, int64_t begin, int64_t end, Visit&& visit) const {
  const auto box = [&](int64_t first_row, int64_t num_rows, int64_t columns) {
    const int64_t logical = first_row * columns_ + piece.column_begin, to_physical = (piece.row_begin + first_row - piece.tensor_begin) * piece.width - logical;
    const int64_t first = std::max({begin, logical, piece.held_begin - to_physical});
    const int64_t last = std::min({end, logical + num_rows * columns, piece.held_end - to_physical});
    if (first < last) visit(piece, to_physical + first - piece.held_begin, first - begin, last - first, int64_t{1});
  };
  if (piece.width == columns_) return box(piece.tensor_begin, piece.count, columns_);
  const int64_t first = std::max(piece.tensor_begin, begin / columns_), last = std::min(piece.tensor_begin + piece.count, (end + columns_ - 1) / columns_);
  for (int64_t row = first; row < last; ++row) box(row, 1, piece.width);
}

template <typename Visit>
void LogicalView::for_each_run(int64_t begin, int64_t count, Visit&& visit) const {
  ORRERY_CHECK(begin >= 0 && count >= 0 && begin + count <= num_elements(), "{}: elements {} + {} of {}", name_, begin, count, num_elements());
  const int64_t end = begin + count;
  for (const Piece& piece : pieces_) {
    if (!piece.transpose) {
      for_each_row(piece, begin, end, visit);
      continue;
    }
    // A range of a row-major matrix: the rest of a first row, whole rows, the start of a last row.
    int64_t at = begin;
    while (at < end) {
      const int64_t row = at / columns_, column = at % columns_;
      const int64_t whole_rows = column == 0 ? (end - at) / columns_ : 0;
      const int64_t column_end = whole_rows > 0 ? columns_ : std::min(columns_, column + (end - at));
      for_each_column(piece, row, row + std::max<int64_t>(whole_rows, 1), column, column_end, at - begin, visit);
      at += whole_rows > 0 ? whole_rows * columns_ : column_end - column;
    }
  }
}

void LogicalView::read(int64_t begin, std::span<std::byte> out) const {
  const int64_t width = dtype_bytes(dtype_);
  for_each_run(begin, static_cast<int64_t>(out.size()) / width, [&](const Piece& piece, int64_t element, int64_t at, int64_t count, int64_t stride) {
    if (piece.data != nullptr) move_elements(piece.data + element * width, 1, out.data() + at * width, stride, count, width);
  });
}

void LogicalView::write(int64_t begin, std::span<const std::byte> in) const {
  const int64_t width = dtype_bytes(dtype_);
  for_each_run(begin, static_cast<int64_t>(in.size()) / width, [&](const Piece& piece, int64_t element, int64_t at, int64_t count, int64_t stride) {
    if (piece.data != nullptr) move_elements(in.data() + at * width, stride, piece.data + element * width, 1, count, width);
  });
}

int64_t LogicalView::held_elements(int holder, int64_t begin, int64_t count) const {
  int64_t held = 0;
  for_each_run(begin, count, [&](const Piece& piece, int64_t, int64_t, int64_t run, int64_t) { held += piece.holder == holder ? run : 0; });
  return held;
}

bool LogicalView::holds_any(int64_t begin, int64_t count) const {
  bool held = false;
  for_each_run(begin, count, [&](const Piece& piece, int64_t, int64_t, int64_t, int64_t) { held = held || piece.data != nullptr; });
  return held;
}

void LogicalView::pack(int holder, int64_t begin, int64_t count, std::byte* packed) const {
  const int64_t width = dtype_bytes(dtype_);
  for_each_run(begin, count, [&](const Piece& piece, int64_t element, int64_t, int64_t run, int64_t) {
    if (piece.holder != holder) return;
    ORRERY_CHECK(piece.data != nullptr, "{}: rank {} does not hold what it is to send", name_, holder);
    std::memcpy(packed, piece.data + element * width, static_cast<size_t>(run * width));
    packed += run * width;
  });
}

void LogicalView::unpack(int holder, int64_t begin, const std::byte* packed, std::span<std::byte> out) const {
  const int64_t width = dtype_bytes(dtype_);
  for_each_run(begin, static_cast<int64_t>(out.size()) / width, [&](const Piece& piece, int64_t, int64_t at, int64_t run, int64_t stride) {
    if (piece.holder != holder) return;
    move_elements(packed, 1, out.data() + at * width, stride, run, width);
    packed += run * width;
  });
}

// Pieces with the same corner are one box in the shards of a group, which must follow each other to its end; boxes must not overlap and
// together be the tensor.
void LogicalView::check_cover() {
  const auto corner = [](const Piece& piece) { return std::pair(piece.tensor_begin, piece.column_begin); };
  std::sort(pieces_.begin(), pieces_.end(), [&](const Piece& a, const Piece& b) { return std::pair(corner(a), a.held_begin) < std::pair(corner(b), b.held_begin); });
  std::vector<const Piece*> boxes;
  int64_t covered = 0;
  for (size_t i = 0; i < pieces_.size();) {
    const Piece& box = pieces_[i];
    const int64_t begin = box.row_begin * box.width, end = begin + box.count * box.width;
    int64_t held = begin;
    for (; i < pieces_.size() && corner(pieces_[i]) == corner(box); ++i) {
      const int64_t from = std::clamp(pieces_[i].held_begin, begin, end), to = std::clamp(pieces_[i].held_end, begin, end);
      ORRERY_CHECK(from == to || from == held, "{}: element {} wanted, {} found", name_, held - begin, from - begin);
      held = std::max(held, to);
    }
    ORRERY_CHECK(held == end, "{}: elements from {} on are held nowhere", name_, held - begin);
    for (const Piece* other : boxes)
      ORRERY_CHECK(other->tensor_begin + other->count <= box.tensor_begin || other->column_begin + other->width <= box.column_begin ||
                       box.column_begin + box.width <= other->column_begin,
                   "{}: rows from {} on are held twice", name_, box.tensor_begin);
    boxes.push_back(&box);
    covered += end - begin;
  }
  ORRERY_CHECK(covered == num_elements(), "{}: {} of {} elements are held", name_, covered, num_elements());
}

std::vector<LogicalView> logical_views(std::span<const PhysicalTensor> tensors) {
  std::vector<LogicalView> views;
  std::unordered_map<std::string, size_t> index;
  for (const PhysicalTensor& tensor : tensors) {
    for (const ParameterSegment& segment : tensor.spec->segments) {
      if (segment.holder != tensor.copy % segment.num_holders) continue;
      const auto [it, added] = index.emplace(segment.tensor, views.size());
      if (added) {
        LogicalView& view = views.emplace_back();
        view.name_ = segment.tensor;
        view.shape_ = segment.tensor_shape;
        view.dtype_ = tensor.dtype;
        view.rows_ = segment.tensor_shape[0];
        view.columns_ = segment.tensor_shape.size() > 1 ? segment.tensor_shape[1] : 1;
      }
      LogicalView& view = views[it->second];
      ORRERY_CHECK(view.dtype_ == tensor.dtype && view.shape_ == segment.tensor_shape, "{}: two different descriptions", segment.tensor);
      const int64_t held_end = tensor.element_end < 0 ? tensor.spec->num_elements() : tensor.element_end;
      const bool matrix = segment.tensor_shape.size() > 1;
      view.pieces_.push_back({.data = tensor.data,
                              .holder = tensor.holder,
                              .held_begin = tensor.element_begin,
                              .held_end = held_end,
                              .transpose = segment.transpose,
                              .tensor_begin = segment.tensor_row_begin,
                              .count = segment.num_rows,
                              .column_begin = segment.tensor_column_begin,
                              .width = matrix ? tensor.spec->columns() : 1,
                              .row_begin = segment.row_begin});
    }
  }
  for (LogicalView& view : views) view.check_cover();
  return views;
}

std::vector<TensorSource> tensor_sources(std::span<const PhysicalTensor> tensors, std::string_view suffix) {
  std::vector<TensorSource> sources;
  for (LogicalView& view : logical_views(tensors)) {
    const auto shared = std::make_shared<LogicalView>(std::move(view));
    const int64_t width = dtype_bytes(shared->dtype());
    sources.push_back({shared->name() + std::string(suffix), shared->dtype(), shared->shape(),
                       [shared, width](uint64_t offset, std::span<std::byte> out) { shared->read(static_cast<int64_t>(offset) / width, out); }});
  }
  return sources;
}

}  // namespace orrery
