// What does not fit and lies in a file or another memory tier for a while. The optimizer's state: each piece of it comes into a slot of the arena for
// its update and goes back. A layer's activations: they go behind its forward and come back before its backward. Pure data: parallel/offload.h
// cuts and schedules the copies, verify_offload.h checks them.
#pragma once

#include <cstdint>
#include <vector>

#include "ir/block.h"

namespace orrery {

/// Pieces take turns in equal slots: piece i is in slot i % count.
struct OffloadSlots {
  int32_t count = 0;  // 0: nothing is offloaded
  int64_t bytes = 0;  // of one
  bool operator==(const OffloadSlots&) const = default;
};

/// Elements [begin, end) of a parameter's state field.
struct OffloadPart {
  int32_t parameter = 0;
  StateField field{};
  DType dtype{};
  int64_t begin = 0, end = 0;
  int64_t offset = 0;  // bytes, inside the piece
  bool operator==(const OffloadPart&) const = default;
};

/// What moves in one copy, and the ops of the optimizer block that need it.
struct OffloadPiece {
  std::vector<OffloadPart> parts;
  int64_t bytes = 0;
  int64_t file_offset = 0;  // pieces lie one after the other
  int32_t first_op = 0, last_op = 0;
  bool operator==(const OffloadPiece&) const = default;
};

/// Activations of one layer of a chunk that are elsewhere between a micro-batch's forward and its backward. Their places in the arena are their
/// slot's until op `gone_before` of the forward, and again from behind op `comes_after` of the backward (its input half, where it has halves).
struct ActivationGroup {
  int32_t chunk = 0;
  std::vector<ValueId> values;
  std::vector<int64_t> offsets;  // of each value, bytes inside the group
  int64_t bytes = 0;
  int64_t file_offset = 0;    // of slot 0; the other slots of the chunk follow
  int32_t leaves_after = 0;   // op of the forward that touches one of them last
  int32_t gone_before = 0;
  int32_t comes_after = 0;
  int32_t needed_before = 0;  // op of the backward that reads one first
  bool operator==(const ActivationGroup&) const = default;
};

struct StateOffload {
  std::vector<OffloadPiece> pieces;  // in the order of their updates; none where nothing is offloaded
  OffloadSlots slots;
  int32_t slot_of(int32_t piece) const { return piece % slots.count; }
  int64_t bytes() const { return pieces.empty() ? 0 : pieces.back().file_offset + pieces.back().bytes; }
  bool operator==(const StateOffload&) const = default;
};

}  // namespace orrery
