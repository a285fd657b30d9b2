#include "data/data_builder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/error.h"
#include "base/philox.h"
#include "data/document_reader.h"
#include "data/manifest.h"
#include "data/shard_writer.h"

namespace orrery {
namespace {

namespace fs = std::filesystem;

// The shards of one split, one after the other.
class SplitWriter {
 public:
  SplitWriter(std::string folder, std::string split, const BuildOptions& options, const TokenEncoder& encoder)
      : folder_(std::move(folder)), split_(std::move(split)), options_(options), encoder_(encoder) {}

  void add(std::span<const int32_t> ids, std::span<const uint8_t> keep) {
    if (!writer_) {
      summary_.shards.push_back(fmt::format("{}-{:05}{}", split_, summary_.shards.size(), kShardSuffix));
      writer_ = std::make_unique<ShardWriter>(folder_ + "/" + summary_.shards.back(),
                                              ShardWriter::Options{encoder_.vocab_size, encoder_.hash});
    }
    writer_->add_document(ids, keep);
    summary_.tokens += ids.size();
    ++summary_.documents;
    if (writer_->num_tokens() >= options_.shard_tokens_max) close();
  }
  void close() {
    if (!writer_) return;
    summary_.masked_tokens += writer_->finish().num_masked_tokens;
    writer_.reset();
  }
  const SplitSummary& summary() const { return summary_; }

 private:
  std::string folder_, split_;
  const BuildOptions& options_;
  const TokenEncoder& encoder_;
  std::unique_ptr<ShardWriter> writer_;
  SplitSummary summary_;
};

class Holdout {
 public:
  Holdout(double fraction, uint64_t seed, std::optional<uint64_t> forced)
      : threshold_(static_cast<uint64_t>(std::ldexp(fraction, 32))),
        stream_(seed, RandomPurpose::kHoldout, 0, 0),
        forced_(forced) {}
  uint32_t draw(uint64_t document) const { return stream_.bits(document); }
  bool holds_out(uint64_t document) const { return forced_ ? *forced_ == document : draw(document) < threshold_; }

 private:
  uint64_t threshold_;
  PhiloxStream stream_;
  std::optional<uint64_t> forced_;
};

struct EncodedBatch {
  struct Document {
    uint64_t index;
    size_t begin, size;
    bool masked;
  };
  std::vector<Document> documents;
  std::vector<int32_t> ids;
  std::vector<uint8_t> keep;  // parallel to ids
};

// Turns raw documents into ids; one per thread.
class BatchEncoder {
 public:
  BatchEncoder(const BuildOptions& options, const TokenEncoder& encoder, const std::vector<InputFile>& inputs)
      : options_(options), encoder_(encoder), inputs_(inputs), session_(encoder.new_session()) {}

  void encode(const RawBatch& batch, EncodedBatch* out) {
    out->documents.clear();
    out->ids.clear();
    out->keep.clear();
    for (const RawBatch::Item& item : batch.items) {
      const size_t begin = out->ids.size();
      bool masked = false;
      if (item.kind == InputKind::kTokens) {
        out->ids.insert(out->ids.end(), batch.ids.begin() + static_cast<ptrdiff_t>(item.begin),
                        batch.ids.begin() + static_cast<ptrdiff_t>(item.begin + item.size));
        out->keep.insert(out->keep.end(), batch.keep.begin() + static_cast<ptrdiff_t>(item.begin),
                         batch.keep.begin() + static_cast<ptrdiff_t>(item.begin + item.size));
        masked = true;
      } else {
        const std::string_view text = std::string_view(batch.bytes).substr(item.begin, item.size);
        masked = item.kind == InputKind::kJsonl ? encode_json(item, text, out) : encode_text(text, out);
      }
      if (out->ids.size() > begin) out->documents.push_back({item.document_index, begin, out->ids.size() - begin, masked});
    }
  }

