#include "train/shared_save.h"

#include "base/error.h"

namespace orrery {

std::vector<TensorSource> shared_tensor_sources(std::span<const PhysicalTensor> tensors, std::string_view suffix, Communicator& group, size_t portion_bytes,
                                                int64_t timeout_ms) {
  constexpr int kTag = 0;
  std::vector<TensorSource> sources;
  const auto staging = std::make_shared<std::vector<std::byte>>(group.rank() == 0 ? portion_bytes : 0);
  for (LogicalView& view : logical_views(tensors)) {
    const auto shared = std::make_shared<LogicalView>(std::move(view));
    const int64_t width = dtype_bytes(shared->dtype());
    TensorSource source{shared->name() + std::string(suffix), shared->dtype(), shared->shape(), {}};
    source.read = [shared, width, staging, &group, timeout_ms](uint64_t offset, std::span<std::byte> out) {
      CommLabel label("SAVE");
      label.timeout_ms = timeout_ms;
      const int64_t begin = static_cast<int64_t>(offset) / width, count = static_cast<int64_t>(out.size()) / width;
      if (group.rank() != 0) {
        const int64_t held = shared->held_elements(group.rank(), begin, count);
        if (held == 0) return;
        ORRERY_CHECK(held <= count, "{}: rank {} holds {} of {} elements", shared->name(), group.rank(), held, count);
        shared->pack(group.rank(), begin, count, out.data());
        group.send(out.first(static_cast<size_t>(held * width)), 0, kTag, label);
        return;
      }
      shared->read(begin, out);
      for (int holder = 1; holder < group.size(); ++holder) {
        const int64_t held = shared->held_elements(holder, begin, count);
        if (held == 0) continue;
        const std::span<std::byte> packed = std::span(*staging).first(static_cast<size_t>(held * width));
        group.recv(packed, holder, kTag, label);
        shared->unpack(holder, begin, packed.data(), out);
      }
    };
    sources.push_back(std::move(source));
  }
  return sources;
}

}  // namespace orrery
