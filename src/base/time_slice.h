// How the kernel shares a core between a thread that computes and one that mostly waits.
#pragma once

namespace orrery {

/// For a thread that waits for others and then does a little at a time: its share of a core stays what it was, but it gets it in short pieces and
/// soon after it wakes, and its sleeps end within microseconds of what it asked for. Where the kernel knows no time slices of a thread (before
/// Linux 6.12), the first part is left out.
void prefer_short_time_slices();

}  // namespace orrery
