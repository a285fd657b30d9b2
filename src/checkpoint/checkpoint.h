// Reading checkpoints back: which is the newest that is whole, verification of every block, tensors by name into physical memory, and
// the lock that keeps two runs out of one directory. Writing is in checkpoint_writer.h, where the layout stands.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/file_system.h"
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_map.h"

namespace orrery {

/// state.json
struct TrainingState {
  int64_t step = 0;
  std::vector<std::pair<std::string, int64_t>> position;
  std::string numerics_key;
  std::string run_config;
  bool operator==(const TrainingState&) const = default;
};
std::string training_state_to_text(const TrainingState& state);
/// Errors: kCorruptData.
TrainingState training_state_from_text(std::string_view text, std::string_view where);
/// What the state digest holds of it: the step and the data position.
std::string digest_lines(const TrainingState& state);

/// Paths of step-* directories in a run directory, newest first, whole or not.
std::vector<std::string> list_checkpoints(const std::string& run_directory);
/// Whether `path` is a checkpoint directory: it has a manifest.
bool is_checkpoint(const std::string& path);

/// Reads every byte of every file against the manifest.
/// Errors: kCorruptData or kIo naming the file and the block ("model.safetensors block 3, bytes 3145728 to 4194304").
Manifest verify_checkpoint(const std::string& path);

struct SkippedCheckpoint {
  std::string path;
  std::string reason;
};
struct NewestCheckpoint {
  std::optional<std::string> path;         // the newest that verifies
  std::vector<SkippedCheckpoint> skipped;  // newer ones, and why not
};
NewestCheckpoint find_newest_checkpoint(const std::string& run_directory);

/// One checkpoint opened for reading. Each block is verified before its bytes are used.
class CheckpointReader {
 public:
  /// Errors: kCorruptData: no or bad manifest, a file missing, of another size, or with a bad header.
  explicit CheckpointReader(const std::string& path);
  ~CheckpointReader();
  CheckpointReader(CheckpointReader&&) noexcept;

  const std::string& path() const;
  const Manifest& manifest() const;
  const TrainingState& training_state() const;
  /// A file of the checkpoint, e.g. "config.json", verified. Errors: kCorruptData when absent.
  std::string document(const std::string& name) const;

  /// Null when absent.
  const SafetensorsEntry* find(std::string_view tensor) const;
  /// Bytes of a tensor. Errors: kCorruptData naming file and block.
  void read(const SafetensorsEntry& tensor, uint64_t offset, std::span<std::byte> out) const;

  /// Fills physical memory from the tensors of these parameters, names followed by `suffix`; types and shapes must be equal. Padding
  /// rows are left alone.
  /// Errors: kCorruptData: a tensor missing, of another shape or type, or a bad block.
  void load(std::span<const PhysicalTensor> tensors, std::string_view suffix) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Holds `directory`/.lock until destruction; the kernel frees it when the process dies, however it dies.
/// Errors: kInvalidArgument naming the other process's pid; kIo.
class DirectoryLock {
 public:
  explicit DirectoryLock(const std::string& directory);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  int file_ = -1;
};

}  // namespace orrery
