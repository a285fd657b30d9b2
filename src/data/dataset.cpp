#include "data/dataset.h"

#include <algorithm>

#include "base/error.h"

namespace orrery {
namespace {

std::vector<DataSource> merge_if_sequential(const std::vector<DataSource>& sources, bool sequential) {
  if (!sequential || sources.size() <= 1) return sources;
  DataSource all{.name = sources[0].name + " and others"};
  for (const DataSource& source : sources) all.files.insert(all.files.end(), source.files.begin(), source.files.end());
  return {all};
}

std::vector<double> weights_of(const std::vector<DataSource>& sources) {
  std::vector<double> weights;
  for (const DataSource& source : sources) weights.push_back(source.weight);
  return weights;
}

// Calls visit(position) with each document's first token position in [begin, end) of the stream, in order, skipping empty ones.
template <typename Files, typename Visit>
void for_each_document_start(const Files& files, const std::vector<uint64_t>& file_begins, uint64_t begin, uint64_t end,
                             Visit&& visit) {
  size_t file = static_cast<size_t>(std::upper_bound(file_begins.begin(), file_begins.end(), begin) - file_begins.begin()) - 1;
  for (; file < files.size() && file_begins[file] < end; ++file) {
    const auto offsets = files[file]->document_offsets();
    const uint64_t local = begin > file_begins[file] ? begin - file_begins[file] : 0;
    auto at = std::lower_bound(offsets.begin(), offsets.end() - 1, local);
    for (; at != offsets.end() - 1 && file_begins[file] + *at < end; ++at)
      if (*at != *(at + 1)) visit(file_begins[file] + *at);
  }
}

}  // namespace

Dataset::Dataset(const std::vector<DataSource>& sources, Options options)
    : options_(options), mixture_(weights_of(merge_if_sequential(sources, options.sequential))) {
  if (options_.seq_len < 1) throw Error(ErrorCode::kInvalidConfig, "data.seq_len={}, wanted at least 1", options_.seq_len);
  for (const DataSource& spec : merge_if_sequential(sources, options.sequential)) sources_.push_back(open_source(spec));
  for (const Source& source : sources_) max_segments_ = std::max(max_segments_, scan_segments(source));
  manifest_hash_ = compute_manifest_hash();
}

Dataset::Source Dataset::open_source(const DataSource& spec) const {
  Source source;
  source.name = spec.name;
  for (const std::string& path : spec.files) {
    source.files.push_back(TokenFile::open(path));
    if (options_.vocab_size > 0) source.files.back()->require_ids_below(options_.vocab_size);
    source.file_begins.push_back(source.num_tokens);
    source.num_tokens += source.files.back()->num_tokens();
  }
  source.file_begins.push_back(source.num_tokens);
  if (source.num_tokens < 2)
    throw Error(ErrorCode::kCorruptData, "data source {} holds {} tokens in {} files, wanted at least 2", spec.name,
                source.num_tokens, spec.files.size());
  const auto length = static_cast<uint64_t>(options_.seq_len);
  source.num_windows = (source.num_tokens - 1 + length - 1) / length;
  return source;
}

// A window has one segment at its start, one at each document start inside it, and one for its padding.
int Dataset::scan_segments(const Source& source) const {
  const auto length = static_cast<uint64_t>(options_.seq_len);
  uint64_t window = 0;
  int count = 1, largest = 1;
  for_each_document_start(source.files, source.file_begins, 0, source.num_tokens, [&](uint64_t position) {
    if (position / length != window) {
      window = position / length;
      count = 1;
    }
    if (position % length != 0 && window < source.num_windows) largest = std::max(largest, ++count);
  });
  const uint64_t last = source.num_windows - 1;
  if (source.num_tokens < source.num_windows * length) {
    if (window != last) count = 1;
    largest = std::max(largest, count + 1);
  }
  return largest;
}

uint64_t Dataset::num_samples() const {
  uint64_t total = 0;
  for (const Source& source : sources_) total += source.num_windows;
  return total;
}

uint64_t Dataset::num_tokens() const {
  uint64_t total = 0;
  for (const Source& source : sources_) total += source.num_tokens;
  return total;
}

Dataset::Place Dataset::place(uint64_t global_sample) const {
  if (options_.sequential) return {0, 0, global_sample};
  const Mixture::Pick pick = mixture_.pick(global_sample);
  const uint64_t count = sources_[pick.source].num_windows;
  const uint64_t epoch = pick.ordinal / count;
  const WindowPermutation permutation(count, {options_.seed, pick.source, static_cast<uint32_t>(epoch)});
  return {pick.source, epoch, permutation(pick.ordinal % count)};
}

void Dataset::read_stream(const Source& source, uint64_t begin, uint64_t count, int32_t* ids) const {
  const auto& begins = source.file_begins;
  size_t file = static_cast<size_t>(std::upper_bound(begins.begin(), begins.end(), begin) - begins.begin()) - 1;
  while (count > 0) {
    const uint64_t piece = std::min(count, begins[file + 1] - begin);
    source.files[file]->read_tokens(begin - begins[file], piece, ids);
    begin += piece;
    ids += piece;
    count -= piece;
    ++file;
  }
}

void Dataset::apply_mask(const Source& source, uint64_t window_begin, uint64_t count, int32_t* targets) const {
  const auto& begins = source.file_begins;
  const uint64_t end = window_begin + 1 + count;
  uint64_t begin = window_begin + 1;
  size_t file = static_cast<size_t>(std::upper_bound(begins.begin(), begins.end(), begin) - begins.begin()) - 1;
  for (; begin < end; ++file) {
    const uint64_t file_end = std::min(end, begins[file + 1]);
    if (!source.files[file]->has_mask()) {
      begin = file_end;
      continue;
    }
    uint8_t keep[1024];
    while (begin < file_end) {
      const uint64_t piece = std::min<uint64_t>(sizeof keep, file_end - begin);
      source.files[file]->read_mask(begin - begins[file], piece, keep);
      for (uint64_t i = 0; i < piece; ++i)
        if (keep[i] == 0) targets[begin + i - window_begin - 1] = -1;
      begin += piece;
    }
  }
}

int Dataset::fill_sample(uint64_t global_sample, const SampleBuffers& out, int32_t token_base, int32_t* segment_starts) const {
  const Place where = place(global_sample);
  const Source& source = sources_[where.source];
  ORRERY_CHECK(where.window < source.num_windows, "window {} of {}", where.window, source.num_windows);
  const int length = options_.seq_len;
  const uint64_t begin = where.window * static_cast<uint64_t>(length);
  const int num_inputs = static_cast<int>(std::min<uint64_t>(static_cast<uint64_t>(length), source.num_tokens - begin));
  const int num_targets = static_cast<int>(std::min<uint64_t>(static_cast<uint64_t>(length), source.num_tokens - 1 - begin));
  read_stream(source, begin, static_cast<uint64_t>(num_inputs), out.ids);
  std::fill(out.ids + num_inputs, out.ids + length, 0);
  std::copy(out.ids + 1, out.ids + num_inputs, out.targets);
  if (num_targets == length) read_stream(source, begin + static_cast<uint64_t>(length), 1, out.targets + length - 1);
  std::fill(out.targets + num_targets, out.targets + length, -1);
  apply_mask(source, begin, static_cast<uint64_t>(num_targets), out.targets);

  int num_segments = 0;
  segment_starts[num_segments++] = token_base;
  for_each_document_start(source.files, source.file_begins, begin + 1, begin + static_cast<uint64_t>(length) + 1,
                          [&](uint64_t start) {
                            const int at = static_cast<int>(start - begin);
                            out.targets[at - 1] = -1;  // the last token of a document has nothing to learn from the next one
                            if (at < length) segment_starts[num_segments++] = token_base + at;
                          });
  if (num_inputs < length) segment_starts[num_segments++] = token_base + num_inputs;
  ORRERY_CHECK(num_segments <= max_segments_, "window {}: {} segments, bound {}", where.window, num_segments, max_segments_);
  for (int segment = 0; segment < num_segments; ++segment) {
    const int first = segment_starts[segment] - token_base;
    const int end = segment + 1 < num_segments ? segment_starts[segment + 1] - token_base : length;
    for (int i = first; i < end; ++i) out.positions[i] = i - first;
  }
  return num_segments;
}

ContentHash Dataset::compute_manifest_hash() const {
  ContentHasher hasher;
  hasher.add_text("orrery data manifest 1");
  hasher.add_number(sources_.size());
  for (size_t k = 0; k < sources_.size(); ++k) {
    hasher.add_number(mixture_.units()[k]);
    hasher.add_number(sources_[k].files.size());
    for (const auto& file : sources_[k].files) hasher.add_hash(file->content_hash());
  }
  return hasher.finish();
}

}  // namespace orrery
