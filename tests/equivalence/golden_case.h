// A model beside what PyTorch computes from the same weights: folders made by scripts/torch_reference.py (config.json,
// model.safetensors or a model.gguf instead of both; golden.safetensors). The test holds small ones to NUMERICS rule 14; compare_golden prints real ones.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/model_source.h"
#include "ir/dtype.h"
#include "ir/parallel_context.h"

namespace orrery {

/// One tensor's distance from the float64 oracle, and the most that rule 14 allows: 2 ||reference - f64||, the reference being PyTorch
/// in the same type. Both are norms; `exact_norm` is the oracle's own.
struct Measurement {
  std::string name;
  double error = 0, bound = 0, exact_norm = 0;
  bool within() const { return error <= bound; }  // false for NaN
};

class GoldenCase {
 public:
  /// Errors: those of open_model, and kCorruptData when golden.safetensors is not whole.
  GoldenCase(const std::string& folder, int num_threads);

  bool has_losses() const { return values_.contains("losses"); }

  /// Logits of the first batch through Generator, token by token.
  Measurement logits(DType compute_dtype) const;
  /// The gradient of the mean loss of the first batch, tensor by tensor, as the optimizer is about to see it; by ranks that share the
  /// layers in this way.
  std::vector<Measurement> gradients(DType compute_dtype, const ParallelContext& parallel = {}) const;
  /// AdamW in f32 over the batches in turn: the distance of each step's loss from float64's. The bound is twice the larger of
  ///  - the largest distance of PyTorch's f32 runs up to this step (runs in several orders of summation: scripts/torch_reference.py).
  ///    One scalar's distance is one draw of a random number, and runs drift apart with the steps, so earlier steps count;
  ///  - 2^-24 of the loss, half a unit in the last place of the f32 number that PyTorch returns.
  std::vector<Measurement> losses(const ParallelContext& parallel = {}) const;

 private:
  struct Tensor {
    std::vector<int64_t> shape;
    std::vector<double> values;  // of any type in the file
  };
  const Tensor& tensor(const std::string& name) const;
  Measurement measure(const std::string& name, const std::vector<double>& x, DType compute_dtype) const;
  void fill_batch(class TrainingEngine& engine, int copy, int64_t batch) const;

  int num_threads_;
  ModelSource source_;
  std::map<std::string, Tensor> values_;
  std::map<std::string, std::string> optimizer_;
};

}  // namespace orrery
