// The values and straight-line op lists that one rank runs: forward, backward and optimizer. A rank of a pipeline may hold several
// chunks, stages of the model that are not neighbours; each has blocks of its own. All blocks share one value table, so that a value
// saved by the forward is the same Value in the backward. Where a value lives is not known here: the memory map says so.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ir/dtype.h"
#include "ir/op.h"
#include "ir/parallel_context.h"
#include "ir/parameter_spec.h"

namespace orrery {

/// Which run-time count a dimension follows. Its `bound` is what is planned for; what is bound at run time is at most that.
enum class DynamicDim : uint8_t {
  kStatic,
  kTokens,           // T rows of a micro-batch: this rank's tokens
  kTokenShare,       // T / tensor_size: what sequence parallelism leaves each tensor rank
  kAllTokens,        // T * context_size: the tokens of all context ranks
  kSegments,         // S attention segments (documents, or sequences when serving)
  kSegmentsPlusOne,  // cu_seqlens
  kRows,             // M rows gathered before the head
};

struct Dim {
  int64_t bound = 0;
  DynamicDim dynamic = DynamicDim::kStatic;
  bool operator==(const Dim&) const = default;
};

using Shape = std::vector<Dim>;

int64_t num_elements(const Shape& shape);  // at the bounds
std::string to_string(const Shape& shape);  // "[T<=2048, 768]"

enum class ValueKind : uint8_t {
  kBatch,       // index = BatchField: a slice of the step's batch
  kParameter,   // index = parameter: the compute weight; sub = 1: its packed form, bytes
  kConstant,    // index = constant: filled once at start, e.g. the rope table
  kActivation,  // made by an op of forward or backward; lives in an activation slot
  kGradient,    // index = parameter, sub = accumulator: summed over micro-batches in a gradient buffer
  kState,       // index = parameter, sub = StateField
  kStep,        // index = StepField: the step's scalars and per-block sums
  kKvCache,     // index = layer, sub = 0 keys, 1 values
};

enum class BatchField : uint8_t { kIds, kTargets, kPositions, kCuSeqlens, kTokenLoss, kRows, kSlots, kBlockTable, kContextLens, kLogits };
/// kNewest: the weight that the last update made, where it is not the one that forwards and backwards read: with delayed gradients that is the one of the
/// update before, with offloaded parameters it comes from there.
enum class StateField : uint8_t { kLow, kMoment1, kMoment2, kNewest, kCount };
constexpr size_t kNumStateFields = static_cast<size_t>(StateField::kCount);
enum class StepField : uint8_t { kHyper, kNumValid, kSquaredSums, kScale, kStats };

std::string_view value_kind_name(ValueKind kind);

using ValueId = int32_t;
constexpr ValueId kNoValue = -1;

struct Value {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  ValueKind kind = ValueKind::kActivation;
  int32_t index = 0;
  int32_t sub = 0;
  /// A slice of columns of another activation: nothing is copied, rows are strided. kNoValue for a value with its own memory.
  ValueId view_of = kNoValue;
  /// kActivation views: first column in the viewed rows. kGradient, kState, kParameter, kStep: first element inside the buffer.
  int64_t element_offset = 0;
  /// kGradient: which of the two gradient buffers of an action (0 destination, 1 source of a merge). kGradient and kParameter: kShardRole for
  /// elements of the part that this rank keeps, element_offset counted from the part's first.
  static constexpr int32_t kShardRole = 2;
  /// kState: of a piece that is fetched for its update (offload.h): element_offset counts from the first byte of the piece's slot.
  static constexpr int32_t kOffloadRole = 3;
  int32_t buffer_role = 0;
  int32_t layer = -1;
  int32_t chunk = 0;  // kActivation, kGradient: whose slots or gradient buffers hold it

