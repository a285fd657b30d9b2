#include "checkpoint/model_source.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/bfloat16.h"
#include "base/error.h"

namespace orrery {
namespace {

constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;
constexpr uint64_t kMaxTokenizerFileBytes = uint64_t{512} << 20;
constexpr const char* kTokenizerFiles[] = {"tokenizer.json",     "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                                           "generation_config.json", "tokenizer.model",    "vocab.json",              "merges.txt",
                                           "chat_template.jinja", "tekken.json"};

/// Reads the rows of one form. `index` is the position in tensors().
class RowReader {
 public:
  virtual ~RowReader() = default;
  virtual void read_rows(size_t index, int64_t row_begin, int64_t num_rows, float* out) const = 0;
  virtual void read_block_rows(size_t, int64_t, int64_t, std::span<std::byte>) const { ORRERY_CHECK(false, "no blocks in this form"); }
  virtual bool whole_only(size_t) const { return false; }
};

std::optional<BlockType> block_type_of(std::optional<DType> dtype) {
  if (!dtype) return std::nullopt;
  switch (*dtype) {
    case DType::kF32: return BlockType::kF32;
    case DType::kBF16: return BlockType::kBF16;
    case DType::kF16: return BlockType::kF16;
    case DType::kF64: return BlockType::kF64;
    default: return std::nullopt;
  }
}

/// Row-major elements of a plain type, read in bounded pieces.
template <typename ReadBytes>
void read_plain_rows(BlockType type, int64_t begin, int64_t count, float* out, ReadBytes&& read_bytes) {
  const int64_t width = block_type_info(type).block_bytes;
  if (type == BlockType::kF32) {
    read_bytes(static_cast<uint64_t>(begin * width), std::as_writable_bytes(std::span(out, static_cast<size_t>(count))));
    return;
  }
  std::vector<std::byte> buffer(static_cast<size_t>(std::min<int64_t>(count * width, 1 << 20)));
  const int64_t piece = static_cast<int64_t>(buffer.size()) / width;
  for (int64_t done = 0; done < count; done += piece) {
    const int64_t now = std::min(piece, count - done);
    read_bytes(static_cast<uint64_t>((begin + done) * width), std::span(buffer).first(static_cast<size_t>(now * width)));
    decode_blocks(type, buffer.data(), now, out + done);
  }
}

[[noreturn]] void missing_tensor(const std::string& path, const std::string& name) {
  throw Error(ErrorCode::kCorruptData, "{}: tensor \"{}\" is missing", path, name);
}
void check_shape(const std::string& path, const std::string& name, const std::vector<int64_t>& wanted, const std::vector<int64_t>& found) {
  if (wanted == found) return;
  throw Error(ErrorCode::kCorruptData, "{}: tensor \"{}\" is [{}], but the configuration wants [{}]", path, name, fmt::join(found, ", "), fmt::join(wanted, ", "));
}

SourceTensor safetensors_source_tensor(const std::string& path, const LogicalTensor& logical, const SafetensorsEntry& entry) {
  check_shape(path, entry.name, logical.shape, entry.shape);
  if (!block_type_of(entry.dtype)) {
    throw Error(ErrorCode::kUnsupported, "{}: tensor \"{}\" is {}; weights are read from F32, BF16, F16 and F64", path, entry.name, entry.dtype_name);
  }
  return {logical.name, logical.shape, entry.dtype_name, entry.dtype == DType::kF64 ? std::nullopt : entry.dtype, std::nullopt};
}

/// Hugging Face's base-model files leave the wrapper's prefix out ("wte.weight").
std::string without_prefix(const std::string& name) {
  for (const std::string_view prefix : {"transformer.", "model."}) {
    if (name.starts_with(prefix)) return name.substr(prefix.size());
  }
  return name;
}

class CheckpointRows final : public RowReader {
 public:
  CheckpointRows(const std::string& path, const ModelConfig& config, std::vector<SourceTensor>& tensors) : reader_(path) {
    for (const LogicalTensor& logical : logical_tensors(config)) {
      const SafetensorsEntry* entry = reader_.find(logical.name);
      if (entry == nullptr) missing_tensor(path, logical.name);
      tensors.push_back(safetensors_source_tensor(path, logical, *entry));
      entries_.push_back(entry);
    }
  }
  void read_rows(size_t index, int64_t row_begin, int64_t num_rows, float* out) const override {
    const SafetensorsEntry& entry = *entries_[index];
    const int64_t columns = entry.shape.size() > 1 ? entry.shape[1] : 1;
    read_plain_rows(*block_type_of(entry.dtype), row_begin * columns, num_rows * columns, out,
                    [&](uint64_t offset, std::span<std::byte> bytes) { reader_.read(entry, offset, bytes); });
  }
  const CheckpointReader& reader() const { return reader_; }

