#include "runtime/machine_probe.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "backend/kernel.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "comm/communicator.h"
#include "runtime/arena.h"
#include "runtime/energy_counter.h"
#include "runtime/memory_bandwidth.h"

namespace orrery {
namespace {

constexpr int kProbeVersion = 4;
constexpr double kSecondsPerRate = 0.4, kSecondsPerShape = 0.1;
constexpr int64_t kMessageBytes = int64_t{16} << 20;
constexpr int64_t kDiskBytes = int64_t{64} << 20, kDiskChunkBytes = int64_t{8} << 20;
constexpr int64_t kGemmRows = 512, kGemmWidth = 2048;

double now_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Of all threads of this process. Those of a pool spin where they wait, so that they use all that they are given.
double processor_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// The shortest of the runs that fit into the time, after one to warm up. Other work on the machine only makes a run longer.
template <typename Body>
double best_seconds(Body&& body, double for_seconds = kSecondsPerRate) {
  body();
  double best = 1e300;
  const double end = now_seconds() + for_seconds;
  do {
    const double start = now_seconds();
    body();
    best = std::min(best, now_seconds() - start);
  } while (now_seconds() < end);
  return best;
}

int64_t last_cache_bytes(const MachineFacts& facts) {
  int64_t largest = 0;
  for (const CacheFact& cache : facts.topology.caches) largest = std::max(largest, cache.bytes);
  return largest;
}

void measure_memory(ThreadPool& pool, MachineProbe& probe) {
  // Four times the last cache, but a sixteenth of what is free at most: a probe must never be what fills a machine. A shared
  // host may report a last cache of hundreds of MiB of which this process owns a part.
  const int64_t wanted = std::clamp<int64_t>(4 * last_cache_bytes(probe.facts), int64_t{256} << 20, int64_t{512} << 20);
  const int64_t bytes = std::min(wanted, probe.facts.memory_available_bytes / 16) / (1 << 20) * (1 << 20);
  if (bytes < (int64_t{16} << 20)) {
    probe.notes += "too little free memory to measure its bandwidth; ";
    return;
  }
  if (bytes < 2 * last_cache_bytes(probe.facts))
    probe.notes += "memory rates: the buffer is not much larger than the last cache; ";
  const Arena arena(bytes);
  std::byte* data = arena.data();
  std::vector<uint64_t> sink(static_cast<size_t>(pool.num_threads()) * 8);
  const double read = best_seconds([&] {
    pool.run([&](int thread, int num_threads) {
      const int64_t units = bytes / 256;
      const int64_t begin = units * thread / num_threads * 256, end = units * (thread + 1) / num_threads * 256;
      sink[static_cast<size_t>(thread) * 8] = read_all_bytes_avx2(data + begin, static_cast<size_t>(end - begin));
    });
  });
  const int64_t half = bytes / 2;
  const double copy = best_seconds([&] {
    pool.parallel_for(half, 4096, [&](int64_t begin, int64_t end) {
      std::memcpy(data + half + begin, data + begin, static_cast<size_t>(end - begin));
    });
  });
  probe.memory_read_bytes_per_second = static_cast<double>(bytes) / read;
  probe.memory_copy_bytes_per_second = 2.0 * static_cast<double>(half) / copy;
}

TensorView matrix_view(std::byte* data, DType dtype, int64_t rows, int64_t columns) {
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.num_dims = 2;
  view.dims = {rows, columns, 0, 0};
  view.row_stride = columns;
  return view;
}

/// FLOP/s of y = x weight^T through the same kernel that training uses.
double measure_gemm(ThreadPool& pool, DType dtype, int64_t rows, int64_t columns, int64_t depth, double for_seconds) {
  const KernelEntry& kernel = cpu_kernel(OpKind::kLinear, dtype);
  const CpuFeatures& features = cpu_features();
  const Arithmetic arithmetic = dtype == DType::kF32 ? Arithmetic::kFma1 : native_arithmetic(features);
  const DeviceSpec device{
      .isa = features.best_isa(), .arithmetic = arithmetic, .native_arithmetic = true, .num_threads = pool.num_threads()};
  const KernelContext context{.pool = &pool, .isa = device.isa, .arithmetic = arithmetic, .native_arithmetic = true};
  const Attributes attributes = NoAttributes{};
  const auto bytes = [&](int64_t elements) { return (elements * dtype_bytes(dtype) + 63) / 64 * 64; };
  const int64_t x_bytes = bytes(rows * depth), weight_bytes = bytes(columns * depth), y_bytes = bytes(rows * columns);
  std::vector<TensorView> inputs = {matrix_view(nullptr, dtype, rows, depth), matrix_view(nullptr, dtype, columns, depth)};
  std::vector<TensorView> outputs = {matrix_view(nullptr, dtype, rows, columns)};
  OpCall call;
  call.kind = OpKind::kLinear;
  call.inputs = inputs;
  call.outputs = outputs;
  call.attributes = &attributes;
  const int64_t workspace_bytes = kernel.workspace_bytes != nullptr ? kernel.workspace_bytes(device, call) : 0;
  // Zeroed memory: the products are 0, and no instruction here takes longer for other values.
  const Arena arena(x_bytes + weight_bytes + y_bytes + workspace_bytes);
  inputs[0].data = arena.data();
  inputs[1].data = arena.data() + x_bytes;
  outputs[0].data = arena.data() + x_bytes + weight_bytes;
  call.workspace = {arena.data() + x_bytes + weight_bytes + y_bytes, static_cast<size_t>(workspace_bytes)};
  const double seconds = best_seconds([&] { kernel.run(context, call); }, for_seconds);
  return 2.0 * static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(depth) / seconds;
}

// What a token or a micro-batch meets in models of 10 M to 1 B parameters: few rows, a narrow model, a wide feed-forward, a head.
constexpr struct {
  int64_t rows, columns, depth;
} kGemmShapes[] = {{16, 2048, 2048}, {2048, 1152, 384}, {2048, 3072, 768}, {2048, 768, 3072}, {512, 8192, 1024}};

void measure_gemms(ThreadPool& pool, MachineProbe& probe) {
  if (!cpu_features().avx2) {
    probe.notes += "this processor lacks AVX2, which Orrery's kernels need; ";
    return;
  }
  try {
    EnergyCounter energy;
    const double begin = now_seconds(), processor_begin = processor_seconds();
    probe.gemm_bf16_flops_per_second = measure_gemm(pool, DType::kBF16, kGemmRows, kGemmWidth, kGemmWidth, kSecondsPerRate);
    probe.gemm_f32_flops_per_second = measure_gemm(pool, DType::kF32, kGemmRows, kGemmWidth, kGemmWidth, kSecondsPerRate);
    for (const DType dtype : {DType::kBF16, DType::kF32})
      for (const auto& shape : kGemmShapes)
        probe.gemm_shapes.push_back({std::string(dtype_name(dtype)), shape.rows, shape.columns, shape.depth,
                                     measure_gemm(pool, dtype, shape.rows, shape.columns, shape.depth, kSecondsPerShape)});
    const double seconds = now_seconds() - begin;
    probe.busy_watts = energy.joules() / seconds;
    probe.core_share = (processor_seconds() - processor_begin) / (seconds * pool.num_threads());
    if (measured_beside_other_work(probe))
      probe.notes += fmt::format("other work took {:.0f} % of the cores: the rates are low, and are measured again by the next `orrery probe`; ", 100 * (1 - probe.core_share));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) throw;
    probe.notes += fmt::format("matrix products: {}; ", error.what());
  }
}

// Two ranks as threads, as `--ranks 2` makes them.
void measure_links(MachineProbe& probe) {
  if (probe.facts.usable_cores < 2) {
    probe.notes += "one core: ranks as threads have no link to measure; ";
    return;
  }
  run_local_ranks(2, {}, [&](Communicator& comm) {
    std::vector<std::byte> out(static_cast<size_t>(kMessageBytes)), in(static_cast<size_t>(kMessageBytes));
    const int other = 1 - comm.rank();
    double best = 1e300, best_trip = 1e300;
    for (int repeat = 0; repeat < 12; ++repeat) {
      comm.barrier("BAR");
      const double begin = now_seconds();
      Work receive = comm.post_recv(in, other, 0, "R"), send = comm.post_send(out, other, 0, "S");
      receive.wait();
      send.wait();
      best = std::min(best, now_seconds() - begin);
    }
    const std::span<std::byte> word(in.data(), 8);
    for (int repeat = 0; repeat < 200; ++repeat) {
      const double begin = now_seconds();
      if (comm.rank() == 0) comm.send(word, 1, 1, "PING"), comm.recv(word, 1, 2, "PONG");
      else comm.recv(word, 0, 1, "PING"), comm.send(word, 0, 2, "PONG");
      best_trip = std::min(best_trip, now_seconds() - begin);
    }
    if (comm.rank() == 0) probe.link_bytes_per_second = static_cast<double>(kMessageBytes) / best, probe.link_latency_seconds = best_trip / 2;
  });
}

/// A file that disappears with its descriptor.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& folder) : path_(folder + "/.orrery_probe_XXXXXX") {
    file_ = ::mkostemp(path_.data(), O_CLOEXEC);
    if (file_ < 0) throw_io_error(errno, fmt::format("cannot write into {} to measure the disk; give another --dir", folder));
    ::unlink(path_.c_str());
  }
  ~ScratchFile() { ::close(file_); }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  void write(const std::byte* data, int64_t bytes) {
    while (bytes > 0) {
      const ssize_t count = ::write(file_, data, static_cast<size_t>(bytes));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) throw_io_error(errno, "cannot write the scratch file that measures the disk");
      data += count;
      bytes -= count;
    }
  }
  void sync() {
    if (::fsync(file_) != 0) throw_io_error(errno, "cannot sync the scratch file that measures the disk");
  }

 private:
  std::string path_;
  int file_ = -1;
};