 private:
  void append(const std::vector<int32_t>& ids, bool loss, EncodedBatch* out) {
    out->ids.insert(out->ids.end(), ids.begin(), ids.end());
    out->keep.resize(out->ids.size(), loss);
  }
  bool encode_text(std::string_view text, EncodedBatch* out) {
    append(encoder_.document_begin, true, out);
    session_(text, false, &out->ids);
    append(encoder_.document_end, true, out);
    return false;
  }
  bool encode_json(const RawBatch::Item& item, std::string_view line, EncodedBatch* out) {
    JsonDocumentParser::Result result;
    try {
      result = json_.parse(line, options_.chat_renderer);
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("{}:{}: {}", inputs_[item.file_index].path, item.line, error.what()));
    }
    const size_t begin = out->ids.size();
    bool masked = false;
    for (const TextSegment& segment : result.segments) {
      session_(segment.text, segment.allow_special, &out->ids);
      out->keep.resize(out->ids.size(), segment.loss);
      masked |= !segment.loss;
    }
    if (out->ids.size() == begin) return false;
    // A template may bring its own begin and end tokens; they are not given twice.
    const auto& first = encoder_.document_begin;
    const auto& last = encoder_.document_end;
    const auto starts = [&] {
      return out->ids.size() - begin >= first.size() &&
             std::equal(first.begin(), first.end(), out->ids.begin() + static_cast<ptrdiff_t>(begin));
    };
    const auto ends = [&] {
      return out->ids.size() - begin >= last.size() &&
             std::equal(last.begin(), last.end(), out->ids.end() - static_cast<ptrdiff_t>(last.size()));
    };
    if (!result.is_chat || !ends()) append(last, !result.is_chat, out);
    if (!result.is_chat || !starts()) {
      out->ids.insert(out->ids.begin() + static_cast<ptrdiff_t>(begin), first.begin(), first.end());
      out->keep.insert(out->keep.begin() + static_cast<ptrdiff_t>(begin), first.size(), uint8_t{1});
    }
    return masked || result.is_chat;
  }

  const BuildOptions& options_;
  const TokenEncoder& encoder_;
  const std::vector<InputFile>& inputs_;
  TokenEncoder::Session session_;
  JsonDocumentParser json_;
};

[[noreturn]] void throw_stopped(const BuildOptions& options) {
  throw Error(ErrorCode::kCancelled, "interrupted; nothing was written at {}", options.output_folder);
}

// The workers: each takes the next raw batch, encodes it, waits for its turn and writes it, so the output has the input's order
// whatever the timing, and at most one batch a thread is in memory.
class Pipeline {
 public:
  Pipeline(const BuildOptions& options, const TokenEncoder& encoder, const std::vector<InputFile>& inputs,
           const Holdout& holdout, const std::string& folder, const BuildCallback& progress)
      : options_(options),
        encoder_(encoder),
        holdout_(holdout),
        progress_(progress),
        reader_(inputs, options.max_document_bytes),
        train_(folder, "train", options, encoder),
        validation_(folder, "validation", options, encoder) {}

  void run() {
    if (options_.num_threads <= 1) {
      work();
    } else {
      std::thread second([this] { work(); });
      work();
      second.join();
    }
    if (error_) std::rethrow_exception(error_);
    train_.close();
    validation_.close();
  }
  const SplitSummary& train() const { return train_.summary(); }
  const SplitSummary& validation() const { return validation_.summary(); }
  const BuildProgress& totals() const { return totals_; }
  uint64_t smallest_draw_document() const { return smallest_.second; }

