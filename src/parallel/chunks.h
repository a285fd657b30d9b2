// The chunks of a pipeline's rank: passes build and rewrite each stage of the model by itself; here they become one value table with
// blocks for each chunk, and a backward becomes two halves where the schedule runs them apart.
#pragma once

#include "ir/block.h"

namespace orrery {

/// Adds `chunk`, a stage by itself with one chunk, as the next chunk of `rank`. Parameters of one name become one parameter (a tied matrix
/// whose two uses are on one rank), constants and batch fields likewise. `follows`: the chunk is the next stage behind the last one here,
/// so that they share the values at their boundary.
void append_chunk(Stage& rank, const Stage& chunk, bool follows);

/// Fills kBackwardInput and kBackwardWeight of a stage with one chunk from its kBackward: the weight half has the ops that make nothing but
/// parameter gradients, and what is recomputed for them alone. Run last: other passes do not keep the halves and the whole alike.
void split_backward(Stage& stage);

}  // namespace orrery
