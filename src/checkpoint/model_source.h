// A model on disk, whatever its form: a run directory (its newest whole checkpoint), a checkpoint, a Hugging Face folder, a .gguf file.
// All are read by Hugging Face names, in rows, as f32. And the ways out: physical memory, a digest, a Hugging Face folder, a GGUF file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/block_formats.h"
#include "base/stop_signals.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/tensor_map.h"
#include "model/model_config.h"

namespace orrery {

class ThreadPool;

enum class ModelForm : uint8_t { kCheckpoint, kHuggingFace, kGguf };

struct SourceTensor {
  std::string name;            // as in logical_tensors()
  std::vector<int64_t> shape;
  std::string type_name;       // in the file: "BF16", "Q4_K"
  std::optional<DType> dtype;  // kF32, kBF16 or kF16 when the file holds just that
  std::optional<BlockType> blocks;  // a quantized tensor whose rows are whole blocks that read_block_rows() gives
  int64_t rows() const { return shape[0]; }
  int64_t columns() const { return shape.size() > 1 ? shape[1] : 1; }
};

/// What a model's folder says about its tokenizer. `files` are Hugging Face's (tokenizer.json, tokenizer_config.json, ...), byte for byte;
/// a GGUF file has `vocabulary`, and files only when its writer kept tokenizer.json in it.
struct ModelTokenizer {
  std::string directory;  // where the files lie; empty for GGUF
  std::vector<std::pair<std::string, std::string>> files;
  std::optional<GgufVocabulary> vocabulary;
  std::string chat_template;
  const std::string* file(std::string_view name) const;  // null when absent
};

class ModelSource {
 public:
  ~ModelSource();
  ModelSource(ModelSource&&) noexcept;

  const std::string& path() const;  // what was opened: for a run directory, the checkpoint in it
  ModelForm form() const;
  const ModelConfig& config() const;
  const ModelTokenizer& tokenizer() const;
  /// In the order of logical_tensors(config()), all of them, of the right shapes.
  const std::vector<SourceTensor>& tensors() const;
  /// For a run directory: newer checkpoints that were passed over, and why.
  const std::vector<SkippedCheckpoint>& skipped() const;

  /// Rows [row_begin, row_begin + num_rows) of tensors()[index] as f32 (a vector's rows have one element). Thread-safe.
  /// Exact: every bf16 and f16 is an f32. GPT-2's Conv1D matrices in GGUF stand transposed: reading them row by row is slow, whole is not.
  /// Errors: kCorruptData (a bad block of a checkpoint, a file cut short), kUnsupported (a block type that is not decoded).
  void read_rows(size_t index, int64_t row_begin, int64_t num_rows, float* out) const;

  /// The blocks of rows as they lie in the file, row after row. For GPT-2's Conv1D matrices a row is one of the transposed matrix, [out, in].
  /// Only for tensors with `blocks`. Errors: kCorruptData: the file was cut short.
  void read_block_rows(size_t index, int64_t row_begin, int64_t num_rows, std::span<std::byte> out) const;

  /// Rows to ask for at a time so that a piece has about `num_elements` elements and reading stays cheap.
  int64_t rows_at_a_time(size_t index, int64_t num_elements) const;

  struct Impl;

 private:
  friend ModelSource open_model(const std::string& path);
  explicit ModelSource(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Errors: kCorruptData: nothing there, none of the four forms, a broken file; kUnsupported, kInvalidConfig: as the readers; a
/// tensor missing or of another shape is named.
ModelSource open_model(const std::string& path);

/// Fills weights (f32, bf16 or f16), and, when given, the low halves of f32 masters (i16, `low` in the same order): NUMERICS rule 2.
/// A bf16 weight without low halves is rounded to nearest even.
/// Errors: kInvalidConfig: a parameter of another model, named.
void load_model(const ModelSource& source, std::span<const PhysicalTensor> weights, std::span<const PhysicalTensor> low = {});

/// NUMERICS rule 16. `as`: convert first, so that forms that hold different types can be compared.
/// Errors: kUnsupported: a quantized tensor and no `as`.
std::string model_digest(const ModelSource& source, std::optional<DType> as = std::nullopt);

struct HfFolderOptions {
  std::optional<DType> dtype;  // none: the source's own; quantized tensors become bf16
  uint64_t max_file_bytes = uint64_t{5} << 30;
  StopRequested stop_requested;  // asked between pieces; kCancelled then, and nothing is left
};
/// Writes a folder that transformers loads: config.json, model*.safetensors, tokenizer files (made from GGUF's vocabulary where the
/// source has no others). The folder must not exist, or be empty; it
/// appears under its name only when it is whole.
void write_hf_folder(const ModelSource& source, const std::string& directory, const HfFolderOptions& options = {});

/// Writes a GGUF file that llama.cpp loads. `type`: kF32, kBF16, kF16 or kQ8_0 for matrices; vectors stay f32. Refuses an existing file.
/// A tokenizer that GGUF cannot express is an error (kUnsupported).
void write_gguf(const ModelSource& source, const std::string& path, BlockType type, const StopRequested& stop_requested = {});

struct GgufWriteOptions {
  /// The type of a matrix whose rows in the file have `columns` elements; one that encode_blocks makes and whose blocks divide a row.
  std::function<BlockType(const GgufTensorMapping& tensor, int64_t columns)> type_of;
  uint32_t file_type = 0;      // GGUF's general.file_type
  ThreadPool* pool = nullptr;  // to encode with
  /// Sees every piece of a tensor, whole rows in the file's order, before it is written. What it throws ends the writing.
  std::function<void(const GgufSpec& spec, std::span<const float> values, std::span<const std::byte> encoded)> on_piece;
  StopRequested stop_requested;  // asked between pieces; kCancelled then, and nothing is left
};
/// As above, with a type for each matrix.
void write_gguf(const ModelSource& source, const std::string& path, const GgufWriteOptions& options);

/// The model's tokenizer, ready to run: from tokenizer.json (with tokenizer_config.json), tokenizer.model, or GGUF's vocabulary, in this
/// order. Errors: kCorruptData, kUnsupported as the loaders; kInvalidArgument: the model has none.
Tokenizer load_model_tokenizer(const ModelSource& source);

/// The tokenizer's Hugging Face files, e.g. to be copied into checkpoints of a run.
std::vector<std::pair<std::string, std::string>> read_tokenizer_files(const std::string& directory);

}  // namespace orrery