 private:
  void work() {
    RawBatch raw;
    EncodedBatch encoded;
    std::optional<BatchEncoder> batch_encoder;
    while (true) {
      std::exception_ptr error;
      uint64_t file_bytes = 0;
      bool has_batch = false;
      {
        std::lock_guard lock(read_mutex_);
        if (reading_ended_) return;
        raw.number = num_read_;
        try {
          has_batch = reader_.next(&raw);
        } catch (...) {
          error = std::current_exception();
        }
        if (!has_batch) reading_ended_ = true;
        if (!has_batch && !error) return;
        raw.number = num_read_++;
        file_bytes = reader_.file_bytes_done();
      }
      if (!error) try {
          if (!batch_encoder) batch_encoder.emplace(options_, encoder_, reader_.inputs());
          batch_encoder->encode(raw, &encoded);
        } catch (...) {
          error = std::current_exception();
        }
      if (!write_in_turn(raw, encoded, file_bytes, error)) return;
    }
  }

  bool write_in_turn(const RawBatch& raw, const EncodedBatch& encoded, uint64_t file_bytes, std::exception_ptr error) {
    std::unique_lock lock(write_mutex_);
    turn_.wait(lock, [&] { return num_written_ == raw.number; });
    if (!error_ && !error) try {
        write(raw, encoded, file_bytes);
      } catch (...) {
        error = std::current_exception();
      }
    if (!error_) error_ = error;  // in order: the first error of the input is the one reported
    ++num_written_;
    turn_.notify_all();
    return !error_;
  }

  void write(const RawBatch& raw, const EncodedBatch& encoded, uint64_t file_bytes) {
    for (const EncodedBatch::Document& document : encoded.documents) {
      smallest_ = std::min(smallest_, {holdout_.draw(document.index), document.index});
      const std::span<const int32_t> ids(encoded.ids.data() + document.begin, document.size);
      const std::span<const uint8_t> keep(encoded.keep.data() + document.begin, document.masked ? document.size : 0);
      (holdout_.holds_out(document.index) ? validation_ : train_).add(ids, keep);
    }
    totals_.text_bytes += raw.bytes.size();
    totals_.documents += encoded.documents.size();
    totals_.tokens += encoded.ids.size();
    totals_.input_bytes = std::max(totals_.input_bytes, file_bytes);
    totals_.input_bytes_total = reader_.file_bytes_total();
    if (progress_ && !progress_(totals_))
      throw_stopped(options_);
  }