void measure_disk(const std::string& folder, MachineProbe& probe) {
  ScratchFile file(folder);
  std::vector<std::byte> chunk(static_cast<size_t>(kDiskChunkBytes));
  // Not zeros: file systems and devices may compress.
  uint64_t state = 88172645463325252u;
  for (std::byte& byte : chunk) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    byte = static_cast<std::byte>(state);
  }
  const double start = now_seconds();
  for (int64_t done = 0; done < kDiskBytes; done += kDiskChunkBytes) file.write(chunk.data(), kDiskChunkBytes);
  file.sync();
  probe.disk_write_bytes_per_second = static_cast<double>(kDiskBytes) / (now_seconds() - start);
  std::vector<double> syncs;
  for (int i = 0; i < 9; ++i) {
    const double begin = now_seconds();
    file.write(chunk.data(), 4096);
    file.sync();
    syncs.push_back(now_seconds() - begin);
  }
  std::nth_element(syncs.begin(), syncs.begin() + 4, syncs.end());
  probe.fsync_seconds = syncs[4];
  probe.disk_folder = std::filesystem::absolute(folder).lexically_normal().string();
}

}  // namespace

bool measured_beside_other_work(const MachineProbe& probe) {
  constexpr double kAlone = 0.9;
  return probe.core_share > 0 && probe.core_share < kAlone;
}

