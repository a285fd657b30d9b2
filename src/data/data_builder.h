// Builds a folder of token shards from text, JSON lines, Megatron files or other shards: read, tokenize on up to two threads,
// write. The result does not depend on the number of threads. docs/formats.md gives the folder's layout.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/content_hash.h"
#include "data/dataset.h"
#include "data/document.h"

namespace orrery {

/// What the data folder needs of a tokenizer (tokenizer_encoder.h makes one; tests bring their own).
struct TokenEncoder {
  /// Appends the ids of `text`, without begin or end tokens. Used by one thread.
  using Session = std::function<void(std::string_view text, bool allow_special, std::vector<int32_t>* ids)>;
  std::function<Session()> new_session;
  uint32_t vocab_size = 0;
  ContentHash hash;
  std::vector<int32_t> document_begin, document_end;  // e.g. BOS, EOS
};

struct BuildOptions {
  std::vector<std::string> inputs;  // find_inputs() says what a pattern may be
  std::string output_folder;
  double val_fraction = 0;                           // documents held out, in [0, 1)
  uint64_t seed = 42;                                // of the held-out draw
  uint64_t max_document_bytes = uint64_t{64} << 10;  // longer text documents are cut; 0: never
  uint64_t shard_tokens_max = uint64_t{256} << 20;
  int num_threads = 2;                        // 1 or 2
  ChatRenderer chat_renderer;                 // empty: ChatML
  std::string chat_renderer_name = "chatml";  // part of what makes the data what they are
  /// Writes more files into the folder before its manifest, e.g. the tokenizer.
  std::function<void(const std::string& folder)> add_files;
};

struct BuildProgress {
  uint64_t input_bytes = 0, input_bytes_total = 0;  // on disk
  uint64_t text_bytes = 0;
  uint64_t documents = 0;
  uint64_t tokens = 0;
};
/// Called from a working thread, never twice at once; with zeros while the inputs are hashed. False: stop, kCancelled.
using BuildCallback = std::function<bool(const BuildProgress&)>;

struct SplitSummary {
  std::vector<std::string> shards;  // file names in the folder
  uint64_t tokens = 0, documents = 0, masked_tokens = 0;
};

/// manifest.json of a folder of shards. It is written last.
struct DataManifest {
  std::string inputs_hash;  // of inputs, tokenizer and options: the same hash, the same folder
  std::string tokenizer_hash;
  uint32_t vocab_size = 0;
  double val_fraction = 0;
  uint64_t seed = 0;
  std::vector<std::string> inputs;  // their descriptions
  SplitSummary train, validation;
};

struct BuildResult {
  DataManifest manifest;
  BuildProgress totals;
  bool was_up_to_date = false;  // the folder already held exactly this; nothing was written
};

/// Held out: document d of the inputs, in order, when the d-th word of the Philox stream (seed, kHoldout, 0, 0) is below
/// val_fraction * 2^32. When no document falls below it, the one with the smallest word is held out, so that a small corpus has
/// a validation set too.
/// The folder appears whole or not at all: it is written beside its place and renamed. A folder that is already there is
/// replaced only if it is empty or holds a manifest of ours.
/// Errors  kInvalidArgument: patterns that match nothing, nothing to train on, a folder that is not ours. kCorruptData:
/// malformed
///         input, by file and line. kIo. kCancelled.
BuildResult build_data(const BuildOptions& options, const TokenEncoder& encoder, const BuildCallback& progress = {});

/// Errors  kIo, kCorruptData.
DataManifest load_manifest(const std::string& folder);
bool is_shard_folder(const std::string& path);

/// run.toml's data.train and data.validation.
struct DataEntry {
  std::string path;  // glob, file, folder of shards, .orrtok, .bin/.idx
  double weight = 1.0;
};
struct PrepareOptions {
  std::vector<DataEntry> train, validation;
  double val_fraction = 0;
  std::string cache_folder;  // where text is built into shards: cache_folder/train-K, cache_folder/validation
  BuildOptions build;        // everything but inputs, output_folder, val_fraction
};
struct PreparedData {
  std::vector<DataSource> train, validation;  // validation is empty when nothing is held out
  std::vector<std::string> notes;             // what was built, what was there already
};
/// Makes Dataset sources of the entries, building shards where they are text. When every weight is 1, all entries are one
/// source (token files first, then text, each in the given order), read in proportion to their sizes; else each entry is a
/// source of its own and its share is its weight. Errors  as build_data; kInvalidArgument: a shard folder made with another
/// tokenizer.
PreparedData prepare_data(const PrepareOptions& options, const TokenEncoder& encoder, const BuildCallback& progress = {});

}  // namespace orrery