 private:
  CheckpointReader reader_;
  std::vector<const SafetensorsEntry*> entries_;
};

class FolderRows final : public RowReader {
 public:
  FolderRows(const std::string& directory, const ModelConfig& config, std::vector<SourceTensor>& tensors) {
    std::vector<LogicalTensor> wanted = logical_tensors(config);
    for (const std::string& name : weight_files(directory)) open_file(join_path(directory, name));
    for (const LogicalTensor& logical : wanted) {
      auto it = index_.find(logical.name);
      if (it == index_.end()) it = index_.find(without_prefix(logical.name));
      if (it == index_.end()) missing_tensor(directory, logical.name);
      tensors.push_back(safetensors_source_tensor(it->second.file->name(), logical, *it->second.entry));
      places_.push_back(it->second);
    }
  }
  void read_rows(size_t index, int64_t row_begin, int64_t num_rows, float* out) const override {
    const auto& [file, entry] = places_[index];
    const int64_t columns = entry->shape.size() > 1 ? entry->shape[1] : 1;
    read_plain_rows(*block_type_of(entry->dtype), row_begin * columns, num_rows * columns, out,
                    [&](uint64_t offset, std::span<std::byte> bytes) { file->read(entry->begin + offset, bytes); });
  }

 private:
  struct Place {
    const FileSource* file;
    const SafetensorsEntry* entry;
  };

  static std::vector<std::string> weight_files(const std::string& directory) {
    const std::string index_path = join_path(directory, "model.safetensors.index.json");
    if (path_exists(join_path(directory, "model.safetensors"))) return {"model.safetensors"};
    if (!path_exists(index_path)) {
      const bool pickle = path_exists(join_path(directory, "pytorch_model.bin")) || path_exists(join_path(directory, "pytorch_model.bin.index.json"));
      throw Error(ErrorCode::kUnsupported, "{}: no model.safetensors and no model.safetensors.index.json{}", directory,
                  pickle ? "; pytorch_model.bin can run code and is not read: save it with safe_serialization=True" : "");
    }
    std::vector<std::string> names;
    try {
      const nlohmann::json json = nlohmann::json::parse(read_small_file(index_path, kMaxConfigBytes));
      for (const auto& [tensor, file] : json.at("weight_map").items()) names.push_back(file.get<std::string>());
    } catch (const nlohmann::json::exception& error) {
      throw Error(ErrorCode::kCorruptData, "{}: not an index of safetensors files ({})", index_path, error.what());
    }
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    for (const std::string& name : names) {
      if (!is_plain_file_name(name)) throw Error(ErrorCode::kCorruptData, "{}: \"{}\" is not the name of a file beside it", index_path, name);
    }
    return names;
  }

  void open_file(const std::string& path) {
    files_.push_back(std::make_unique<FileSource>(path));
    headers_.push_back(std::make_unique<SafetensorsHeader>(read_safetensors_header(*files_.back())));
    for (const SafetensorsEntry& entry : headers_.back()->tensors) {
      if (!index_.emplace(entry.name, Place{files_.back().get(), &entry}).second) {
        throw Error(ErrorCode::kCorruptData, "{}: tensor \"{}\" stands in two files", path, entry.name);
      }
    }
  }

