// Saves training checkpoints beside the training: one named thread streams the tensors from the arena through a bounded buffer into
// `step-NNNNNNNN/`, a Hugging Face folder with the optimizer's state beside it and the manifest last. Reading is in checkpoint.h.
//
//   model*.safetensors, config.json, tokenizer files      what transformers loads
//   state*.safetensors                                    "<tensor>.low" i16 (other half of the f32 master), ".m", ".v", ".delayed"
//   state.json                                            step, data position, numerics key, run configuration
//   manifest.json                                         see manifest.h
//
// Order of a save: a hidden directory beside; every file written, synced and closed; the manifest written, synced and renamed; the
// hidden directory synced, renamed to its name, and the parent synced. A crash anywhere leaves the old checkpoints and perhaps a
// hidden directory, which the next writer removes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/file_system.h"
#include "checkpoint/tensor_map.h"

namespace orrery {

struct CheckpointOptions {
  std::string directory;  // made when it does not exist
  int keep = 2;           // newest checkpoints kept; older ones go once a newer one has been read back. At least 1
  uint64_t max_file_bytes = uint64_t{4} << 30;  // of tensors in one safetensors file
  std::span<std::byte> buffer;  // the caller's; at least kMinCheckpointBuffer. Tensors pass through it
  FileSystem* files = nullptr;  // null: the real one
  // How processes save together: every one of them starts the same save, one writes, the others only read their sources, in the same
  // order and portions, to send what they hold. The writer reads to the end even when a file could not be written, so that nobody waits.
  enum class Role { kAlone, kWriter, kReader } role = Role::kAlone;
};
constexpr size_t kMinCheckpointBuffer = 4096;

/// What every save of a run writes. Sources are called from the writer's thread, and read memory that the caller must not change from
/// start() until sources_read() or wait().
struct CheckpointContent {
  std::vector<TensorSource> model;
  std::vector<TensorSource> state;
  std::vector<std::pair<std::string, std::string>> documents;  // file name, content: config.json, tokenizer.json, ...
  std::vector<std::string> position_names;                     // of the integers given to start(): the data position
  std::string numerics_key;
  std::string run_config;
};

struct CheckpointResult {
  std::string path;
  std::string digest;
  std::string state_digest;
  uint64_t bytes = 0;
  std::vector<std::string> removed;   // older checkpoints
  std::vector<std::string> warnings;  // what could not be removed: never a reason to stop
};

class CheckpointWriter {
 public:
  /// Makes the directory, removes what a killed save left in it. The caller holds the DirectoryLock.
  /// Errors: kIo; kInvalidArgument: two tensors or documents of one name.
  CheckpointWriter(CheckpointOptions options, CheckpointContent content);
  /// Waits for a save in progress; its error, if any, is dropped.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Begins a save and returns at once, without a heap call. Precondition: no save in progress.
  void start(int64_t step, std::span<const int64_t> position);
  /// Whether no save is in progress: wait() would return at once.
  [[nodiscard]] bool poll() const;
  /// Returns when the sources of the save in progress will not be read any more: weights may change again.
  void wait_sources();
  /// Waits for the save, frees this object for the next, and gives its result or throws its error: kIo naming the operation, the path
  /// and the reason. After an error the half-written directory is gone (as far as the file system lets it) and older checkpoints
  /// are untouched.
  CheckpointResult wait();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// "step-00000120"
std::string checkpoint_name(int64_t step);

}  // namespace orrery
