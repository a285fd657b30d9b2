#include "checkpoint/checkpoint.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/crc32c.h"
#include "base/error.h"
#include "checkpoint/digest.h"

namespace orrery {
namespace {

using Json = nlohmann::ordered_json;

/// The number of a "step-NNN" name.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with("step-") || name.size() < 6 || name.size() > 23) return std::nullopt;
  int64_t step = 0;
  for (const char c : std::string_view(name).substr(5)) {
    if (c < '0' || c > '9') return std::nullopt;
    step = step * 10 + (c - '0');
  }
  return step;
}

[[noreturn]] void bad_block(const std::string& path, uint64_t block, uint64_t file_bytes) {
  const uint64_t begin = block * kChecksumBlockBytes;
  throw Error(ErrorCode::kCorruptData, "{}: block {} (bytes {} to {}) does not match its checksum: the file was damaged; use another checkpoint", path,
              block, begin, std::min(file_bytes, begin + kChecksumBlockBytes));
}

/// A file of a checkpoint whose blocks are checked as they are read. Keeps the last partial block, so that small reads in order cost
/// one read a block.
class VerifiedSource final : public ByteSource {
 public:
  VerifiedSource(const std::string& path, const ManifestFile& entry) : file_(path), entry_(entry) {
    if (file_.size() != entry.bytes) {
      throw Error(ErrorCode::kCorruptData, "{}: {} bytes, but the manifest says {}; use another checkpoint", path, file_.size(), entry.bytes);
    }
  }
  uint64_t size() const override { return file_.size(); }
  const std::string& name() const override { return file_.name(); }

  void read(uint64_t offset, std::span<std::byte> out) const override {
    if (offset > size() || out.size() > size() - offset) {
      throw Error(ErrorCode::kCorruptData, "{}: wanted bytes {} to {}, but the file has {}", name(), offset, offset + out.size(), size());
    }
    while (!out.empty()) {
      const uint64_t block = offset / kChecksumBlockBytes;
      const uint64_t begin = block * kChecksumBlockBytes;
      const uint64_t length = std::min(kChecksumBlockBytes, size() - begin);
      const uint64_t take = std::min<uint64_t>(out.size(), begin + length - offset);
      if (take == length) {
        file_.read(begin, out.first(take));
        check(block, out.first(take));
      } else {
        const std::lock_guard lock(mutex_);
        if (cached_block_ != block) {
          cached_block_ = kNone;
          cache_.resize(length);
          file_.read(begin, cache_);
          check(block, cache_);
          cached_block_ = block;
        }
        std::memcpy(out.data(), cache_.data() + (offset - begin), take);
      }
      out = out.subspan(take);
      offset += take;
    }
  }

 private:
  static constexpr uint64_t kNone = UINT64_MAX;
  void check(uint64_t block, std::span<const std::byte> data) const {
    if (crc32c(0, data) != entry_.block_crcs[block]) bad_block(name(), block, size());
  }

  FileSource file_;
  const ManifestFile& entry_;
  mutable std::mutex mutex_;
  mutable std::vector<std::byte> cache_;
  mutable uint64_t cached_block_ = kNone;
};

Manifest read_manifest(const std::string& path) {
  const std::string file = join_path(path, "manifest.json");
  if (!path_exists(file)) {
    throw Error(ErrorCode::kCorruptData, "{}: no manifest.json: not a checkpoint, or a save that was not finished", path);
  }
  return manifest_from_text(read_small_file(file, kMaxManifestBytes), file);
}

void verify_file(const std::string& path, const ManifestFile& entry, std::vector<std::byte>& buffer) {
  const FileSource file(path);
  if (file.size() != entry.bytes) {
    throw Error(ErrorCode::kCorruptData, "{}: {} bytes, but the manifest says {} ({}); use another checkpoint", path, file.size(), entry.bytes,
                file.size() < entry.bytes ? fmt::format("it ends in block {}", file.size() / kChecksumBlockBytes) : "something was added");
  }
  // Ask the disk, not the cache that the save has just filled.
  (void)::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED);
  Hash128 hash;
  for (uint64_t block = 0; block < entry.block_crcs.size(); ++block) {
    const uint64_t begin = block * kChecksumBlockBytes;
    const std::span<std::byte> data = std::span(buffer).first(std::min(kChecksumBlockBytes, entry.bytes - begin));
    file.read(begin, data);
    if (crc32c(0, data) != entry.block_crcs[block]) bad_block(path, block, entry.bytes);
    hash.update(data);
  }
  if (hash.hex() != entry.xxh3_128) {
    throw Error(ErrorCode::kCorruptData, "{}: every block matches but the whole file's hash does not; use another checkpoint", path);
  }
}

}  // namespace