  std::vector<std::unique_ptr<FileSource>> files_;
  std::vector<std::unique_ptr<SafetensorsHeader>> headers_;
  std::unordered_map<std::string, Place> index_;
  std::vector<Place> places_;
};

class GgufRows final : public RowReader {
 public:
  GgufRows(std::unique_ptr<GgufReader> file, const ModelConfig& config, std::vector<SourceTensor>& tensors) : file_(std::move(file)) {
    for (GgufTensorMapping& mapping : gguf_tensor_mapping(config, *file_->text("general.architecture"))) {
      const GgufTensor* tensor = file_->find_tensor(mapping.gguf_name);
      if (tensor == nullptr) missing_tensor(file_->path(), mapping.gguf_name);
      std::vector<int64_t> wanted = mapping.tensor.shape;
      if (mapping.tensor.conv1d) std::reverse(wanted.begin(), wanted.end());
      check_shape(file_->path(), mapping.gguf_name, wanted, tensor->shape);
      std::optional<DType> dtype;
      if (tensor->type == BlockType::kF32) dtype = DType::kF32;
      if (tensor->type == BlockType::kBF16) dtype = DType::kBF16;
      if (tensor->type == BlockType::kF16) dtype = DType::kF16;
      const int64_t block = block_type_info(tensor->type).block_elements;
      const bool whole_blocks = block > 1 && tensor->shape.size() == 2 && tensor->shape[1] % block == 0;
      tensors.push_back({mapping.tensor.name, mapping.tensor.shape, std::string(block_type_name(tensor->type)), dtype,
                         whole_blocks ? std::optional(tensor->type) : std::nullopt});
      places_.push_back({tensor, std::move(mapping)});
    }
  }

  bool whole_only(size_t index) const override { return places_[index].mapping.tensor.conv1d; }

  void read_rows(size_t index, int64_t row_begin, int64_t num_rows, float* out) const override {
    const GgufTensor& tensor = *places_[index].tensor;
    const GgufTensorMapping& mapping = places_[index].mapping;
    if (mapping.tensor.conv1d) {
      read_transposed(tensor, row_begin, num_rows, out);
    } else if (mapping.permuted_heads != 0) {
      // The rows of a head are each other's neighbours: the heads that are touched are decoded, then their rows put in order.
      const int64_t columns = tensor.shape.size() > 1 ? tensor.shape.back() : 1, rows = tensor.shape[0];
      const int64_t head_dim = rows / mapping.permuted_heads;
      const int64_t first = row_begin / head_dim * head_dim, last = (row_begin + num_rows + head_dim - 1) / head_dim * head_dim;
      std::vector<float> heads(static_cast<size_t>((last - first) * columns));
      decode_elements(tensor, first * columns, (last - first) * columns, heads.data());
      for (int64_t row = 0; row < num_rows; ++row) {
        const int64_t from = gguf_permuted_row(row_begin + row, rows, mapping.permuted_heads) - first;
        std::copy_n(heads.data() + from * columns, columns, out + row * columns);
      }
    } else {
      const int64_t columns = tensor.shape.size() > 1 ? tensor.shape.back() : 1;
      decode_elements(tensor, row_begin * columns, num_rows * columns, out);
    }
  }

  void read_block_rows(size_t index, int64_t row_begin, int64_t num_rows, std::span<std::byte> out) const override {
    const GgufTensor& tensor = *places_[index].tensor;
    const int64_t heads = places_[index].mapping.permuted_heads, row_bytes = block_bytes(tensor.type, tensor.shape[1]);
    ORRERY_CHECK(row_begin >= 0 && row_begin + num_rows <= tensor.shape[0] && static_cast<int64_t>(out.size()) == num_rows * row_bytes, "{}: rows {} + {}",
                 tensor.name, row_begin, num_rows);
    if (heads == 0) return file_->read(tensor, static_cast<uint64_t>(row_begin * row_bytes), out);
    for (int64_t row = 0; row < num_rows; ++row)
      file_->read(tensor, static_cast<uint64_t>(gguf_permuted_row(row_begin + row, tensor.shape[0], heads) * row_bytes),
                  out.subspan(static_cast<size_t>(row * row_bytes), static_cast<size_t>(row_bytes)));
  }

 private:
  struct Place {
    const GgufTensor* tensor;
    GgufTensorMapping mapping;
  };

