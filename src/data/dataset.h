// The training set: token files packed into windows, windows in a seeded order, sources mixed by weight. A sample is a pure
// function of (seed, files, seq_len, global sample index) (NUMERICS rule 12), so a checkpoint stores only the step.
// Building token files is data_builder.h; filling batches ahead of time is prefetcher.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/content_hash.h"
#include "data/sample_order.h"
#include "data/token_file.h"

namespace orrery {

/// Token files that are read one after the other as one stream.
struct DataSource {
  std::string name;                // for messages
  std::vector<std::string> files;  // shards or Megatron files, in this order
  double weight = 1.0;
};

/// Dataset::fill_sample's output: arrays of seq_len entries each that the caller owns.
struct SampleBuffers {
  int32_t* ids = nullptr;
  int32_t* targets = nullptr;    // the next token; -1 where there is none to learn
  int32_t* positions = nullptr;  // from 0 in each segment
};

/// Windows and samples
///   The files of a source, one after the other, are one stream of N tokens. Window w holds the inputs at w*L .. w*L+L-1 (L =
///   seq_len) and their targets one further on, so it reads L + 1 tokens and each token of the stream is an input once and a
///   target once an epoch. A source has ceil((N-1)/L) windows; the last one is padded with id 0, target -1. A segment is the
///   part of one document, or the padding, inside one window. Positions count from 0 in each segment; attention must not cross
///   segments. A target is -1 when it belongs to another document or window padding, or its loss mask is clear. Training:
///   sample g is mixture.pick(g) = (source k, n-th sample); window = WindowPermutation(windows_k, {seed, k, epoch = n /
///   windows_k})(n % windows_k). Sequence i of step s is sample s * global_batch_size + i. Sequential (validation): one source,
///   window g, no permutation; num_samples() windows.
class Dataset {
 public:
  struct Options {
    uint64_t seed = 42;
    int seq_len = 0;
    uint32_t vocab_size = 0;  // the model's: files that hold ids beyond it are refused
    bool sequential = false;  // validation: all sources one after the other, in order, weights ignored
  };

  /// Opens every file and scans the document offsets once.
  /// Errors  kInvalidConfig: no source, seq_len < 1. kCorruptData: a file's header, an empty source, ids beyond the vocabulary.
  /// kIo.
  Dataset(const std::vector<DataSource>& sources, Options options);

  /// Fills one sample and writes the first token index of each of its segments, plus `token_base`, to `segment_starts` (room
  /// for max_segments_per_sample() entries); returns their number (at least 1). The caller appends the batch's end to get
  /// cu_seqlens. No heap allocation; thread-safe. Errors  kCorruptData: a block that is read for the first time does not match
  /// its checksum.
  int fill_sample(uint64_t global_sample, const SampleBuffers& out, int32_t token_base, int32_t* segment_starts) const;

  int seq_len() const { return options_.seq_len; }
  /// Exact: the most segments that any window has.
  int max_segments_per_sample() const { return max_segments_; }
  /// Windows of all sources: a sequential set has this many samples; a training set never ends.
  uint64_t num_samples() const;
  uint64_t num_tokens() const;
  int num_sources() const { return static_cast<int>(sources_.size()); }
  uint64_t num_windows(int source_index) const { return sources_[source_index].num_windows; }
  const Mixture& mixture() const { return mixture_; }
  /// The data manifest of NUMERICS' key: sources in order, their units of weight, their files' content.
  ContentHash manifest_hash() const { return manifest_hash_; }
  /// Where a training sample comes from, for `data inspect` and tests.
  struct Place {
    uint32_t source;
    uint64_t epoch;
    uint64_t window;
  };
  Place place(uint64_t global_sample) const;

 private:
  struct Source {
    std::string name;
    std::vector<std::unique_ptr<TokenFile>> files;
    std::vector<uint64_t> file_begins;  // token position of each file's start in the stream, and the end
    uint64_t num_tokens = 0;
    uint64_t num_windows = 0;
  };
  Source open_source(const DataSource& spec) const;
  int scan_segments(const Source& source) const;
  void read_stream(const Source& source, uint64_t begin, uint64_t count, int32_t* ids) const;
  void apply_mask(const Source& source, uint64_t window_begin, uint64_t count, int32_t* targets) const;
  ContentHash compute_manifest_hash() const;

  Options options_;
  std::vector<Source> sources_;
  Mixture mixture_;
  int max_segments_ = 0;
  ContentHash manifest_hash_;
};

}  // namespace orrery
