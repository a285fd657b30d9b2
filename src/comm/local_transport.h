// Ranks as threads of one process. A send is matched with its receive under a short lock, and then whoever waits, sender or
// receiver, copies segments straight from the sender's buffer to the receiver's: one read and one write of each byte, both cores
// on one message where both wait, and no progress thread. A borrowing receive reads the sender's buffer in place.
#pragma once

#include <memory>
#include <vector>

#include "comm/transport.h"

namespace orrery {

struct LocalTransportOptions {
  int64_t segment_bytes = 256 << 10;  // what one waiter copies at a time; tests make it small
  int spin_iterations = -1;           // before a waiter sleeps; -1: a few microseconds, none when there are more ranks than cores
};

/// The endpoints of a world of `num_ranks` ranks, index = rank. They share the world's state; the last one frees it.
std::vector<std::unique_ptr<Transport>> make_local_world(int num_ranks, const LocalTransportOptions& options = {});

}  // namespace orrery
