// Proves, on a model with fused, transposed and padded parameters: what is saved loads back bit for bit; any cut or flipped byte of a
// finished checkpoint is refused with file and block; a save that fails or loses power at any operation leaves the old checkpoint or
// the new one, whole; old checkpoints go only after a newer one was read back; two runs cannot share a directory.
#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstring>
#include <random>

#include "base/fuzz_util.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/digest.h"
#include "checkpoint/test_files.h"
#define ORRERY_FUZZ_IN_TEST
#include "checkpoint/manifest_fuzz.cpp"

namespace orrery {
namespace {

/// Two parameters: q and k fused, [5 + 3 rows + 2 padding, 7]; a Conv1D tensor [6, 8] held transposed as [8, 6]; a vector.
struct TinyModel {
  std::vector<ParameterSpec> specs = {
      {.name = "qk", .shape = {10, 7}, .segments = {{"q", {5, 7}, false, 0, 0, 5}, {"k", {3, 7}, false, 0, 5, 3}}, .padding_rows = 2},
      {.name = "c", .shape = {8, 6}, .segments = {{"conv", {6, 8}, true, 0, 0, 8}}},
      {.name = "norm", .shape = {9}, .segments = {{"norm", {9}, false, 0, 0, 9}}}};
  std::vector<std::vector<std::byte>> weights, low, moment;