  int64_t bytes() const { return num_elements(shape) * dtype_bytes(dtype); }
};

struct Op {
  OpKind kind{};
  std::vector<ValueId> inputs;
  std::vector<ValueId> outputs;
  Attributes attributes;
  int32_t layer = -1;
  bool recomputed = false;  // put into the backward by the recompute pass
};

/// kBackwardInput and kBackwardWeight are the two halves of kBackward, for schedules that run them apart. kNorm and kOptimizer are of the
/// whole rank and stand with chunk 0; the others are of a chunk.
enum class Phase : uint8_t { kForward, kBackward, kBackwardInput, kBackwardWeight, kMerge, kNorm, kOptimizer, kEval, kCount };
constexpr size_t kNumPhases = static_cast<size_t>(Phase::kCount);
std::string_view phase_name(Phase phase);

struct Block {
  Phase phase{};
  std::vector<Op> ops;
};

/// A constant's recipe: what the runtime fills it with.
struct RopeTable {
  int64_t max_positions = 0;
  int64_t rotary_dim = 0;
  double theta = 10000.0;
  // Llama 3 frequency scaling (factor 1 = none) or linear position scaling.
  double factor = 1.0, low_freq_factor = 1.0, high_freq_factor = 4.0;
  int64_t original_max_positions = 0;
  bool llama3 = false;
  bool operator==(const RopeTable&) const = default;
};

/// The hidden states and their gradients at a chunk's two ends; kNoValue where the model itself begins or ends. A neighbour on the same
/// rank has the same values, which then live in the slot of the earlier chunk; otherwise they are what is sent and received.
struct StageBoundary {
  ValueId input = kNoValue, output = kNoValue;
  ValueId input_gradient = kNoValue, output_gradient = kNoValue;
};

/// Everything that one rank computes.
struct Stage {
  DType compute_dtype = DType::kBF16;
  ParallelContext parallel;  // which part of its layers it is
  std::vector<ParameterSpec> parameters;
  std::vector<RopeTable> constants;
  std::vector<Value> values;
  std::vector<Block> blocks = std::vector<Block>(kNumPhases);  // by chunk and phase: block_index()
  std::vector<StageBoundary> boundaries = {{}};                // by chunk

  int32_t num_chunks() const { return static_cast<int32_t>(boundaries.size()); }
  static size_t block_index(Phase phase, int32_t chunk) { return static_cast<size_t>(chunk) * kNumPhases + static_cast<size_t>(phase); }
  static Phase phase_of(size_t block_index) { return static_cast<Phase>(block_index % kNumPhases); }
  Block& block(Phase phase, int32_t chunk = 0) { return blocks[block_index(phase, chunk)]; }
  const Block& block(Phase phase, int32_t chunk = 0) const { return blocks[block_index(phase, chunk)]; }
  const Value& value(ValueId id) const { return values[static_cast<size_t>(id)]; }
  /// The value whose memory `id` uses: itself, or what it is a view of.
  ValueId storage(ValueId id) const { return value(id).view_of == kNoValue ? id : value(id).view_of; }
};

/// Appends ops to one block of a stage, inferring the types of what they make.
class BlockBuilder {
 public:
  BlockBuilder(Stage& stage, Phase phase) : stage_(stage), phase_(phase) {}

  Stage& stage() { return stage_; }
  void set_layer(int32_t layer) { layer_ = layer; }

  ValueId add_value(Value value);
  ValueId batch(BatchField field, DType dtype, Shape shape);
  /// The compute weight of a parameter; the known one when the stage has a parameter of this name (a second phase).
  ValueId parameter(ParameterSpec spec);
  ValueId constant(const RopeTable& table);

  /// Appends an op. `outputs` names values to write (gradient accumulators, step fields); kNoValue entries, and a shorter list,
  /// are filled with new activations whose types come from infer_types. Returns all outputs. `name` labels new values.
  std::vector<ValueId> emit(OpKind kind, std::vector<ValueId> inputs, Attributes attributes = NoAttributes{},
                            std::vector<ValueId> outputs = {}, const std::string& name = {});
  /// emit() for an op with one output.
  ValueId emit_one(OpKind kind, std::vector<ValueId> inputs, Attributes attributes = NoAttributes{}, const std::string& name = {}) {
    return emit(kind, std::move(inputs), std::move(attributes), {}, name)[0];
  }

 private:
  Stage& stage_;
  Phase phase_;
  int32_t layer_ = -1;
};

/// One line an op: "%12 bf16 [T<=2048, 768] = linear(%10, %11)": for `plan --ops`, tests and messages.
std::string to_string(const Stage& stage, Phase phase);

}  // namespace orrery
