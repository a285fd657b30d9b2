#include "checkpoint/checkpoint_writer.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "base/crc32c.h"
#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/digest.h"
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"

namespace orrery {
namespace {

/// One file of a checkpoint being written: checksums are taken of the bytes on their way out.
class HashedFile {
 public:
  HashedFile(FileSystem& files, const std::string& directory, const std::string& name)
      : files_(files), path_(join_path(directory, name)), file_(files.create_file(path_)) {
    entry_.name = name;
  }
  ~HashedFile() {
    if (file_ < 0) return;
    try {  // an error is under way; the descriptor must not leak
      files_.close_file(file_, path_);
    } catch (const Error&) {
    }
  }
  HashedFile(const HashedFile&) = delete;
  HashedFile& operator=(const HashedFile&) = delete;

  void write(std::span<const std::byte> data) {
    files_.write_all(file_, path_, data);
    hash_.update(data);
    entry_.bytes += data.size();
    while (!data.empty()) {
      const size_t take = std::min<uint64_t>(data.size(), kChecksumBlockBytes - block_bytes_);
      crc_ = crc32c(crc_, data.first(take));
      block_bytes_ += take;
      if (block_bytes_ == kChecksumBlockBytes) end_block();
      data = data.subspan(take);
    }
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

  ManifestFile finish() {
    if (block_bytes_ > 0) end_block();
    entry_.xxh3_128 = hash_.hex();
    files_.sync_file(file_, path_);
    files_.close_file(std::exchange(file_, -1), path_);
    return std::move(entry_);
  }

 private:
  void end_block() {
    entry_.block_crcs.push_back(crc_);
    crc_ = 0;
    block_bytes_ = 0;
  }

  FileSystem& files_;
  std::string path_;
  int file_;
  ManifestFile entry_;
  Hash128 hash_;
  uint32_t crc_ = 0;
  uint64_t block_bytes_ = 0;
};

/// Tensors in the order of their file: wide elements first, so that each starts aligned, then by name.
void sort_for_file(std::vector<TensorSource>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorSource& a, const TensorSource& b) {
    return std::pair(-dtype_bytes(a.dtype), std::string_view(a.name)) < std::pair(-dtype_bytes(b.dtype), std::string_view(b.name));
  });
}

/// Consecutive ranges of tensors whose bytes stay within the limit; a tensor above it has a file of its own.
std::vector<std::span<const TensorSource>> split_files(std::span<const TensorSource> tensors, uint64_t max_file_bytes) {
  std::vector<std::span<const TensorSource>> parts;
  size_t begin = 0;
  uint64_t bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (i > begin && bytes + tensors[i].bytes() > max_file_bytes) {
      parts.push_back(tensors.subspan(begin, i - begin));
      begin = i;
      bytes = 0;
    }
    bytes += tensors[i].bytes();
  }
  parts.push_back(tensors.subspan(begin));
  return parts;
}

std::string part_name(const std::string& stem, size_t index, size_t count) {
  return count == 1 ? stem + ".safetensors" : fmt::format("{}-{:05d}-of-{:05d}.safetensors", stem, index + 1, count);
}

void check_unique_names(const CheckpointContent& content) {
  std::set<std::string> names;
  for (const auto* list : {&content.model, &content.state}) {
    for (const TensorSource& tensor : *list) {
      if (!names.insert(tensor.name).second) throw Error(ErrorCode::kInvalidArgument, "tensor {} is given twice to the checkpoint writer", tensor.name);
    }
  }
  std::set<std::string> documents = {"manifest.json", "state.json", "manifest.json.partial"};
  for (const auto& [name, text] : content.documents) {
    if (!is_plain_file_name(name) || !documents.insert(name).second || name.ends_with(".safetensors")) {
      throw Error(ErrorCode::kInvalidArgument, "\"{}\" cannot be the name of a checkpoint's document", name);
    }
  }
}

constexpr std::string_view kHiddenPrefix = ".saving-";

}  // namespace

std::string checkpoint_name(int64_t step) { return fmt::format("step-{:08d}", step); }

struct CheckpointWriter::Impl {
  CheckpointOptions options;
  CheckpointContent content;
  FileSystem& files;

  std::mutex mutex;
  std::condition_variable changed;
  enum class State { kIdle, kRequested, kDone, kStop } state = State::kIdle;  // kRequested until the thread has finished the save
  bool sources_read = true;
  int64_t step = 0;
  std::vector<int64_t> position;
  CheckpointResult result;
  std::exception_ptr error;
  uint64_t num_portions_read = 0;  // of the save in progress
  bool source_failed = false;
  bool hidden_is_old = false;  // the hidden directory holds what the save replaces, and must not be removed
  std::thread thread;