MachineProbe measure_machine(const ProbeOptions& options) {
  MachineProbe probe;
  probe.facts = machine_facts();
  ThreadPool pool(options.num_threads > 0 ? options.num_threads : probe.facts.usable_cores);
  if (probe.facts.isa.find("avx2") != std::string::npos) measure_memory(pool, probe);
  measure_gemms(pool, probe);
  measure_links(probe);
  if (!options.disk_folder.empty()) measure_disk(options.disk_folder, probe);
  if (probe.notes.ends_with("; ")) probe.notes.resize(probe.notes.size() - 2);
  return probe;
}

std::string probe_to_json(const MachineProbe& probe) {
  const MachineFacts& facts = probe.facts;
  nlohmann::ordered_json caches = nlohmann::ordered_json::array();
  for (const CacheFact& cache : facts.topology.caches) {
    caches.push_back({{"level", cache.level}, {"type", cache.type}, {"bytes", cache.bytes}, {"shared_by", cache.shared_by}});
  }
  nlohmann::ordered_json nodes = nlohmann::ordered_json::array();
  for (const MemoryNode& node : facts.topology.memory_nodes) nodes.push_back({{"index", node.index}, {"bytes", node.bytes}, {"threads", node.num_threads}});
  nlohmann::ordered_json shapes = nlohmann::ordered_json::array();
  for (const GemmRate& rate : probe.gemm_shapes)
    shapes.push_back({{"dtype", rate.dtype}, {"rows", rate.rows}, {"columns", rate.columns}, {"depth", rate.depth}, {"flops_per_second", rate.flops_per_second}});
  const nlohmann::ordered_json root = {{"version", kProbeVersion},
                                       {"fingerprint", machine_fingerprint(facts)},
                                       {"cpu_model", facts.cpu_model},
                                       {"isa", facts.isa},
                                       {"online_cores", facts.online_cores},
                                       {"affinity_cores", facts.affinity_cores},
                                       {"cgroup_cores", facts.cgroup_cores},
                                       {"usable_cores", facts.usable_cores},
                                       {"packages", facts.topology.num_packages},
                                       {"cores", facts.topology.num_cores},
                                       {"threads", facts.topology.num_threads},
                                       {"caches", caches},
                                       {"memory_nodes", nodes},
                                       {"memory_total_bytes", facts.memory_total_bytes},
                                       {"memory_available_bytes", facts.memory_available_bytes},
                                       {"cgroup_memory_bytes", facts.cgroup_memory_bytes},
                                       {"open_files_max", facts.open_files_max},
                                       {"energy_source", facts.energy_source},
                                       {"software", facts.software},
                                       {"memory_read_bytes_per_second", probe.memory_read_bytes_per_second},
                                       {"memory_copy_bytes_per_second", probe.memory_copy_bytes_per_second},
                                       {"gemm_bf16_flops_per_second", probe.gemm_bf16_flops_per_second},
                                       {"gemm_f32_flops_per_second", probe.gemm_f32_flops_per_second},
                                       {"gemm_shapes", shapes},
                                       {"core_share", probe.core_share},
                                       {"busy_watts", probe.busy_watts},
                                       {"link_bytes_per_second", probe.link_bytes_per_second},
                                       {"link_latency_seconds", probe.link_latency_seconds},
                                       {"disk_write_bytes_per_second", probe.disk_write_bytes_per_second},
                                       {"fsync_seconds", probe.fsync_seconds},
                                       {"disk_folder", probe.disk_folder},
                                       {"notes", probe.notes}};
  // A host or folder name need not be UTF-8; JSON must be.
  return root.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::optional<MachineProbe> probe_from_json(const std::string& text) {
  const nlohmann::json root = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  try {
    if (!root.is_object() || root.at("version") != kProbeVersion) return std::nullopt;
    MachineProbe probe;
    MachineFacts& facts = probe.facts;
    root.at("cpu_model").get_to(facts.cpu_model);
    root.at("isa").get_to(facts.isa);
    root.at("online_cores").get_to(facts.online_cores);
    root.at("affinity_cores").get_to(facts.affinity_cores);
    root.at("cgroup_cores").get_to(facts.cgroup_cores);
    root.at("usable_cores").get_to(facts.usable_cores);
    root.at("packages").get_to(facts.topology.num_packages);
    root.at("cores").get_to(facts.topology.num_cores);
    root.at("threads").get_to(facts.topology.num_threads);
    for (const auto& entry : root.at("caches")) {
      facts.topology.caches.push_back({entry.at("level"), entry.at("type"), entry.at("bytes"), entry.at("shared_by")});
    }
    for (const auto& entry : root.at("memory_nodes")) facts.topology.memory_nodes.push_back({entry.at("index"), entry.at("bytes"), entry.at("threads")});
    root.at("memory_total_bytes").get_to(facts.memory_total_bytes);
    root.at("memory_available_bytes").get_to(facts.memory_available_bytes);
    root.at("cgroup_memory_bytes").get_to(facts.cgroup_memory_bytes);
    root.at("open_files_max").get_to(facts.open_files_max);
    root.at("energy_source").get_to(facts.energy_source);
    root.at("software").get_to(facts.software);
    root.at("memory_read_bytes_per_second").get_to(probe.memory_read_bytes_per_second);
    root.at("memory_copy_bytes_per_second").get_to(probe.memory_copy_bytes_per_second);
    root.at("gemm_bf16_flops_per_second").get_to(probe.gemm_bf16_flops_per_second);
    root.at("gemm_f32_flops_per_second").get_to(probe.gemm_f32_flops_per_second);
    for (const auto& entry : root.at("gemm_shapes"))
      probe.gemm_shapes.push_back({entry.at("dtype"), entry.at("rows"), entry.at("columns"), entry.at("depth"), entry.at("flops_per_second")});
    root.at("core_share").get_to(probe.core_share);
    root.at("busy_watts").get_to(probe.busy_watts);
    root.at("link_bytes_per_second").get_to(probe.link_bytes_per_second);
    root.at("link_latency_seconds").get_to(probe.link_latency_seconds);
    root.at("disk_write_bytes_per_second").get_to(probe.disk_write_bytes_per_second);
    root.at("fsync_seconds").get_to(probe.fsync_seconds);
    root.at("disk_folder").get_to(probe.disk_folder);
    root.at("notes").get_to(probe.notes);
    return probe;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;  // a cache file that somebody edited: measure again
  }
}

std::string probe_cache_path() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return std::string(cache) + "/orrery/probe.json";
  const char* home = std::getenv("HOME");
  return home != nullptr && home[0] == '/' ? std::string(home) + "/.cache/orrery/probe.json" : "";
}

KeptProbe kept_probe() {
  const std::string path = probe_cache_path();
  std::ifstream file(path, std::ios::binary);
  if (path.empty() || !file) return {};
  std::ostringstream text;
  text << file.rdbuf();
  std::optional<MachineProbe> probe = probe_from_json(text.str());
  if (!probe) return {std::nullopt, "it is no probe of this version of the program"};
  std::string difference = fingerprint_difference(machine_fingerprint(probe->facts), machine_fingerprint(machine_facts()));
  if (!difference.empty()) return {std::nullopt, std::move(difference)};
  if (probe->gemm_bf16_flops_per_second == 0) return {std::nullopt, "it has no rate of matrix products, which may be measurable now"};
  return {std::move(probe), ""};
}

bool store_probe(const MachineProbe& probe) {
  const std::string path = probe_cache_path();
  if (path.empty()) return false;
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  const std::string temporary = fmt::format("{}.{}", path, ::getpid());
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file << probe_to_json(probe);
  file.close();
  if (!file) return false;
  std::filesystem::rename(temporary, path, error);
  return !error;
}

}  // namespace orrery