  const BuildOptions& options_;
  const TokenEncoder& encoder_;
  const Holdout& holdout_;
  const BuildCallback& progress_;
  std::mutex read_mutex_, write_mutex_;
  std::condition_variable turn_;
  DocumentReader reader_;
  bool reading_ended_ = false;
  uint64_t num_read_ = 0, num_written_ = 0;
  std::exception_ptr error_;
  SplitWriter train_, validation_;
  BuildProgress totals_;
  std::pair<uint32_t, uint64_t> smallest_{~0u, ~uint64_t{0}};
};

ContentHash hash_inputs(const BuildOptions& options, const TokenEncoder& encoder, const std::vector<InputFile>& inputs, const BuildCallback& progress) {
  constexpr size_t kPieceBytes = size_t{16} << 20;  // a few milliseconds from memory, a moment from a slow disk
  ContentHasher hasher;
  hasher.add_text("orrery data build 1");
  hasher.add_hash(encoder.hash);
  hasher.add_number(encoder.vocab_size);
  for (const auto* ids : {&encoder.document_begin, &encoder.document_end}) {
    hasher.add_number(ids->size());
    for (int32_t id : *ids) hasher.add_number(static_cast<uint64_t>(id));
  }
  hasher.add_text(fmt::format("{:.17g}", options.val_fraction));
  hasher.add_number(options.val_fraction > 0 ? options.seed : 0);
  hasher.add_number(options.max_document_bytes);
  hasher.add_number(options.shard_tokens_max);
  hasher.add_text(options.chat_renderer_name);
  for (const InputFile& input : inputs) {
    hasher.add_number(static_cast<uint64_t>(input.kind));
    if (input.kind == InputKind::kTokens) {
      hasher.add_hash(TokenFile::open(input.path)->content_hash());
    } else {
      const MappedFile file(input.path);
      hasher.add_number(file.bytes().size());
      for (size_t begin = 0; begin < file.bytes().size(); begin += kPieceBytes) {
        if (progress && !progress({})) throw_stopped(options);
        hasher.add(file.bytes().data() + begin, std::min(kPieceBytes, file.bytes().size() - begin));
      }
    }
  }
  return hasher.finish();
}

// True when the folder holds what its manifest says and the manifest has this hash.
bool is_up_to_date(const std::string& folder, const std::string& inputs_hash, DataManifest* manifest) {
  if (!is_shard_folder(folder)) return false;
  try {
    *manifest = load_manifest(folder);
    if (manifest->inputs_hash != inputs_hash) return false;
    for (const SplitSummary* split : {&manifest->train, &manifest->validation}) {
      uint64_t tokens = 0;
      for (const std::string& shard : split->shards) tokens += TokenFile::open(folder + "/" + shard)->num_tokens();
      if (tokens != split->tokens) return false;
    }
    return true;
  } catch (const Error&) {
    return false;  // damaged: build it again
  }
}

void check_options(const BuildOptions& options, const TokenEncoder& encoder) {
  if (!(options.val_fraction >= 0 && options.val_fraction < 1))
    throw Error(ErrorCode::kInvalidArgument, "val_fraction={}, wanted a share of the documents in [0, 1)",
                options.val_fraction);
  if (options.output_folder.empty()) throw Error(ErrorCode::kInvalidArgument, "no output folder was named");
  if (encoder.vocab_size == 0) throw Error(ErrorCode::kInvalidArgument, "the tokenizer has an empty vocabulary");
  const fs::path folder = options.output_folder;
  if (!fs::exists(folder)) return;
  if (!fs::is_directory(folder))
    throw Error(ErrorCode::kInvalidArgument, "{} exists and is not a folder; name another place for the shards",
                options.output_folder);
  if (!fs::is_empty(folder) && !is_shard_folder(options.output_folder))
    throw Error(ErrorCode::kInvalidArgument, "{} is not empty and holds no shards of ours; name another folder or empty it",
                options.output_folder);
}

// A folder that is removed unless it has been put into its place. While it is in use it is locked: what a killed process left
// behind is not, and goes when the next one begins.
class StagingFolder {
 public:
  explicit StagingFolder(const std::string& target) : target_(target), path_(fmt::format("{}.tmp-{}", target, ::getpid())) {
    std::error_code error;
    const fs::path parent = fs::absolute(target).parent_path();
    fs::create_directories(parent, error);
    if (!error) remove_abandoned(parent);
    if (!error) fs::remove_all(path_, error);
    if (!error) fs::create_directory(path_, error);
    if (error) throw_io_error(error.value(), fmt::format("cannot create {}", path_));
    lock_ = lock(path_);
  }
  ~StagingFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
    if (lock_ >= 0) ::close(lock_);
  }
  StagingFolder(const StagingFolder&) = delete;
  const std::string& path() const { return path_; }
  void clear() {
    for (const auto& entry : fs::directory_iterator(path_)) fs::remove_all(entry.path());
  }
  void commit() {
    sync_path(path_);
    // An existing folder is exchanged in one step: there is no moment without one.
    const bool exists = fs::exists(target_);
    if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), exists ? RENAME_EXCHANGE : 0) != 0) {
      std::error_code error;
      if (exists) fs::remove_all(target_, error);  // a file system without the exchange
      if (std::rename(path_.c_str(), target_.c_str()) != 0)
        throw_io_error(errno, fmt::format("cannot put {} into place", target_));
    }
    sync_path(fs::absolute(target_).parent_path().string());
  }

 private:
  /// A descriptor that holds the folder's lock; -1 when another process does.
  static int lock(const std::string& path) {
    const int folder = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0 || ::flock(folder, LOCK_EX | LOCK_NB) == 0) return folder;
    ::close(folder);
    return -1;
  }
  void remove_abandoned(const fs::path& parent) const {
    const std::string prefix = fs::path(target_).filename().string() + ".tmp-";
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(parent, ignored)) {
      const std::string path = entry.path().string();
      if (!entry.path().filename().string().starts_with(prefix)) continue;
      const int folder = lock(path);
      if (folder < 0) continue;
      fs::remove_all(path, ignored);
      ::close(folder);
    }
  }

  std::string target_, path_;
  int lock_ = -1;
};