  Impl(CheckpointOptions given_options, CheckpointContent given_content)
      : options(std::move(given_options)), content(std::move(given_content)), files(options.files ? *options.files : real_file_system()) {
    ORRERY_CHECK(options.buffer.size() >= kMinCheckpointBuffer, "a buffer of {} bytes", options.buffer.size());
    ORRERY_CHECK(options.keep >= 1, "keep={}", options.keep);
    check_unique_names(content);
    sort_for_file(content.model);
    sort_for_file(content.state);
    position.resize(content.position_names.size());
    if (options.role != CheckpointOptions::Role::kReader) clean_directory();
    thread = std::thread([this] { run(); });
    pthread_setname_np(thread.native_handle(), "orrery-ckpt");
  }

  ~Impl() {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return state != State::kRequested; });
      state = State::kStop;
    }
    changed.notify_all();
    thread.join();
  }

  void clean_directory() {
    if (!is_directory(options.directory)) files.make_directory(options.directory);
    for (const std::string& name : list_directory(options.directory)) {
      if (name.starts_with(kHiddenPrefix)) remove_flat_directory(files, join_path(options.directory, name));
    }
  }

  void run() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return state == State::kRequested || state == State::kStop; });
      if (state == State::kStop) return;
      lock.unlock();
      CheckpointResult made;
      std::exception_ptr failed;
      try {
        made = save();
      } catch (...) {
        failed = std::current_exception();
      }
      lock.lock();
      result = std::move(made);
      error = failed;
      sources_read = true;
      state = State::kDone;
      changed.notify_all();
    }
  }

  void mark_sources_read() {
    const std::lock_guard lock(mutex);
    sources_read = true;
    changed.notify_all();
  }

  uint64_t chunk_bytes() const { return options.buffer.size() / 8 * 8; }  // whole elements of every type

  // Every source from first to last, but for the first `num_done` portions.
  void read_sources(uint64_t num_done) {
    for (const auto* tensors : {&content.model, &content.state})
      for (const TensorSource& tensor : *tensors)
        for (uint64_t offset = 0; offset < tensor.bytes(); offset += chunk_bytes()) {
          if (num_done > 0) {
            --num_done;
            continue;
          }
          tensor.read(offset, options.buffer.first(std::min(chunk_bytes(), tensor.bytes() - offset)));
        }
  }

  CheckpointResult save() {
    num_portions_read = 0;
    if (options.role == CheckpointOptions::Role::kReader) {
      read_sources(0);
      return {};
    }
    const std::string hidden = join_path(options.directory, std::string(kHiddenPrefix) + checkpoint_name(step));
    hidden_is_old = false;
    source_failed = false;
    try {
      CheckpointResult made;
      write_directory(hidden, made);
      commit(hidden, made);
      retire_old(made);
      return made;
    } catch (...) {
      const std::exception_ptr reason = std::current_exception();
      // The first failure is the one to tell; the next writer removes what is left.
      try {
        if (!hidden_is_old && is_directory(hidden)) remove_flat_directory(files, hidden);
      } catch (const Error&) {
      }
      try {
        // A source that threw has no more to give.
        if (options.role == CheckpointOptions::Role::kWriter && !source_failed) read_sources(num_portions_read);
      } catch (const Error&) {
      }
      std::rethrow_exception(reason);
    }
  }

  /// Writes a set of tensors as one or more safetensors files, and an index where Hugging Face wants one.
  void write_tensors(const std::string& directory, const std::string& stem, std::span<const TensorSource> tensors, Manifest& manifest,
                     std::vector<TensorDigest>& digests) {
    const auto parts = split_files(tensors, options.max_file_bytes);
    nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
    uint64_t total_bytes = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const std::string name = part_name(stem, i, parts.size());
      HashedFile file(files, directory, name);
      std::vector<SafetensorsSpec> specs;
      for (const TensorSource& tensor : parts[i]) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
      file.write(make_safetensors_header(specs, {{"format", "pt"}}));
      for (const TensorSource& tensor : parts[i]) {
        digests.push_back({tensor.name, tensor.dtype, tensor.shape, write_tensor(file, tensor)});
        if (parts.size() > 1) weight_map[tensor.name] = name;
        total_bytes += tensor.bytes();
      }
      manifest.files.push_back(file.finish());
    }
    if (parts.size() > 1) {
      nlohmann::ordered_json index;
      index["metadata"]["total_size"] = total_bytes;
      index["weight_map"] = weight_map;
      write_document(directory, stem + ".safetensors.index.json", index.dump(2) + "\n", manifest);
    }
  }

  std::string write_tensor(HashedFile& file, const TensorSource& tensor) {
    Hash128 hash;
    for (uint64_t offset = 0; offset < tensor.bytes(); offset += chunk_bytes()) {
      const std::span<std::byte> chunk = options.buffer.first(std::min(chunk_bytes(), tensor.bytes() - offset));
      source_failed = true;
      tensor.read(offset, chunk);
      source_failed = false;
      ++num_portions_read;
      hash.update(chunk);
      file.write(chunk);
    }
    return hash.hex();
  }

  void write_document(const std::string& directory, const std::string& name, std::string_view text, Manifest& manifest) {
    HashedFile file(files, directory, name);
    file.write(text);
    manifest.files.push_back(file.finish());
  }

  void write_directory(const std::string& hidden, CheckpointResult& made) {
    if (is_directory(hidden)) remove_flat_directory(files, hidden);
    files.make_directory(hidden);
    Manifest manifest;
    manifest.step = step;
    std::vector<TensorDigest> digests;
    write_tensors(hidden, "model", content.model, manifest, digests);
    manifest.digest = combine_digests(digests);
    if (!content.state.empty()) write_tensors(hidden, "state", content.state, manifest, digests);
    mark_sources_read();

    TrainingState training;
    training.step = step;
    for (size_t i = 0; i < position.size(); ++i) training.position.emplace_back(content.position_names[i], position[i]);
    training.numerics_key = content.numerics_key;
    training.run_config = content.run_config;
    manifest.state_digest = combine_digests(digests, digest_lines(training));
    for (const auto& [name, text] : content.documents) write_document(hidden, name, text, manifest);
    write_document(hidden, "state.json", training_state_to_text(training), manifest);

    made.digest = manifest.digest;
    made.state_digest = manifest.state_digest;
    for (const ManifestFile& file : manifest.files) made.bytes += file.bytes;
    const std::string partial = join_path(hidden, "manifest.json.partial");
    {
      HashedFile file(files, hidden, "manifest.json.partial");
      file.write(manifest_to_text(manifest));
      (void)file.finish();
    }
    files.rename_path(partial, join_path(hidden, "manifest.json"));
    files.sync_directory(hidden);
  }

  void commit(const std::string& hidden, CheckpointResult& made) {
    made.path = join_path(options.directory, checkpoint_name(step));
    if (!path_exists(made.path)) {
      files.rename_path(hidden, made.path);
      files.sync_directory(options.directory);
      return;
    }
    // A step that is there already was damaged, or belongs to a run that started afresh here: the two change places, and what was
    // there goes once the new one has been read back. Until then a failure puts it back.
    files.exchange_paths(hidden, made.path);
    hidden_is_old = true;
    try {
      files.sync_directory(options.directory);
      verify_checkpoint(made.path);
    } catch (...) {
      files.exchange_paths(hidden, made.path);
      hidden_is_old = false;
      throw;
    }
    hidden_is_old = false;
    remove_flat_directory(files, hidden);
  }

  /// Removes checkpoints beyond the newest `keep`, only after this one has been read back whole.
  void retire_old(CheckpointResult& made) {
    std::vector<std::string> old = list_checkpoints(options.directory);
    std::erase(old, made.path);
    if (static_cast<int>(old.size()) < options.keep) return;
    verify_checkpoint(made.path);
    for (size_t i = static_cast<size_t>(options.keep) - 1; i < old.size(); ++i) {
      try {
        remove_flat_directory(files, old[i]);
        made.removed.push_back(old[i]);
      } catch (const Error& reason) {
        made.warnings.push_back(fmt::format("old checkpoint {} stays: {}", old[i], reason.what()));
      }
    }
  }
};

