// A simulated step as Perfetto reads it (Trace Event Format, complete events in microseconds). The events of a class are formatted
// once and repeated for every replica with its number, so that millions of events take seconds.
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "simulate/simulate.h"

namespace orrery {
namespace {

std::string_view letter(ActionKind kind) {
  if (kind == ActionKind::kForward) return "F";
  if (kind == ActionKind::kBackwardInput) return "I";
  return kind == ActionKind::kBackwardWeight ? "W" : "B";
}

struct Closer {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

}  // namespace

int64_t write_trace(const ClusterTimeline& timeline, const std::string& path) {
  std::unique_ptr<std::FILE, Closer> file(std::fopen(path.c_str(), "wb"));
  if (!file) throw Error(ErrorCode::kIo, "cannot write {}", path);
  std::vector<std::vector<std::string>> classes;  // events up to the process number
  for (const Timeline& one : timeline.classes) {
    std::vector<std::string> events;
    for (size_t rank = 0; rank < one.ranks.size(); ++rank)
      for (const TimelineEvent& event : one.ranks[rank])
        events.push_back(fmt::format(",\n{{\"ph\":\"X\",\"name\":\"{}{}{}\",\"ts\":{:.1f},\"dur\":{:.1f},\"tid\":{},\"pid\":", event.step.stage, letter(event.step.kind), event.step.micro_batch,
                                     event.begin * 1e6, (event.end - event.begin) * 1e6, rank));
    classes.push_back(std::move(events));
  }
  std::string buffer = "{\"traceEvents\":[{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":0,\"args\":{\"name\":\"replica 0\"}}";
  constexpr size_t kPiece = 1 << 20;
  int64_t count = 0;
  bool written = true;
  for (size_t replica = 0; replica < timeline.class_of_replica.size(); ++replica) {
    const std::string end = fmt::format("{}}}", replica);
    for (const std::string& event : classes[static_cast<size_t>(timeline.class_of_replica[replica])]) {
      buffer += event;
      buffer += end;
      ++count;
      if (buffer.size() >= kPiece) {
        written = written && std::fwrite(buffer.data(), 1, buffer.size(), file.get()) == buffer.size();
        buffer.clear();
      }
    }
  }
  buffer += "\n]}\n";
  written = written && std::fwrite(buffer.data(), 1, buffer.size(), file.get()) == buffer.size() && std::fflush(file.get()) == 0;
  if (!written) throw Error(ErrorCode::kIo, "cannot write {}: is the disk full?", path);
  return count;
}

}  // namespace orrery
