// The ways out of a ModelSource: digest, Hugging Face folder, GGUF file.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "backend/block_encoders.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "checkpoint/digest.h"
#include "checkpoint/model_source.h"

namespace orrery {
namespace {

constexpr int64_t kPieceElements = 1 << 18;

/// f32 to the bytes of a type, in `out`, which is resized to fit: rows of `columns`, by the pool's threads when there is one.
void encode(std::span<const float> values, int64_t columns, BlockType type, ThreadPool* pool, std::vector<std::byte>& out) {
  out.resize(static_cast<size_t>(block_bytes(type, static_cast<int64_t>(values.size()))));
  const int64_t row_bytes = block_bytes(type, columns);
  const auto rows = [&](int64_t begin, int64_t end) {
    encode_blocks(type, values.data() + begin * columns, (end - begin) * columns, out.data() + begin * row_bytes);
  };
  const int64_t num_rows = static_cast<int64_t>(values.size()) / columns;
  if (pool == nullptr) return rows(0, num_rows);
  pool->parallel_for(num_rows, 1, rows);
}

BlockType block_type_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return BlockType::kF32;
    case DType::kBF16: return BlockType::kBF16;
    case DType::kF16: return BlockType::kF16;
    default: throw Error(ErrorCode::kUnsupported, "weights of type {}; use f32, bf16 or f16", dtype_name(dtype));
  }
}

/// A tensor's bytes in `type`, in order, in pieces of whole rows.
template <typename Write>
void stream_tensor(const ModelSource& source, size_t index, BlockType type, Write&& write, ThreadPool* pool = nullptr) {
  const SourceTensor& tensor = source.tensors()[index];
  const int64_t step = source.rows_at_a_time(index, kPieceElements);
  std::vector<float> values;
  std::vector<std::byte> bytes;
  for (int64_t row = 0; row < tensor.rows(); row += step) {
    const int64_t count = std::min(step, tensor.rows() - row);
    values.resize(static_cast<size_t>(count * tensor.columns()));
    source.read_rows(index, row, count, values.data());
    encode(values, tensor.columns(), type, pool, bytes);
    if constexpr (std::is_invocable_v<Write, std::span<const float>, std::span<const std::byte>>)
      write(std::span<const float>(values), std::span<const std::byte>(bytes));
    else
      write(std::span<const std::byte>(bytes));
  }
}