CheckpointWriter::CheckpointWriter(CheckpointOptions options, CheckpointContent content)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(content))) {}
CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::start(int64_t step, std::span<const int64_t> position) {
  {
    const std::lock_guard lock(impl_->mutex);
    ORRERY_CHECK(impl_->state == Impl::State::kIdle, "a save is in progress, or its result was not taken");
    ORRERY_CHECK(position.size() == impl_->position.size() && step >= 0, "{} integers for {} names", position.size(), impl_->position.size());
    impl_->step = step;
    std::copy(position.begin(), position.end(), impl_->position.begin());
    impl_->sources_read = false;
    impl_->state = Impl::State::kRequested;
  }
  impl_->changed.notify_all();
}

bool CheckpointWriter::poll() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->state != Impl::State::kRequested;
}

void CheckpointWriter::wait_sources() {
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [&] { return impl_->sources_read; });
}

CheckpointResult CheckpointWriter::wait() {
  std::unique_lock lock(impl_->mutex);
  ORRERY_CHECK(impl_->state != Impl::State::kIdle, "no save was started");
  impl_->changed.wait(lock, [&] { return impl_->state == Impl::State::kDone; });
  impl_->state = Impl::State::kIdle;
  if (impl_->error) std::rethrow_exception(std::exchange(impl_->error, nullptr));
  return std::move(impl_->result);
}

}  // namespace orrery
