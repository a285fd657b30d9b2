// Packing, order and prefetching: every window equals a brute-force packer's, an epoch visits each window once, samples do not
// depend on the order of access or on where a run resumes, and the prefetcher delivers the same batches.
#include "data/dataset.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "data/prefetcher.h"
#include "data/testing.h"

namespace orrery {
namespace {

using namespace orrery::testing;

struct Sample {
  std::vector<int32_t> ids, targets, positions, starts;
  bool operator==(const Sample&) const = default;
};

Sample get(const Dataset& dataset, uint64_t index) {
  Sample sample;
  const auto length = static_cast<size_t>(dataset.seq_len());
  sample.ids.resize(length);
  sample.targets.resize(length);
  sample.positions.resize(length);
  sample.starts.resize(static_cast<size_t>(dataset.max_segments_per_sample()));
  const int count =
      dataset.fill_sample(index, {sample.ids.data(), sample.targets.data(), sample.positions.data()}, 0, sample.starts.data());
  sample.starts.resize(static_cast<size_t>(count));
  return sample;
}

// The definition in dataset.h, token by token, over the documents themselves.
std::vector<Sample> brute_force(const std::vector<Document>& documents, int length, int* max_segments) {
  struct Token {
    int32_t id;
    bool keep;
    size_t document;
  };
  std::vector<Token> stream;
  for (size_t d = 0; d < documents.size(); ++d)
    for (size_t i = 0; i < documents[d].ids.size(); ++i)
      stream.push_back({documents[d].ids[i], documents[d].keep.empty() || documents[d].keep[i] != 0, d});
  std::vector<Sample> samples;
  *max_segments = 0;
  for (size_t begin = 0; begin + 1 < stream.size(); begin += static_cast<size_t>(length)) {
    Sample sample;
    int position = 0;
    size_t previous = SIZE_MAX;
    for (int i = 0; i < length; ++i) {
      const size_t at = begin + static_cast<size_t>(i);
      const size_t document = at < stream.size() ? stream[at].document : SIZE_MAX - 1;
      if (document != previous) {
        sample.starts.push_back(i);
        position = 0;
      }
      previous = document;
      const bool has_target = at + 1 < stream.size() && stream[at + 1].document == document && stream[at + 1].keep;
      sample.ids.push_back(at < stream.size() ? stream[at].id : 0);
      sample.targets.push_back(has_target ? stream[at + 1].id : -1);
      sample.positions.push_back(position++);
    }
    *max_segments = std::max(*max_segments, static_cast<int>(sample.starts.size()));
    samples.push_back(sample);
  }
  return samples;
}

TEST(Dataset, EqualsABruteForcePacker) {
  TemporaryDirectory directory;
  for (int trial = 0; trial < 30; ++trial) {
    const int length_max = trial % 3 == 0 ? 3 : 50;
    auto documents = random_documents(1 + trial * 3, length_max, 900, trial % 2 == 1, static_cast<uint64_t>(trial));
    documents[0].ids.push_back(5);  // at least two tokens in all
    if (!documents[0].keep.empty()) documents[0].keep.push_back(1);
    const size_t cut = documents.size() / 2;  // two files, so that windows cross files
    write_shard(directory / "0.orrtok", {documents.begin(), documents.begin() + static_cast<ptrdiff_t>(cut)}, 900);
    write_shard(directory / "1.orrtok", {documents.begin() + static_cast<ptrdiff_t>(cut), documents.end()}, 900);
    for (int length : {1, 2, 7, 16, 33, 5000}) {
      const Dataset dataset({{"s", {directory / "0.orrtok", directory / "1.orrtok"}}},
                            {.seq_len = length, .vocab_size = 900, .sequential = true});
      int max_segments = 0;
      const auto expected = brute_force(documents, length, &max_segments);
      ASSERT_EQ(dataset.num_samples(), expected.size());
      ASSERT_EQ(dataset.max_segments_per_sample(), max_segments) << "trial " << trial << " length " << length;
      for (size_t w = 0; w < expected.size(); ++w)
        ASSERT_EQ(get(dataset, w), expected[w]) << "window " << w << " length " << length;
    }
  }
}

struct TwoSources {
  TwoSources() {
    write_shard(directory / "a.orrtok", random_documents(40, 60, 300, false, 1), 300);
    write_megatron(directory / "b", random_documents(30, 40, 300, false, 2));
  }
  Dataset open(uint64_t seed = 42) const {
    return Dataset({{"a", {directory / "a.orrtok"}, 0.75}, {"b", {directory / "b.bin"}, 0.25}},
                   {.seed = seed, .seq_len = 16, .vocab_size = 300});
  }
  TemporaryDirectory directory;
};

TEST(Dataset, AnEpochVisitsEachWindowOnceAndSharesHold) {
  const TwoSources fixture;
  const Dataset dataset = fixture.open();
  std::map<std::pair<uint32_t, uint64_t>, std::set<uint64_t>> windows;
  uint64_t from_first = 0;
  const uint64_t total = 4 * dataset.num_windows(0);
  for (uint64_t g = 0; g < total; ++g) {
    const Dataset::Place place = dataset.place(g);
    from_first += place.source == 0;
    EXPECT_TRUE((windows[{place.source, place.epoch}].insert(place.window).second));
    EXPECT_LE(std::abs(static_cast<double>(from_first) - 0.75 * static_cast<double>(g + 1)), 1.0);
  }
  EXPECT_EQ((windows[{0, 0}].size()), dataset.num_windows(0));
  EXPECT_EQ((windows[{0, 1}].size()), dataset.num_windows(0));
}

TEST(Dataset, SamplesDependOnNothingButTheirIndex) {
  const TwoSources fixture;
  const Dataset forward = fixture.open(), backward = fixture.open(), other_seed = fixture.open(7);
  std::vector<Sample> samples;
  for (uint64_t g = 0; g < 300; ++g) samples.push_back(get(forward, g));
  for (uint64_t g = 300; g-- > 0;) EXPECT_EQ(get(backward, g), samples[g]);
  int num_different = 0;
  for (uint64_t g = 0; g < 300; ++g) num_different += get(other_seed, g) != samples[g];
  EXPECT_GT(num_different, 200);
  EXPECT_EQ(forward.manifest_hash(), backward.manifest_hash());
}

TEST(Dataset, RefusesWhatCannotWork) {
  TemporaryDirectory directory;
  write_shard(directory / "one.orrtok", {{{4}, {}}}, 10);
  EXPECT_EQ(error_of([&] { Dataset({{"s", {directory / "one.orrtok"}}}, {.seq_len = 4}); }).second, 4);
  EXPECT_EQ(error_of([&] { Dataset({}, {.seq_len = 4}); }).second, 2);
  EXPECT_EQ(error_of([&] { Dataset({{"s", {directory / "one.orrtok"}}}, {.seq_len = 0}); }).second, 2);
}

struct OwnedBatch {
  OwnedBatch(const Dataset& dataset, size_t rows)
      : ids(rows * dataset.seq_len()),
        targets(ids.size()),
        positions(ids.size()),
        starts(rows * dataset.max_segments_per_sample() + 1),
        counts(rows) {}
  BatchBuffers view() { return {ids.data(), targets.data(), positions.data(), starts.data(), counts.data()}; }
  std::vector<int32_t> ids, targets, positions, starts, counts;
};

TEST(Prefetcher, DeliversTheSameBatchesFromAnyStep) {
  const TwoSources fixture;
  const Dataset dataset = fixture.open();
  const std::vector<int> sequences{0, 3, 5};
  for (uint64_t first_step : {0u, 17u}) {
    OwnedBatch a(dataset, 3), b(dataset, 3), expected(dataset, 3);
    Prefetcher prefetcher(dataset, {.first_step = first_step, .global_batch_size = 6, .sequences = sequences},
                          {a.view(), b.view()});
    for (uint64_t step = first_step; step < first_step + 50; ++step) {
      const Prefetcher::Batch batch = prefetcher.next();
      SampleReader reader(dataset);
      const int count = fill_batch(reader, step, 6, sequences, expected.view());
      ASSERT_EQ(batch.step, step);
      ASSERT_EQ(batch.num_segments, count);
      ASSERT_TRUE(std::equal(expected.ids.begin(), expected.ids.end(), batch.buffers->ids));
      ASSERT_TRUE(std::equal(expected.targets.begin(), expected.targets.end(), batch.buffers->targets));
      ASSERT_TRUE(std::equal(expected.starts.begin(), expected.starts.begin() + count + 1, batch.buffers->segment_starts));
      for (int row = 0; row < 3; ++row) {
        const Sample sample = get(dataset, step * 6 + static_cast<uint64_t>(sequences[row]));
        ASSERT_TRUE(std::equal(sample.ids.begin(), sample.ids.end(), batch.buffers->ids + row * 16));
      }
    }
  }
}

TEST(Prefetcher, PassesOnAnErrorOfItsThread) {
  TemporaryDirectory directory;
  const std::string path = directory / "x.orrtok";
  write_shard(path, random_documents(300, 9000, 500, false, 1), 500);
  std::string bytes = read_file(path);
  bytes[kShardHeaderBytes + 5] ^= 1;
  write_file(path, bytes);
  const Dataset dataset({{"s", {path}}}, {.seq_len = 256});
  OwnedBatch a(dataset, 8), b(dataset, 8);
  Prefetcher prefetcher(dataset, {.global_batch_size = 8, .sequences = {0, 1, 2, 3, 4, 5, 6, 7}}, {a.view(), b.view()});
  const auto [message, status] = error_of([&] {
    for (uint64_t step = 0; step < dataset.num_samples(); ++step) prefetcher.next();
  });
  EXPECT_EQ(status, 4);
  EXPECT_NE(message.find("block 1"), std::string::npos) << message;
}

}  // namespace
}  // namespace orrery
