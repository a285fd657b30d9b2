// A physical parameter of a block in terms of the logical tensors that the world knows (Hugging Face names). Checkpoints,
// export, digest, initialization and, later, sharding all read this one description.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace orrery {

/// A whole logical tensor, or a box of its rows and columns, that fills rows [row_begin, row_begin + num_rows) of a physical parameter.
/// A physical matrix is [out_features, in_features]; `transpose` marks a tensor that is stored [in, out] in the world
/// (GPT-2's Conv1D): physical (row, column) = tensor (tensor_column_begin + column, tensor_row_begin + row).
struct ParameterSegment {
  std::string tensor;                 // Hugging Face name, e.g. "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> tensor_shape;  // as stored in the world
  bool transpose = false;
  int64_t tensor_row_begin = 0;  // first row taken from the tensor, counted after transposition
  int64_t row_begin = 0;
  int64_t num_rows = 0;
  int32_t tensor_index = 0;  // position in model order: the op id of the tensor's initialization draws
  int64_t tensor_column_begin = 0;  // as tensor_row_begin: a physical parameter may have fewer columns than its tensors
  // Neighbouring parts of the layer (ParallelContext::part) that hold these same rows, and which of them this is.
  int64_t num_holders = 1, holder = 0;
  int64_t num_summands = 1;  // neighbouring holders of which each makes a part of the gradient: their sum is all holders' gradient
  bool operator==(const ParameterSegment&) const = default;
};

enum class InitKind : uint8_t { kZeros, kOnes, kNormal };

/// Shapes   [rows, columns] for a matrix, [n] for a vector (n rows of one column).
/// Layout   row-major; segments in ascending row order, covering rows [0, rows - padding_rows); padding rows are zero and stay zero.
struct ParameterSpec {
  std::string name;  // physical name, e.g. "layers.0.attention.qkv"
  std::vector<int64_t> shape;
  std::vector<ParameterSegment> segments;
  int64_t padding_rows = 0;
  bool decay = false;          // weight decay applies: matrices, not norms, biases or embeddings
  InitKind init = InitKind::kZeros;
  float init_std = 0;          // kNormal
  int num_accumulators = 1;    // 2 for a parameter used twice (tied embedding and head), NUMERICS rule 6

  int64_t rows() const { return shape[0]; }
  int64_t columns() const { return shape.size() > 1 ? shape[1] : 1; }
  int64_t num_elements() const { return rows() * columns(); }
  bool operator==(const ParameterSpec&) const = default;
};

/// Whether the parameter has only a part of one of its tensors: other tensor ranks have the rest.
bool is_part(const ParameterSpec& spec);

/// Segments cover the rows without gap or overlap and agree with their tensors' shapes; aborts when not (a bug in a model builder).
void check_parameter_spec(const ParameterSpec& spec);

}  // namespace orrery