  /// Elements [begin, begin + count); the ends need not be block edges (a vector of quantized blocks).
  void decode_elements(const GgufTensor& tensor, int64_t begin, int64_t count, float* out) const {
    const BlockTypeInfo& info = block_type_info(tensor.type);
    const int64_t block = info.block_elements;
    ORRERY_CHECK(block <= 256, "{}", info.name);
    std::vector<std::byte> bytes(static_cast<size_t>(std::min<int64_t>((count + 2 * block) / block * info.block_bytes, 1 << 19)));
    const int64_t max_blocks = static_cast<int64_t>(bytes.size()) / info.block_bytes;
    float values[256];
    for (int64_t done = 0; done < count;) {
      const int64_t at = begin + done, inside = at % block;
      // Whole blocks go straight to `out`; a partial one through `values`.
      const int64_t whole = inside == 0 ? std::min((count - done) / block, max_blocks) : 0;
      const auto data = std::span(bytes).first(static_cast<size_t>(std::max<int64_t>(whole, 1) * info.block_bytes));
      file_->read(tensor, static_cast<uint64_t>(at / block * info.block_bytes), data);
      if (whole > 0) {
        decode_blocks(tensor.type, data.data(), whole * block, out + done);
        done += whole * block;
      } else {
        decode_blocks(tensor.type, data.data(), block, values);
        const int64_t now = std::min(block - inside, count - done);
        std::copy_n(values + inside, now, out + done);
        done += now;
      }
    }
  }

  /// The file holds [out, in]; `rows` of the logical [in, out] are its columns.
  void read_transposed(const GgufTensor& tensor, int64_t row_begin, int64_t num_rows, float* out) const {
    const int64_t num_out = tensor.shape[0], num_in = tensor.shape[1];
    std::vector<float> row(static_cast<size_t>(num_in));
    for (int64_t o = 0; o < num_out; ++o) {
      decode_elements(tensor, o * num_in, num_in, row.data());
      for (int64_t i = 0; i < num_rows; ++i) out[i * num_out + o] = row[static_cast<size_t>(row_begin + i)];
    }
  }