std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

BuildResult build_data(const BuildOptions& given, const TokenEncoder& encoder, const BuildCallback& progress) {
  BuildOptions options = given;
  options.output_folder = without_trailing_slash(options.output_folder);
  check_options(options, encoder);
  const std::vector<InputFile> inputs = find_inputs(options.inputs);
  const std::string inputs_hash = hash_inputs(options, encoder, inputs, progress).hex();
  BuildResult result;
  if (is_up_to_date(options.output_folder, inputs_hash, &result.manifest)) {
    result.was_up_to_date = true;
    return result;
  }
  StagingFolder staging(options.output_folder);
  std::optional<uint64_t> forced;
  for (int attempt = 0;; ++attempt) {
    const Holdout holdout(options.val_fraction, options.seed, forced);
    Pipeline pipeline(options, encoder, inputs, holdout, staging.path(), progress);
    pipeline.run();
    result.totals = pipeline.totals();
    result.manifest = {};
    result.manifest.train = pipeline.train();
    result.manifest.validation = pipeline.validation();
    if (result.totals.documents == 0)
      throw Error(ErrorCode::kCorruptData, "the {} input files hold no text (first: {})", inputs.size(),
                  inputs[0].description());
    const bool nothing_held_out = options.val_fraction > 0 && result.manifest.validation.tokens == 0;
    if (!nothing_held_out || attempt > 0 || result.totals.documents < 2) break;
    forced = pipeline.smallest_draw_document();
    staging.clear();
  }
  DataManifest& manifest = result.manifest;
  if (manifest.train.tokens == 0)
    throw Error(ErrorCode::kInvalidArgument, "val_fraction={} holds out all {} documents; lower it", options.val_fraction,
                result.totals.documents);
  if (options.val_fraction > 0 && manifest.validation.tokens == 0)
    throw Error(
        ErrorCode::kInvalidArgument,
        "val_fraction={} of one document holds nothing out; name data.validation, or lower the size at which documents are cut",
        options.val_fraction);
  manifest.inputs_hash = inputs_hash;
  manifest.tokenizer_hash = encoder.hash.hex();
  manifest.vocab_size = encoder.vocab_size;
  manifest.val_fraction = options.val_fraction;
  manifest.seed = options.seed;
  for (const InputFile& input : inputs) manifest.inputs.push_back(input.description());
  if (options.add_files) options.add_files(staging.path());
  save_manifest(manifest, staging.path());
  staging.commit();
  return result;
}

namespace {

bool is_token_entry(const std::string& path) {
  return is_shard_folder(path) || path.ends_with(kShardSuffix) || path.ends_with(".bin") || path.ends_with(".idx");
}

void require_tokenizer(const DataManifest& manifest, const std::string& folder, const TokenEncoder& encoder) {
  if (manifest.tokenizer_hash == encoder.hash.hex()) return;
  throw Error(ErrorCode::kInvalidArgument,
              "{} was built with another tokenizer (hash {}, the run's has {}); set data.tokenizer to the one in that folder "
              "or build it again",
              folder, manifest.tokenizer_hash.substr(0, 8), encoder.hash.hex().substr(0, 8));
}

void add_folder(const std::string& folder, const TokenEncoder& encoder, DataSource* train, DataSource* validation) {
  const DataManifest manifest = load_manifest(folder);
  require_tokenizer(manifest, folder, encoder);
  for (const std::string& shard : manifest.train.shards) train->files.push_back(folder + "/" + shard);
  if (validation != nullptr)
    for (const std::string& shard : manifest.validation.shards) validation->files.push_back(folder + "/" + shard);
}

class Preparation {
 public:
  Preparation(const PrepareOptions& options, const TokenEncoder& encoder, const BuildCallback& progress)
      : options_(options), encoder_(encoder), progress_(progress) {}

