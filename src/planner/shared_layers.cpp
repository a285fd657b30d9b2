#include "planner/shared_layers.h"

#include <algorithm>

#include "base/error.h"
#include "ir/op_table.h"

namespace orrery {
namespace {

// What the ranks that share a layer have in common: their actions, and of each op in which some of them wait for each other block, kind,
// group and the name of what it makes: two sums of one size are not the same sum.
std::vector<std::string> common_order(const Plan& plan) {
  std::vector<std::string> calls;
  for (const Action& action : plan.schedule.actions) calls.push_back(to_string(action, plan.schedule));
  for (size_t block = 0; block < plan.stage.blocks.size(); ++block)
    for (const Op& op : plan.stage.blocks[block].ops)
      if (is_collective(op.kind))
        calls.push_back(fmt::format("{} {} of layer {} in {} of {} ranks {} apart", op_name(op.kind), plan.stage.value(op.outputs[0]).name, op.layer, phase_name(Stage::phase_of(block)),
                                    group_of(plan.stage, op).size, group_of(plan.stage, op).stride));
  return calls;
}

// What the members of a group have in common: the operands of those ops.
std::vector<std::string> common_operands(const Plan& plan, const GroupAttributes& group) {
  std::vector<std::string> calls;
  for (const Block& block : plan.stage.blocks)
    for (const Op& op : block.ops) {
      if (!is_collective(op.kind) || group_of(plan.stage, op) != group) continue;
      std::string call(op_name(op.kind));
      for (ValueId id : op.inputs) {
        const Value& value = plan.stage.value(id);
        call += fmt::format(" {} {} from {}", dtype_name(value.dtype), to_string(value.shape), value.kind == ValueKind::kGradient ? value.element_offset : 0);
      }
      calls.push_back(std::move(call));
    }
  return calls;
}

// The first line in which two lists differ, as both have it; nothing when they are equal.
std::optional<std::string> first_difference(const std::vector<std::string>& here, const std::vector<std::string>& there) {
  const auto [mine, other] = std::mismatch(here.begin(), here.end(), there.begin(), there.end());
  if (mine == here.end() && other == there.end()) return std::nullopt;
  return fmt::format("{}, there {}", mine == here.end() ? "nothing more" : *mine, other == there.end() ? "nothing more" : *other);
}

// What a rank of `group` sends in an op whose token rows are those of `tokens` tokens of this rank.
int64_t bytes_sent(const Plan& plan, const Op& op, int64_t tokens) {
  const ParallelContext& parallel = plan.options.parallel;
  const GroupAttributes group = group_of(plan.stage, op);
  const int64_t size = group.size, rank = parallel.part() / group.stride % size;
  const auto bytes_of = [&](ValueId id) {
    const Value& value = plan.stage.value(id);
    int64_t elements = 1;
    for (const Dim& dim : value.shape) switch (dim.dynamic) {
        case DynamicDim::kTokens: elements *= tokens; break;
        case DynamicDim::kTokenShare: elements *= tokens / parallel.tensor_size; break;
        case DynamicDim::kAllTokens: elements *= tokens * parallel.context_size; break;
        default: elements *= dim.bound;
      }
    return elements * dtype_bytes(value.dtype);
  };
  const int64_t bytes = bytes_of(op.inputs[0]);
  switch (op.kind) {
    case OpKind::kAllReduce: {
      // A reduce_scatter of equal parts, then an all_gather of them.
      const int64_t width = dtype_bytes(plan.stage.value(op.inputs[0]).dtype), count = bytes / width, own = count / size + (rank < count % size ? 1 : 0);
      return (count - own + own * (size - 1)) * width;
    }
    case OpKind::kVocabularyLoss: return tokens * 8 * (size - 1);
    case OpKind::kGatherTokens: return bytes * (size - 1);
    case OpKind::kReduceScatterTokens:
    case OpKind::kTokensToHeads:
    case OpKind::kHeadsToTokens: return bytes / size * (size - 1);
    // Keys and values to the next rank; their gradients, in f32, all the way round.
    case OpKind::kRingAttention: return (bytes_of(op.inputs[1]) + bytes_of(op.inputs[2])) * (size - 1);
    case OpKind::kRingAttentionGrad:
      return (bytes_of(op.inputs[2]) + bytes_of(op.inputs[3])) * (size - 1) + (bytes_of(op.inputs[2]) + bytes_of(op.inputs[3])) / dtype_bytes(plan.options.compute_dtype) * 4 * size;
    default: ORRERY_CHECK(false, "{} is no collective", op_name(op.kind));
  }
  return 0;
}

}  // namespace

std::vector<GroupAttributes> op_groups(const TrainingPlanOptions& options) {
  const ParallelContext& parallel = options.parallel;
  const int64_t same_heads = std::max<int64_t>(1, parallel.tensor_size / options.model.num_kv_heads);
  std::vector<GroupAttributes> groups;
  for (const GroupAttributes& group : {GroupAttributes{parallel.tensor_size, parallel.context_size}, GroupAttributes{parallel.context_size, 1},
                                       GroupAttributes{same_heads * parallel.context_size, 1}, GroupAttributes{parallel.num_parts(), 1}})
    if (group.size > 1 && std::find(groups.begin(), groups.end(), group) == groups.end()) groups.push_back(group);
  return groups;
}

std::map<OpKind, int64_t> op_bytes_sent(const Plan& plan) {
  std::map<OpKind, int64_t> bytes;
  for (const Action& action : plan.schedule.actions) {
    const std::optional<Phase> phase = phase_of_action(action.kind);
    if (!phase) continue;
    const int64_t tokens = action.micro_batch < 0 ? 0 : plan.schedule.micro_batches[static_cast<size_t>(action.micro_batch)].num_sequences * plan.options.local_tokens();
    for (const Op& op : plan.stage.block(*phase, action.chunk).ops)
      if (is_collective(op.kind)) bytes[op.kind] += bytes_sent(plan, op, tokens);
  }
  return bytes;
}

std::vector<std::string> verify_shared_layers(std::span<const Plan> plans) {
  std::vector<std::string> problems;
  for (const Plan& plan : plans) {
    const TrainingPlanOptions& options = plan.options;
    const auto part = [&](int64_t index) -> const Plan& { return plans[static_cast<size_t>(index * options.slice_size() + options.slice_rank())]; };
    const auto compare = [&](const Plan& other, const std::vector<std::string>& here, const std::vector<std::string>& there) {
      if (const auto difference = first_difference(here, there))
        problems.push_back(fmt::format("rank {}, which shares its layers with rank {}, has {}", options.world_rank(), other.options.world_rank(), *difference));
    };
    compare(part(0), common_order(plan), common_order(part(0)));
    for (const GroupAttributes& group : op_groups(options)) {
      const int64_t span = group.size * group.stride, own = options.parallel.part();
      const Plan& first = part(own / span * span + own % group.stride);
      compare(first, common_operands(plan, group), common_operands(first, group));
    }
  }
  return problems;
}

}  // namespace orrery