std::string training_state_to_text(const TrainingState& state) {
  Json json;
  json["step"] = state.step;
  json["position"] = Json::object();
  for (const auto& [name, value] : state.position) json["position"][name] = value;
  json["numerics_key"] = state.numerics_key;
  json["run_config"] = state.run_config;
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

TrainingState training_state_from_text(std::string_view text, std::string_view where) {
  try {
    const Json json = Json::parse(text);
    TrainingState state;
    if (!json.is_object() || !json.at("step").is_number_integer()) throw Error(ErrorCode::kCorruptData, "{}: no step", where);
    state.step = json.at("step").get<int64_t>();
    for (const auto& [name, value] : json.at("position").items()) {
      if (!value.is_number_integer()) throw Error(ErrorCode::kCorruptData, "{}: position \"{}\" is not an integer", where, name);
      state.position.emplace_back(name, value.get<int64_t>());
    }
    state.numerics_key = json.at("numerics_key").get<std::string>();
    state.run_config = json.at("run_config").get<std::string>();
    return state;
  } catch (const Json::exception& error) {
    throw Error(ErrorCode::kCorruptData, "{}: not a training state ({})", where, error.what());
  }
}

std::string digest_lines(const TrainingState& state) {
  std::string lines = fmt::format("step {}\n", state.step);
  for (const auto& [name, value] : state.position) lines += fmt::format("position {} {}\n", name, value);
  return lines;
}

std::vector<std::string> list_checkpoints(const std::string& run_directory) {
  std::vector<std::pair<int64_t, std::string>> found;
  for (const std::string& name : list_directory(run_directory)) {
    const std::string path = join_path(run_directory, name);
    if (const auto step = step_of(name); step && is_directory(path)) found.emplace_back(*step, path);
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

bool is_checkpoint(const std::string& path) { return is_directory(path) && path_exists(join_path(path, "manifest.json")); }

Manifest verify_checkpoint(const std::string& path) {
  const Manifest manifest = read_manifest(path);
  std::vector<std::byte> buffer(kChecksumBlockBytes);
  for (const ManifestFile& entry : manifest.files) {
    const std::string file = join_path(path, entry.name);
    if (!path_exists(file)) throw Error(ErrorCode::kCorruptData, "{}: it is missing, but the manifest names it; use another checkpoint", file);
    verify_file(file, entry, buffer);
  }
  return manifest;
}

NewestCheckpoint find_newest_checkpoint(const std::string& run_directory) {
  NewestCheckpoint newest;
  for (const std::string& path : list_checkpoints(run_directory)) {
    try {
      verify_checkpoint(path);
      newest.path = path;
      break;
    } catch (const Error& error) {
      newest.skipped.push_back({path, error.what()});
    }
  }
  return newest;
}

struct CheckpointReader::Impl {
  std::string path;
  Manifest manifest;
  TrainingState training;
  std::map<std::string, std::unique_ptr<VerifiedSource>> files;
  std::vector<std::pair<const VerifiedSource*, SafetensorsHeader>> headers;
  std::unordered_map<std::string, std::pair<const VerifiedSource*, const SafetensorsEntry*>> tensors;

  const VerifiedSource& file(const std::string& name) const {
    const auto it = files.find(name);
    if (it == files.end()) throw Error(ErrorCode::kCorruptData, "{}: the checkpoint has no {}", path, name);
    return *it->second;
  }
};

CheckpointReader::CheckpointReader(const std::string& path) : impl_(std::make_unique<Impl>()) {
  Impl& impl = *impl_;
  impl.path = path;
  impl.manifest = read_manifest(path);
  for (const ManifestFile& entry : impl.manifest.files) {
    const std::string file = join_path(path, entry.name);
    if (!path_exists(file)) throw Error(ErrorCode::kCorruptData, "{}: it is missing, but the manifest names it; use another checkpoint", file);
    auto source = std::make_unique<VerifiedSource>(file, entry);
    if (entry.name.ends_with(".safetensors")) impl.headers.emplace_back(source.get(), read_safetensors_header(*source));
    impl.files.emplace(entry.name, std::move(source));
  }
  for (const auto& [source, header] : impl.headers) {
    for (const SafetensorsEntry& tensor : header.tensors) {
      if (!impl.tensors.emplace(tensor.name, std::pair(source, &tensor)).second) {
        throw Error(ErrorCode::kCorruptData, "{}: tensor \"{}\" stands in two files", path, tensor.name);
      }
    }
  }
  impl.training = training_state_from_text(document("state.json"), join_path(path, "state.json"));
  if (impl.training.step != impl.manifest.step) {
    throw Error(ErrorCode::kCorruptData, "{}: state.json is of step {}, the manifest of step {}", path, impl.training.step, impl.manifest.step);
  }
}
CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;

const std::string& CheckpointReader::path() const { return impl_->path; }
const Manifest& CheckpointReader::manifest() const { return impl_->manifest; }
const TrainingState& CheckpointReader::training_state() const { return impl_->training; }

std::string CheckpointReader::document(const std::string& name) const {
  const VerifiedSource& file = impl_->file(name);
  std::string text(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

const SafetensorsEntry* CheckpointReader::find(std::string_view tensor) const {
  const auto it = impl_->tensors.find(std::string(tensor));
  return it == impl_->tensors.end() ? nullptr : it->second.second;
}

void CheckpointReader::read(const SafetensorsEntry& tensor, uint64_t offset, std::span<std::byte> out) const {
  ORRERY_CHECK(offset <= tensor.bytes && out.size() <= tensor.bytes - offset, "{}: bytes {} + {} of {}", tensor.name, offset, out.size(), tensor.bytes);
  impl_->tensors.at(tensor.name).first->read(tensor.begin + offset, out);
}

void CheckpointReader::load(std::span<const PhysicalTensor> tensors, std::string_view suffix) const {
  std::vector<std::byte> buffer(kChecksumBlockBytes);
  for (const LogicalView& view : logical_views(tensors)) {
    const std::string name = view.name() + std::string(suffix);
    const SafetensorsEntry* entry = find(name);
    if (entry == nullptr) throw Error(ErrorCode::kCorruptData, "{}: tensor \"{}\" is missing; is this the checkpoint of another model?", impl_->path, name);
    if (entry->dtype != view.dtype() || entry->shape != view.shape()) {
      throw Error(ErrorCode::kCorruptData, "{}: tensor \"{}\": wanted {} [{}], found {} [{}]; is this the checkpoint of another model?", impl_->path, name,
                  safetensors_dtype_name(view.dtype()), fmt::join(view.shape(), ", "), entry->dtype_name, fmt::join(entry->shape, ", "));
    }
    for (uint64_t offset = 0; offset < entry->bytes;) {
      // Chunks end where blocks do, so that each block is read once and checked in place.
      const uint64_t block_end = ((entry->begin + offset) / kChecksumBlockBytes + 1) * kChecksumBlockBytes - entry->begin;
      const uint64_t width = static_cast<uint64_t>(dtype_bytes(view.dtype()));
      uint64_t take = std::min(entry->bytes, block_end) - offset;
      take = std::max(take / width * width, width);
      if (!view.holds_any(static_cast<int64_t>(offset / width), static_cast<int64_t>(take / width))) {
        offset += take;
        continue;
      }
      read(*entry, offset, std::span(buffer).first(take));
      view.write(static_cast<int64_t>(offset / width), std::span<const std::byte>(buffer).first(take));
      offset += take;
    }
  }
}

DirectoryLock::DirectoryLock(const std::string& directory) {
  const std::string path = join_path(directory, ".lock");
  file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (file_ < 0) throw_io_error(errno, "cannot open the lock file " + path);
  if (::flock(file_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    char text[32] = {};
    const ssize_t length = ::pread(file_, text, sizeof text - 1, 0);
    ::close(file_);
    if (reason != EWOULDBLOCK) throw_io_error(reason, "cannot lock " + path);
    std::string pid(text, length > 0 ? static_cast<size_t>(length) : 0);
    while (!pid.empty() && pid.back() == '\n') pid.pop_back();
    throw Error(ErrorCode::kInvalidArgument, "{}: another run (pid {}) works in this directory; wait for it, stop it, or use another checkpoint.dir",
                directory, pid.empty() ? "unknown" : pid);
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(file_, 0) != 0 || ::pwrite(file_, pid.data(), pid.size(), 0) < 0) {
    const int reason = errno;
    ::close(file_);
    throw_io_error(reason, "cannot write " + path);
  }
}

DirectoryLock::~DirectoryLock() { ::close(file_); }

}  // namespace orrery
