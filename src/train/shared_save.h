// A checkpoint of tensors that several processes hold in parts: the sources of one save, of which rank 0 of the group writes the files and
// the others send it what they hold, portion by portion, in the order of the save (CheckpointOptions::Role).
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "checkpoint/tensor_map.h"
#include "comm/communicator.h"

namespace orrery {

/// As tensor_sources(). `tensors` are those of all processes, in the same order everywhere; what this process does not hold has no data.
/// On rank 0 a read receives the missing elements from their holders, through `portion_bytes` of memory that the sources share; on the
/// others it sends this rank's and leaves `out` undefined. Reads come from one thread. Errors: the group's, after `timeout_ms`.
///   Bytes  each element that rank 0 does not hold crosses once.
std::vector<TensorSource> shared_tensor_sources(std::span<const PhysicalTensor> tensors, std::string_view suffix, Communicator& group, size_t portion_bytes,
                                                int64_t timeout_ms);

}  // namespace orrery