  explicit TinyModel(uint64_t seed) {
    std::mt19937_64 random(seed);
    for (const ParameterSpec& spec : specs) {
      check_parameter_spec(spec);
      const auto filled = [&](int64_t bytes) {
        std::vector<std::byte> data(static_cast<size_t>(spec.num_elements() * bytes), std::byte{0});
        for (size_t i = 0; i < data.size() - static_cast<size_t>(spec.padding_rows * spec.columns() * bytes); ++i) data[i] = static_cast<std::byte>(random());
        return data;
      };
      weights.push_back(filled(2));
      low.push_back(filled(2));
      moment.push_back(filled(4));
    }
  }
  std::vector<PhysicalTensor> tensors(std::vector<std::vector<std::byte>>& data, DType dtype) {
    std::vector<PhysicalTensor> list;
    for (size_t i = 0; i < specs.size(); ++i) list.push_back({&specs[i], data[i].data(), dtype});
    return list;
  }
  CheckpointContent content() {
    CheckpointContent made;
    made.model = tensor_sources(tensors(weights, DType::kBF16), "");
    made.state = tensor_sources(tensors(low, DType::kI16), ".low");
    for (TensorSource& source : tensor_sources(tensors(moment, DType::kF32), ".m")) made.state.push_back(std::move(source));
    made.documents = {{"config.json", "{}\n"}, {"tokenizer.json", std::string(5000, 't')}};
    made.position_names = {"sample", "epoch"};
    made.numerics_key = "key";
    made.run_config = "[model]\nfamily = \"llama\"\n";
    return made;
  }
  bool operator==(const TinyModel& other) const { return weights == other.weights && low == other.low && moment == other.moment; }
};

struct Saver {
  FaultyFileSystem plain;  // faultless
  std::vector<std::byte> buffer = std::vector<std::byte>(kMinCheckpointBuffer);
  CheckpointWriter writer;
  Saver(TinyModel& model, const std::string& directory, FileSystem* files = nullptr, int keep = 2, uint64_t max_file_bytes = 1 << 20)
      : writer({.directory = directory, .keep = keep, .max_file_bytes = max_file_bytes, .buffer = buffer, .files = files ? files : &plain}, model.content()) {}
  CheckpointResult save(int64_t step) {
    const int64_t position[] = {step * 8, 0};
    writer.start(step, position);
    return writer.wait();
  }
};

void load(const std::string& path, TinyModel& model) {
  const CheckpointReader reader(path);
  reader.load(model.tensors(model.weights, DType::kBF16), "");
  reader.load(model.tensors(model.low, DType::kI16), ".low");
  reader.load(model.tensors(model.moment, DType::kF32), ".m");
}

TEST(LogicalView, AnyRangeOfATransposedTensor) {
  TinyModel model(3);
  const auto views = logical_views(model.tensors(model.moment, DType::kF32));
  const LogicalView& conv = views[2];
  ASSERT_EQ(conv.name(), "conv");
  const auto* physical = reinterpret_cast<const uint32_t*>(model.moment[1].data());
  for (int64_t begin = 0; begin < 48; ++begin) {
    for (int64_t end = begin; end <= 48; ++end) {
      std::vector<uint32_t> out(static_cast<size_t>(end - begin));
      conv.read(begin, std::as_writable_bytes(std::span(out)));
      for (int64_t e = begin; e < end; ++e) ASSERT_EQ(out[static_cast<size_t>(e - begin)], physical[(e % 8) * 6 + e / 8]) << begin << " " << end;
    }
  }
}

TEST(Checkpoint, SavesAndLoadsBitForBit) {
  for (const uint64_t max_file_bytes : {uint64_t{1} << 20, uint64_t{100}}) {
    TemporaryDirectory directory;
    TinyModel model(1), loaded(2);
    Saver saver(model, directory.path(), &real_file_system(), 2, max_file_bytes);
    const CheckpointResult result = saver.save(120);
    EXPECT_EQ(result.path, directory.file("step-00000120"));
    EXPECT_EQ(verify_checkpoint(result.path).digest, result.digest);
    load(result.path, loaded);
    EXPECT_EQ(model, loaded);
    const CheckpointReader reader(result.path);
    EXPECT_EQ(reader.training_state().step, 120);
    EXPECT_EQ(reader.training_state().position[0], (std::pair<std::string, int64_t>{"sample", 960}));
    EXPECT_EQ(reader.document("tokenizer.json").size(), 5000u);
    EXPECT_EQ(path_exists(result.path + "/model.safetensors.index.json"), max_file_bytes == 100);
  }
}

TEST(Checkpoint, DigestIsOfTheLogicalTensors) {
  // Files cut differently, and a step that differs: the model's digest stays, the state's follows the step.
  TemporaryDirectory one, two;
  TinyModel model(1), other(2);
  Saver a(model, one.path()), b(model, two.path(), nullptr, 2, 100);
  const CheckpointResult first = a.save(1), same = b.save(1);
  EXPECT_EQ(first.digest, same.digest);
  EXPECT_EQ(first.state_digest, same.state_digest);
  const CheckpointResult later = a.save(2);
  EXPECT_EQ(later.digest, first.digest);
  EXPECT_NE(later.state_digest, first.state_digest);
  Saver c(other, one.path());
  EXPECT_NE(c.save(3).digest, first.digest);
}

TEST(Checkpoint, KeepsTheNewestAndRemovesTheRest) {
  TemporaryDirectory directory;
  TinyModel model(1);
  Saver saver(model, directory.path());
  for (const int64_t step : {10, 20, 30}) saver.save(step);
  EXPECT_EQ(list_checkpoints(directory.path()), (std::vector<std::string>{directory.file("step-00000030"), directory.file("step-00000020")}));
  // The same step again replaces it, whole.
  model.weights[0][0] ^= std::byte{1};
  const CheckpointResult again = saver.save(30);
  EXPECT_EQ(verify_checkpoint(again.path).digest, again.digest);
  EXPECT_EQ(list_directory(directory.path()).size(), 2u);
}

TEST(Checkpoint, EveryCutAndFlipIsRefusedAndNamed) {
  TemporaryDirectory directory;
  TinyModel model(1);
  Saver saver(model, directory.path(), nullptr, 1);
  const std::string path = saver.save(5).path;
  std::mt19937_64 random(11);
  for (const std::string& name : list_directory(path)) {
    const std::string file = join_path(path, name);
    const std::string good = read_text(file);
    std::set<size_t> cuts = {0, 1, good.size() / 2, good.size() - 1, good.size() + 1};
    for (size_t edge = kChecksumBlockBytes; edge < good.size(); edge += kChecksumBlockBytes) cuts.insert({edge - 1, edge, edge + 1});
    for (const size_t cut : cuts) {
      std::string bad = good;
      bad.resize(cut, 'x');
      write_text(file, bad);
      expect_error([&] { verify_checkpoint(path); }, ErrorCode::kCorruptData, {name});
    }
    for (int flip = 0; flip < 200; ++flip) {
      std::string bad = good;
      bad[random() % bad.size()] ^= static_cast<char>(1 << random() % 8);
      write_text(file, bad);
      const bool manifest = name == "manifest.json";
      expect_error([&] { verify_checkpoint(path); }, ErrorCode::kCorruptData, {name, manifest ? "changed or cut" : "block 0"});
      TinyModel scratch(2);
      if (name.ends_with(".safetensors")) {
        EXPECT_THROW(load(path, scratch), Error);
      }
    }
    std::filesystem::remove(file);
    expect_error([&] { verify_checkpoint(path); }, ErrorCode::kCorruptData, {name});
    write_text(file, good);
  }
  verify_checkpoint(path);
}

TEST(Checkpoint, ASecondBlockIsNamed) {
  TemporaryDirectory directory;
  TinyModel model(1);
  CheckpointContent content = model.content();
  std::vector<std::byte> big(3 << 20, std::byte{7});
  content.model.push_back({"big", DType::kU8, {3 << 20}, [&](uint64_t offset, std::span<std::byte> out) { std::memcpy(out.data(), big.data() + offset, out.size()); }});
  std::vector<std::byte> buffer(100'000);
  CheckpointWriter writer({.directory = directory.path(), .buffer = buffer}, content);
  writer.start(1, std::vector<int64_t>{0, 0});
  const std::string path = writer.wait().path, file = path + "/model.safetensors";
  std::string bad = read_text(file);
  bad[(2 << 20) + 5] ^= 1;
  write_text(file, bad);
  expect_error([&] { verify_checkpoint(path); }, ErrorCode::kCorruptData, {"model.safetensors", "block 2"});
  const CheckpointReader reader(path);
  std::vector<std::byte> out(1000);
  reader.read(*reader.find("big"), 0, out);  // an undamaged block of the same file can be read
  expect_error([&] { reader.read(*reader.find("big"), 2 << 20, out); }, ErrorCode::kCorruptData, {"block 2"});
}

TEST(Checkpoint, SwappedFilesAreRefused) {
  TemporaryDirectory directory;
  TinyModel model(1);
  Saver saver(model, directory.path(), nullptr, 3);
  const std::string old_path = saver.save(1).path;
  model.weights[0][3] ^= std::byte{4};
  const std::string path = saver.save(2).path;
  const std::string newer = read_text(path + "/model.safetensors");
  write_text(path + "/model.safetensors", read_text(old_path + "/model.safetensors"));
  expect_error([&] { verify_checkpoint(path); }, ErrorCode::kCorruptData, {"model.safetensors"});
  write_text(path + "/model.safetensors", newer);
  write_text(path + "/state.json", read_text(old_path + "/state.json"));
  EXPECT_THROW(verify_checkpoint(path), Error);
}

TEST(Checkpoint, NewestThatVerifiesWithReasonsForTheOthers) {
  TemporaryDirectory directory;
  TinyModel model(1);
  Saver saver(model, directory.path(), nullptr, 5);
  for (const int64_t step : {1, 2, 3}) saver.save(step);
  std::filesystem::resize_file(directory.file("step-00000003/model.safetensors"), 100);
  std::filesystem::remove(directory.file("step-00000002/manifest.json"));
  std::filesystem::create_directory(directory.file("step-x"));
  write_text(directory.file("step-00000009"), "a file");
  const NewestCheckpoint newest = find_newest_checkpoint(directory.path());
  ASSERT_TRUE(newest.path.has_value());
  EXPECT_EQ(*newest.path, directory.file("step-00000001"));
  ASSERT_EQ(newest.skipped.size(), 2u);
  EXPECT_NE(newest.skipped[0].reason.find("model.safetensors"), std::string::npos);
  EXPECT_NE(newest.skipped[1].reason.find("manifest.json"), std::string::npos);
  EXPECT_FALSE(find_newest_checkpoint(directory.file("nowhere")).path.has_value());
}

TEST(Checkpoint, AFailureAtAnyOperationIsToldAndLeavesTheOldOne) {
  for (const int error_number : {28 /* ENOSPC */, 5 /* EIO */, 30 /* EROFS */}) {
    for (int64_t fail_at = 0;; ++fail_at) {
      TemporaryDirectory directory;
      TinyModel model(1), newer(2), loaded(3);
      std::string old_digest;
      {
        Saver saver(model, directory.path(), nullptr, 1);
        old_digest = saver.save(1).digest;
      }
      FaultyFileSystem files;
      Saver saver(newer, directory.path(), &files, 1);
      files.count = 0;
      files.fail_at = fail_at;
      files.error_number = error_number;
      std::optional<CheckpointResult> result;
      std::string message;
      try {
        result = saver.save(2);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kIo);
        message = error.what();
      }
      const NewestCheckpoint newest = find_newest_checkpoint(directory.path());
      ASSERT_TRUE(newest.path.has_value()) << fail_at;
      EXPECT_TRUE(newest.skipped.empty()) << files.last();
      load(*newest.path, loaded);
      EXPECT_TRUE(loaded == model || loaded == newer) << "mixed after a failed " << files.last();
      if (!result) {
        EXPECT_NE(message.find("injected"), std::string::npos) << message;
        for (const std::string& name : list_directory(directory.path())) EXPECT_FALSE(name.starts_with(".saving")) << files.last();
        EXPECT_TRUE(is_checkpoint(directory.file("step-00000001"))) << "lost after a failed " << files.last();
        // The run goes on: the next save works.
        files.fail_at = -1;
        EXPECT_EQ(verify_checkpoint(saver.save(3).path).step, 3);
      }
      if (files.count <= fail_at) break;
      ASSERT_LT(fail_at, 200);
    }
  }
}

TEST(Checkpoint, APowerCutAtAnyOperationLeavesOldOrNew) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    std::mt19937_64 random(seed);
    for (int64_t fail_at = 0;; ++fail_at) {
      TemporaryDirectory directory;
      TinyModel model(1), newer(2), loaded(3);
      const int64_t new_step = seed % 2 == 0 ? 2 : 1;  // 1: the save replaces a checkpoint of the same step
      {
        Saver saver(model, directory.path(), nullptr, 1);
        saver.save(1);
      }
      FaultyFileSystem files;
      {
        Saver saver(newer, directory.path(), &files, 1);
        files.count = 0;
        files.fail_at = fail_at;
        files.crash = true;
        try {
          saver.save(new_step);
        } catch (const Error&) {
        }
      }
      files.lose_unsynced(random);
      const NewestCheckpoint newest = find_newest_checkpoint(directory.path());
      ASSERT_TRUE(newest.path.has_value()) << "seed " << seed << ", power lost at: " << files.last();
      load(*newest.path, loaded);
      EXPECT_TRUE(loaded == model || loaded == newer) << "seed " << seed << ", mixed after a power cut at: " << files.last();
      // The next run removes what is left over, and saves.
      Saver saver(newer, directory.path(), nullptr, 1);
      for (const std::string& name : list_directory(directory.path())) EXPECT_FALSE(name.starts_with(".saving")) << name;
      saver.save(9);
      EXPECT_EQ(find_newest_checkpoint(directory.path()).path, directory.file("step-00000009"));
      if (!files.dead) break;
      ASSERT_LT(fail_at, 200);
    }
  }
}