  // Consecutive text entries of one source are built into one folder.
  void add_source(std::span<const DataEntry> entries, const std::string& cache_name, double val_fraction, double weight,
                  std::vector<DataSource>* train, DataSource* validation) {
    DataSource source{.name = entries[0].path + (entries.size() > 1 ? " and others" : ""), .weight = weight};
    std::vector<std::string> text;
    for (const DataEntry& entry : entries) {
      const std::string path = without_trailing_slash(entry.path);
      if (is_shard_folder(path))
        add_folder(path, encoder_, &source, validation);
      else if (is_token_entry(path))
        for (const InputFile& input : find_inputs({path})) source.files.push_back(input.path);
      else
        text.push_back(entry.path);
    }
    if (!text.empty()) {
      BuildOptions build = options_.build;
      build.inputs = text;
      build.output_folder = options_.cache_folder + "/" + cache_name;
      build.val_fraction = val_fraction;
      const BuildResult result = build_data(build, encoder_, progress_);
      notes.push_back(fmt::format("{} {}: {} tokens to train on, {} held out", result.was_up_to_date ? "unchanged" : "built",
                                  build.output_folder, result.manifest.train.tokens, result.manifest.validation.tokens));
      const auto held_out = static_cast<double>(result.manifest.validation.tokens);
      const double share = held_out / std::max(1.0, held_out + static_cast<double>(result.manifest.train.tokens));
      // Whole documents are held out: one of few can be most of the text.
      if (share > 2 * val_fraction && held_out > 0)
        notes.push_back(fmt::format("{:.0f} % of the tokens are held out where val_fraction asks for {:.0f} %, because the documents are few and "
                                    "large; split the text into more files, or name data.validation",
                                    100 * share, 100 * val_fraction));
      add_folder(build.output_folder, encoder_, &source, validation);
    }
    train->push_back(std::move(source));
  }
  std::vector<std::string> notes;

 private:
  const PrepareOptions& options_;
  const TokenEncoder& encoder_;
  const BuildCallback& progress_;
};

}  // namespace

PreparedData prepare_data(const PrepareOptions& options, const TokenEncoder& encoder, const BuildCallback& progress) {
  if (options.train.empty())
    throw Error(ErrorCode::kInvalidConfig, "data.train names no data; give a list of globs or shard folders");
  const bool has_validation = !options.validation.empty();
  const double val_fraction = has_validation ? 0 : options.val_fraction;
  const bool weighted =
      std::any_of(options.train.begin(), options.train.end(), [](const DataEntry& entry) { return entry.weight != 1.0; });
  Preparation preparation(options, encoder, progress);
  PreparedData data;
  DataSource held_out{.name = "held out"};
  DataSource* held_out_target = has_validation ? nullptr : &held_out;
  const std::span<const DataEntry> train(options.train);
  if (weighted) {
    for (size_t k = 0; k < train.size(); ++k)
      preparation.add_source(train.subspan(k, 1), fmt::format("train-{}", k), val_fraction, train[k].weight, &data.train,
                             held_out_target);
  } else {
    preparation.add_source(train, "train-0", val_fraction, 1.0, &data.train, held_out_target);
  }
  if (has_validation) preparation.add_source(options.validation, "validation", 0, 1.0, &data.validation, nullptr);
  if (val_fraction > 0 && held_out.files.empty())
    throw Error(ErrorCode::kInvalidConfig,
                "data.val_fraction={} but data.train is token files without held-out documents; name data.validation, or build "
                "a folder from "
                "them with `orrery data build --val-fraction`",
                val_fraction);
  if (!held_out.files.empty()) data.validation.push_back(std::move(held_out));
  data.notes = std::move(preparation.notes);
  return data;
}

}  // namespace orrery