/// A file being written; closes its descriptor on every way out.
class OutputFile {
 public:
  explicit OutputFile(std::string path) : path_(std::move(path)), file_(real_file_system().create_file(path_)) {}
  ~OutputFile() {
    if (file_ < 0) return;
    try {
      real_file_system().close_file(file_, path_);
    } catch (const Error&) {  // another error is under way
    }
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void write(std::span<const std::byte> data) { real_file_system().write_all(file_, path_, data); }
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  void finish() {
    real_file_system().sync_file(file_, path_);
    real_file_system().close_file(std::exchange(file_, -1), path_);
  }

 private:
  std::string path_;
  int file_;
};

void write_text_file(const std::string& path, std::string_view text) {
  OutputFile file(path);
  file.write(text);
  file.finish();
}

std::string nothing_written(const std::string& target) { return fmt::format("nothing was written at {}", target); }

std::string parent_of(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

DType folder_dtype(const ModelSource& source, size_t index, const HfFolderOptions& options) {
  if (options.dtype) return *options.dtype;
  return source.tensors()[index].dtype.value_or(DType::kBF16);
}

/// The type that config.json names: that of most elements.
DType main_dtype(const ModelSource& source, const HfFolderOptions& options) {
  std::array<int64_t, 16> counts{};
  for (size_t i = 0; i < source.tensors().size(); ++i) {
    counts[static_cast<size_t>(folder_dtype(source, i, options))] += source.tensors()[i].rows() * source.tensors()[i].columns();
  }
  return static_cast<DType>(std::max_element(counts.begin(), counts.end()) - counts.begin());
}

/// `stopped` is asked before every piece, and throws.
template <typename Stopped>
void write_weights(const ModelSource& source, const std::string& directory, const HfFolderOptions& options, Stopped&& stopped) {
  // Files are cut between tensors, in model order.
  std::vector<std::vector<size_t>> parts(1);
  uint64_t bytes = 0, total_bytes = 0;
  std::vector<SafetensorsSpec> specs;
  for (size_t i = 0; i < source.tensors().size(); ++i) {
    specs.push_back({source.tensors()[i].name, folder_dtype(source, i, options), source.tensors()[i].shape});
    if (!parts.back().empty() && bytes + specs[i].bytes() > options.max_file_bytes) {
      parts.emplace_back();
      bytes = 0;
    }
    parts.back().push_back(i);
    bytes += specs[i].bytes();
    total_bytes += specs[i].bytes();
  }
  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = total_bytes;
  index["weight_map"] = nlohmann::ordered_json::object();
  for (size_t p = 0; p < parts.size(); ++p) {
    const std::string name = parts.size() == 1 ? "model.safetensors" : fmt::format("model-{:05d}-of-{:05d}.safetensors", p + 1, parts.size());
    std::vector<SafetensorsSpec> part;
    for (const size_t i : parts[p]) part.push_back(specs[i]);
    OutputFile file(join_path(directory, name));
    file.write(make_safetensors_header(part, {{"format", "pt"}}));
    for (const size_t i : parts[p]) {
      stream_tensor(source, i, block_type_of(specs[i].dtype), [&](std::span<const std::byte> data) {
        stopped();
        file.write(data);
      });
      index["weight_map"][specs[i].name] = name;
    }
    file.finish();
  }
  if (parts.size() > 1) write_text_file(join_path(directory, "model.safetensors.index.json"), index.dump(2) + "\n");
}

GgufVocabulary vocabulary_for_export(const ModelSource& source) {
  const ModelTokenizer& tokenizer = source.tokenizer();
  if (tokenizer.vocabulary) return *tokenizer.vocabulary;
  const std::string* json = tokenizer.file("tokenizer.json");
  if (json == nullptr) {
    throw Error(ErrorCode::kUnsupported, "{}: no tokenizer.json, so the GGUF file would have no vocabulary; put one beside the weights", source.path());
  }
  const std::string* settings = tokenizer.file("tokenizer_config.json");
  GgufVocabulary vocabulary = vocabulary_from_tokenizer_json(*json, settings ? std::string_view(*settings) : std::string_view(), source.config());
  vocabulary.chat_template = tokenizer.chat_template;
  return vocabulary;
}

/// One tensor in GGUF's row order: permuted rows are gathered, Conv1D matrices transposed. These read the tensor whole.
template <typename Write>
void write_rearranged(const ModelSource& source, size_t index, const GgufTensorMapping& mapping, BlockType type, ThreadPool* pool, Write&& write) {
  const SourceTensor& tensor = source.tensors()[index];
  const int64_t rows = tensor.rows(), columns = tensor.columns();
  std::vector<float> values(static_cast<size_t>(rows * columns)), moved(values.size());
  source.read_rows(index, 0, rows, values.data());
  if (mapping.tensor.conv1d) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) moved[static_cast<size_t>(c * rows + r)] = values[static_cast<size_t>(r * columns + c)];
    }
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(values.data() + r * columns, columns, moved.data() + gguf_permuted_row(r, rows, mapping.permuted_heads) * columns);
    }
  }
  std::vector<std::byte> bytes;
  encode(moved, mapping.tensor.conv1d ? rows : columns, type, pool, bytes);
  write(std::span<const float>(moved), std::span<const std::byte>(bytes));
}

}  // namespace

std::string model_digest(const ModelSource& source, std::optional<DType> as) {
  std::vector<TensorDigest> digests;
  for (size_t i = 0; i < source.tensors().size(); ++i) {
    const SourceTensor& tensor = source.tensors()[i];
    if (!as && !tensor.dtype) {
      throw Error(ErrorCode::kUnsupported, "{}: tensor \"{}\" is {}, which has no digest of its own; give --as bf16 or --as f32", source.path(), tensor.name,
                  tensor.type_name);
    }
    const DType dtype = as.value_or(tensor.dtype.value_or(DType::kF32));
    Hash128 hash;
    stream_tensor(source, i, block_type_of(dtype), [&](std::span<const std::byte> bytes) { hash.update(bytes); });
    digests.push_back({tensor.name, dtype, tensor.shape, hash.hex()});
  }
  return combine_digests(std::move(digests));
}