  std::unique_ptr<GgufReader> file_;
  std::vector<Place> places_;
};

ModelTokenizer tokenizer_of_files(std::vector<std::pair<std::string, std::string>> files, const std::string& directory) {
  ModelTokenizer tokenizer;
  tokenizer.directory = directory;
  tokenizer.files = std::move(files);
  if (const std::string* jinja = tokenizer.file("chat_template.jinja")) {
    tokenizer.chat_template = *jinja;
  } else if (const std::string* config = tokenizer.file("tokenizer_config.json")) {
    tokenizer.chat_template = chat_template_of(*config);
  }
  return tokenizer;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> read_tokenizer_files(const std::string& directory) {
  std::vector<std::pair<std::string, std::string>> files;
  for (const char* name : kTokenizerFiles) {
    const std::string path = join_path(directory, name);
    if (path_exists(path)) files.emplace_back(name, read_small_file(path, kMaxTokenizerFileBytes));
  }
  return files;
}

const std::string* ModelTokenizer::file(std::string_view name) const {
  for (const auto& [file_name, text] : files) {
    if (file_name == name) return &text;
  }
  return nullptr;
}

Tokenizer load_model_tokenizer(const ModelSource& source) {
  const ModelTokenizer& tokenizer = source.tokenizer();
  if (const std::string* json = tokenizer.file("tokenizer.json")) {
    const std::string* settings = tokenizer.file("tokenizer_config.json");
    const Tokenizer loaded = load_tokenizer_json(*json, settings ? std::string_view(*settings) : std::string_view());
    return tokenizer.chat_template.empty() ? loaded : loaded.with_chat_template(tokenizer.chat_template);
  }
  if (const std::string* model = tokenizer.file("tokenizer.model")) {
    const Tokenizer loaded = load_sentencepiece(*model);
    return tokenizer.chat_template.empty() ? loaded : loaded.with_chat_template(tokenizer.chat_template);
  }
  if (tokenizer.vocabulary) return load_gguf_tokenizer(*tokenizer.vocabulary);
  throw Error(ErrorCode::kInvalidArgument, "{}: the model has no tokenizer (tokenizer.json, tokenizer.model or GGUF vocabulary); put one beside it", source.path());
}

struct ModelSource::Impl {
  std::string path;
  ModelForm form{};
  ModelConfig config;
  ModelTokenizer tokenizer;
  std::vector<SourceTensor> tensors;
  std::vector<SkippedCheckpoint> skipped;
  std::unique_ptr<RowReader> rows;
};

ModelSource::ModelSource(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ModelSource::~ModelSource() = default;
ModelSource::ModelSource(ModelSource&&) noexcept = default;
const std::string& ModelSource::path() const { return impl_->path; }
ModelForm ModelSource::form() const { return impl_->form; }
const ModelConfig& ModelSource::config() const { return impl_->config; }
const ModelTokenizer& ModelSource::tokenizer() const { return impl_->tokenizer; }
const std::vector<SourceTensor>& ModelSource::tensors() const { return impl_->tensors; }
const std::vector<SkippedCheckpoint>& ModelSource::skipped() const { return impl_->skipped; }

void ModelSource::read_rows(size_t index, int64_t row_begin, int64_t num_rows, float* out) const {
  const SourceTensor& tensor = impl_->tensors.at(index);
  ORRERY_CHECK(row_begin >= 0 && num_rows >= 0 && row_begin + num_rows <= tensor.rows(), "{}: rows {} + {} of {}", tensor.name, row_begin, num_rows,
               tensor.rows());
  if (num_rows > 0) impl_->rows->read_rows(index, row_begin, num_rows, out);
}

void ModelSource::read_block_rows(size_t index, int64_t row_begin, int64_t num_rows, std::span<std::byte> out) const {
  ORRERY_CHECK(impl_->tensors.at(index).blocks.has_value(), "{} has no blocks", impl_->tensors[index].name);
  impl_->rows->read_block_rows(index, row_begin, num_rows, out);
}

int64_t ModelSource::rows_at_a_time(size_t index, int64_t num_elements) const {
  const SourceTensor& tensor = impl_->tensors.at(index);
  if (impl_->rows->whole_only(index)) return tensor.rows();
  return std::clamp<int64_t>(num_elements / std::max<int64_t>(tensor.columns(), 1), 1, tensor.rows());
}

namespace {

void open_gguf(const std::string& path, ModelSource::Impl& impl) {
  auto file = std::make_unique<GgufReader>(path);
  impl.form = ModelForm::kGguf;
  impl.config = model_config_from_gguf(*file);
  impl.tokenizer.vocabulary = read_gguf_vocabulary(*file);
  if (impl.tokenizer.vocabulary) {
    impl.tokenizer.chat_template = impl.tokenizer.vocabulary->chat_template;
    if (!impl.tokenizer.vocabulary->tokenizer_json.empty()) impl.tokenizer.files.emplace_back("tokenizer.json", impl.tokenizer.vocabulary->tokenizer_json);
  }
  impl.rows = std::make_unique<GgufRows>(std::move(file), impl.config, impl.tensors);
}

void open_checkpoint(const std::string& path, ModelSource::Impl& impl) {
  impl.form = ModelForm::kCheckpoint;
  const CheckpointReader reader(path);
  impl.config = model_config_from_json(reader.document("config.json"), join_path(path, "config.json"));
  impl.rows = std::make_unique<CheckpointRows>(path, impl.config, impl.tensors);
  std::vector<std::pair<std::string, std::string>> files;
  for (const char* name : kTokenizerFiles) {
    const auto& list = reader.manifest().files;
    if (std::any_of(list.begin(), list.end(), [&](const ManifestFile& file) { return file.name == name; })) files.emplace_back(name, reader.document(name));
  }
  impl.tokenizer = tokenizer_of_files(std::move(files), path);
}

void open_folder(const std::string& path, ModelSource::Impl& impl) {
  impl.form = ModelForm::kHuggingFace;
  const std::string config_path = join_path(path, "config.json");
  impl.config = model_config_from_json(read_small_file(config_path, kMaxConfigBytes), config_path);
  impl.rows = std::make_unique<FolderRows>(path, impl.config, impl.tensors);
  impl.tokenizer = tokenizer_of_files(read_tokenizer_files(path), path);
}

}  // namespace

ModelSource open_model(const std::string& path) {
  auto impl = std::make_unique<ModelSource::Impl>();
  impl->path = path;
  if (!path_exists(path)) throw Error(ErrorCode::kCorruptData, "{}: no such file or directory; give a run directory, a checkpoint, a Hugging Face folder or a .gguf file", path);
  if (!is_directory(path)) {
    open_gguf(path, *impl);
  } else if (is_checkpoint(path)) {
    open_checkpoint(path, *impl);
  } else if (path_exists(join_path(path, "config.json"))) {
    open_folder(path, *impl);
  } else if (!list_checkpoints(path).empty()) {
    NewestCheckpoint newest = find_newest_checkpoint(path);
    impl->skipped = std::move(newest.skipped);
    if (!newest.path) {
      throw Error(ErrorCode::kCorruptData, "{}: none of its {} checkpoints is whole; the newest: {}", path, impl->skipped.size(), impl->skipped[0].reason);
    }
    impl->path = *newest.path;
    open_checkpoint(impl->path, *impl);
  } else {
    throw Error(ErrorCode::kCorruptData, "{}: holds no model: neither config.json nor step-* checkpoints", path);
  }
  return ModelSource(std::move(impl));
}

namespace {

constexpr int64_t kPieceElements = 1 << 18;

/// Calls visit(row_begin, num_rows, values) over a tensor in pieces.
template <typename Visit>
void for_each_piece(const ModelSource& source, size_t index, std::vector<float>& values, Visit&& visit) {
  const SourceTensor& tensor = source.tensors()[index];
  const int64_t step = source.rows_at_a_time(index, kPieceElements);
  for (int64_t row = 0; row < tensor.rows(); row += step) {
    const int64_t count = std::min(step, tensor.rows() - row);
    values.resize(static_cast<size_t>(count * tensor.columns()));
    source.read_rows(index, row, count, values.data());
    visit(row, count, std::span<const float>(values));
  }
}

}  // namespace

void load_model(const ModelSource& source, std::span<const PhysicalTensor> weights, std::span<const PhysicalTensor> low) {
  std::unordered_map<std::string, size_t> index;
  for (size_t i = 0; i < source.tensors().size(); ++i) index.emplace(source.tensors()[i].name, i);
  const std::vector<LogicalView> views = logical_views(weights);
  const std::vector<LogicalView> low_views = logical_views(low);
  ORRERY_CHECK(low.empty() || low_views.size() == views.size(), "{} low halves for {} tensors", low_views.size(), views.size());
  std::vector<float> values;
  std::vector<uint16_t> high;
  std::vector<int16_t> rest;
  for (size_t v = 0; v < views.size(); ++v) {
    const LogicalView& view = views[v];
    const auto it = index.find(view.name());
    if (it == index.end()) throw Error(ErrorCode::kInvalidConfig, "{}: the model has no tensor \"{}\"; the configurations differ", source.path(), view.name());
    const SourceTensor& tensor = source.tensors()[it->second];
    if (tensor.shape != view.shape()) {
      throw Error(ErrorCode::kInvalidConfig, "{}: tensor \"{}\" is [{}], wanted [{}]; the configurations differ", source.path(), view.name(),
                  fmt::join(tensor.shape, ", "), fmt::join(view.shape(), ", "));
    }
    for_each_piece(source, it->second, values, [&](int64_t row, int64_t, std::span<const float> piece) {
      const int64_t begin = row * tensor.columns();
      if (view.dtype() == DType::kF32) {
        view.write(begin, std::as_bytes(piece));
        return;
      }
      ORRERY_CHECK(view.dtype() == DType::kBF16 || view.dtype() == DType::kF16, "{}: weights of type {}", view.name(), dtype_name(view.dtype()));
      const bool split = !low.empty();
      high.resize(piece.size());
      for (size_t i = 0; i < piece.size(); ++i) {
        high[i] = view.dtype() == DType::kF16 ? f32_to_f16(piece[i]) : split ? master_high(piece[i]) : f32_to_bf16(piece[i]);
      }
      view.write(begin, std::as_bytes(std::span(high)));
      if (!split) return;
      ORRERY_CHECK(view.dtype() == DType::kBF16 && low_views[v].name() == view.name(), "{}", view.name());
      rest.resize(piece.size());
      for (size_t i = 0; i < piece.size(); ++i) rest[i] = master_low(piece[i]);
      low_views[v].write(begin, std::as_bytes(std::span(rest)));
    });
  }
}

}  // namespace orrery