TEST(Checkpoint, SourcesAreFreeBeforeTheFilesAreSynced) {
  TemporaryDirectory directory;
  TinyModel model(1);
  Saver saver(model, directory.path());
  const int64_t position[] = {1, 2};
  saver.writer.start(1, position);
  saver.writer.wait_sources();
  for (std::byte& byte : model.weights[0]) byte = std::byte{0};
  const CheckpointResult result = saver.writer.wait();
  EXPECT_TRUE(saver.writer.poll());
  TinyModel before(1), loaded(2);
  load(result.path, loaded);
  EXPECT_EQ(loaded, before);
}

TEST(Checkpoint, AReadOnlyDirectoryIsNamed) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write anywhere";
  TemporaryDirectory directory;
  std::filesystem::permissions(directory.path(), std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  TinyModel model(1);
  expect_error([&] { Saver(model, directory.path()).save(1); }, ErrorCode::kIo, {directory.path()});
}

TEST(Checkpoint, AnotherModelsCheckpointIsRefused) {
  TemporaryDirectory directory;
  TinyModel model(1);
  Saver saver(model, directory.path());
  const CheckpointReader reader(saver.save(1).path);
  expect_error([&] { reader.load(model.tensors(model.moment, DType::kF32), ""); }, ErrorCode::kCorruptData, {"\"q\"", "wanted F32"});
  expect_error([&] { reader.load(model.tensors(model.moment, DType::kF32), ".v"); }, ErrorCode::kCorruptData, {"q.v", "missing"});
}

