// A run of a rank's parameters that ranks reduce, and gather, at one time. Pure data: parallel/data.h makes units, the memory map places them.
#pragma once

#include <cstdint>
#include <vector>

namespace orrery {

/// Parameters [first, first + count) of a chunk with one accumulator each, reduced in one collective: a layer, what stands before or after
/// the layers, or a tied matrix. Offsets are elements of a gradient buffer of the chunk (gradient_layout in ir/memory_map.h).
struct ParameterUnit {
  int32_t first = 0, count = 0;
  int32_t accumulator = 0;
  int32_t chunk = 0;
  std::vector<int64_t> starts;  // by parameter of the unit
  std::vector<int64_t> cuts;    // number of shards + 1: shard s is [cuts[s], cuts[s + 1])
  /// Where gradients are sharded, the slot in which the unit's gradients are until they are reduced; where weights are, the slot into which they
  /// are gathered. Units take turns in a slot. -1: none; of a tied matrix one unit has the weights.
  int32_t gradient_slot = -1, weight_slot = -1;

  int64_t begin() const { return cuts.front(); }
  int64_t size() const { return cuts.back() - cuts.front(); }
  int64_t shard_size(int64_t shard) const { return cuts[static_cast<size_t>(shard) + 1] - cuts[static_cast<size_t>(shard)]; }
  bool operator==(const ParameterUnit&) const = default;
};

/// What the ops of a rank's blocks do with units that take turns in slots: runs of ops between which no other unit is in the slot.
struct UnitUse {
  int32_t unit = 0;
  int32_t first_op = 0, last_op = 0;
  bool writes = false;  // the unit's gradients; false: its weights are read
  bool operator==(const UnitUse&) const = default;
};
struct UnitUses {
  std::vector<std::vector<UnitUse>> blocks;           // by Stage::block_index, by first op
  std::vector<int32_t> gradient_slot, weight_slot;    // by unit, as in ParameterUnit
};

}  // namespace orrery