void write_hf_folder(const ModelSource& source, const std::string& directory, const HfFolderOptions& options) {
  FileSystem& files = real_file_system();
  std::string target = directory;
  while (target.size() > 1 && target.back() == '/') target.pop_back();
  if (path_exists(target) && (!is_directory(target) || !list_directory(target).empty())) {
    throw Error(ErrorCode::kInvalidArgument, "{}: it exists and is not an empty directory; give a new one", target);
  }
  const std::string config = model_config_to_json(source.config(), main_dtype(source, options));
  const std::string partial = target + ".partial";
  if (is_directory(partial)) remove_flat_directory(files, partial);
  files.make_directory(partial);
  try {
    write_text_file(join_path(partial, "config.json"), config);
    const auto stopped = [&] { throw_if_stopped(options.stop_requested, nothing_written(target)); };
    write_weights(source, partial, options, stopped);
    for (const auto& [name, text] : source.tokenizer().files) write_text_file(join_path(partial, name), text);
    if (source.tokenizer().files.empty() && source.tokenizer().vocabulary) save_tokenizer_json(load_gguf_tokenizer(*source.tokenizer().vocabulary), partial);
    files.sync_directory(partial);
    stopped();
    files.rename_path(partial, target);
    files.sync_directory(parent_of(target));
  } catch (...) {
    if (is_directory(partial)) remove_flat_directory(files, partial);
    throw;
  }
}

void write_gguf(const ModelSource& source, const std::string& path, BlockType type, const StopRequested& stop_requested) {
  constexpr std::pair<BlockType, uint32_t> kFileTypes[] = {{BlockType::kF32, 0}, {BlockType::kF16, 1}, {BlockType::kQ8_0, 7}, {BlockType::kBF16, 32}};
  for (const auto& [main, number] : kFileTypes)
    if (main == type)
      return write_gguf(source, path,
                        {.type_of = [type](const GgufTensorMapping&, int64_t) { return type; }, .file_type = number, .stop_requested = stop_requested});
  throw Error(ErrorCode::kUnsupported, "GGUF files are written as F32, BF16, F16 or Q8_0, not {}; `orrery quantize` makes the others", block_type_name(type));
}

void write_gguf(const ModelSource& source, const std::string& path, const GgufWriteOptions& options) {
  FileSystem& files = real_file_system();
  if (path_exists(path)) throw Error(ErrorCode::kInvalidArgument, "{}: it exists; give a new name", path);
  const ModelConfig& config = source.config();
  const std::string architecture = gguf_architecture(config);
  GgufMetadata metadata;
  add_model_metadata(config, architecture, options.file_type, metadata);
  add_vocabulary_metadata(vocabulary_for_export(source), metadata);

  const std::vector<GgufTensorMapping> mapping = gguf_tensor_mapping(config, architecture);
  const std::vector<float> rope_factors = rope_frequency_factors(config.rope_scaling, config.rope_theta, config.head_dim);
  std::vector<GgufSpec> specs;
  if (!rope_factors.empty()) specs.push_back({"rope_freqs.weight", BlockType::kF32, {static_cast<int64_t>(rope_factors.size())}});
  for (const GgufTensorMapping& entry : mapping) {
    std::vector<int64_t> shape = entry.tensor.shape;
    if (entry.tensor.conv1d) std::reverse(shape.begin(), shape.end());
    const BlockType type = shape.size() == 1 ? BlockType::kF32 : options.type_of(entry, shape.back());
    specs.push_back({entry.gguf_name, type, std::move(shape)});
  }
  const GgufLayout layout = make_gguf_layout(metadata, specs);

  const std::string partial = path + ".partial";
  files.remove_file(partial);
  const auto stopped = [&] { throw_if_stopped(options.stop_requested, nothing_written(path)); };
  try {
    OutputFile file(partial);
    file.write(layout.header);
    const std::vector<std::byte> zeros(kGgufAlignment);
    const size_t first = rope_factors.empty() ? 0 : 1;
    if (first == 1) {
      file.write(std::as_bytes(std::span(rope_factors)));
      file.write(std::span(zeros).first(layout.padding[0]));
    }
    for (size_t i = 0; i < mapping.size(); ++i) {
      const GgufSpec& spec = specs[i + first];
      const auto write = [&](std::span<const float> values, std::span<const std::byte> data) {
        stopped();
        if (options.on_piece) options.on_piece(spec, values, data);
        file.write(data);
      };
      if (mapping[i].tensor.conv1d || mapping[i].permuted_heads != 0)
        write_rearranged(source, i, mapping[i], spec.type, options.pool, write);
      else
        stream_tensor(source, i, spec.type, write, options.pool);
      file.write(std::span(zeros).first(layout.padding[i + first]));
    }
    file.finish();
    stopped();
    files.rename_path(partial, path);
    files.sync_directory(parent_of(path));
  } catch (...) {
    files.remove_file(partial);
    throw;
  }
}

}  // namespace orrery