TEST(DirectoryLock, ASecondRunIsRefusedWithThePid) {
  TemporaryDirectory directory;
  {
    const DirectoryLock lock(directory.path());
    expect_error([&] { DirectoryLock second(directory.path()); }, ErrorCode::kInvalidArgument, {std::to_string(::getpid())});
  }
  const DirectoryLock again(directory.path());
}

TEST(Manifest, UnknownVersionAndBadNames) {
  Manifest manifest{.step = 1, .digest = std::string(32, 'a'), .state_digest = std::string(32, 'b')};
  manifest.files = {{"../x", 0, std::string(32, 'c'), {}}};
  expect_error([&] { manifest_from_text(manifest_to_text(manifest), "m"); }, ErrorCode::kCorruptData, {"plain name"});
  manifest.files[0].name = "x";
  EXPECT_EQ(manifest_from_text(manifest_to_text(manifest), "m"), manifest);
  manifest.files[0].bytes = 1;
  expect_error([&] { manifest_from_text(manifest_to_text(manifest), "m"); }, ErrorCode::kCorruptData, {"block checksums"});
  std::string text = manifest_to_text({.step = 1, .digest = std::string(32, 'a'), .state_digest = std::string(32, 'b')});
  text.replace(text.find("\"version\": 1"), 12, "\"version\": 2");
  const size_t self = text.rfind(",\n\"self\"");
  Hash128 hash;
  hash.update(std::string_view(text).substr(0, self));
  text = text.substr(0, self) + ",\n\"self\": \"" + hash.hex() + "\"\n}\n";
  expect_error([&] { manifest_from_text(text, "m"); }, ErrorCode::kUnsupported, {"version 2"});
}

TEST(Manifest, Mutations) {
  Manifest manifest{.step = 12, .digest = std::string(32, 'a'), .state_digest = std::string(32, 'b')};
  manifest.files = {{"model.safetensors", (5 << 20) + 1, std::string(32, 'c'), {1, 2, 3, 4, 5, 6}}};
  run_mutations(fuzz_manifest, {manifest_to_text(manifest), training_state_to_text({3, {{"a", 1}}, "k", "c"})}, 10000, 3);
}

}  // namespace
}  // namespace orrery
