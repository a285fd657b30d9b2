// A training step makes no heap call: engine, pool, prefetcher and a save in flight run for several steps while every heap call of the
// process is counted thread by thread. And resident memory is the arena plus what the program had before the engine was made.
//
// What is counted: all threads, from a save's start() and the prefetcher's next() to the end of step(); frees as well as allocations.
// What is not: the first step after an engine was made (libraries set themselves up), what is between steps (reports, the result of a
// save), and on the checkpoint's thread the bookkeeping of a save: file names, headers, hashes of tensors, the manifest. That is a few
// kilobytes a tensor whatever the tensor's size; it is counted apart, printed and bounded. The parts of a save that move the bytes of
// tensors (reading a source, writing a chunk) may make none.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "base/error.h"
#include "checkpoint/checkpoint_writer.h"
#include "data/prefetcher.h"
#include "data/testing.h"
#include "heap_calls.h"
#include "planner/plan.h"
#include "train/engine.h"

namespace orrery {
namespace {

constexpr int kVocabSize = 512;
constexpr double kMiB = 1 << 20;

struct Shape {
  ModelFamily family = ModelFamily::kLlama;
  DType dtype = DType::kBF16;
  Recompute recompute = Recompute::kNone;
  int64_t micro_batch_size = 1;
  int64_t hidden_size = 128, num_layers = 2, vocab_size = kVocabSize;

  std::string text() const {
    return fmt::format("{} {} recompute {} micro-batch {} hidden {}", family == ModelFamily::kGpt2 ? "gpt2" : "llama", dtype_name(dtype),
                       recompute_name(recompute), micro_batch_size, hidden_size);
  }
};

TrainingPlanOptions plan_options(const Shape& shape, const Dataset& dataset) {
  TrainingPlanOptions options;
  options.model = default_model_config(shape.family);
  options.model.hidden_size = shape.hidden_size;
  options.model.num_layers = shape.num_layers;
  options.model.num_heads = 4;
  options.model.num_kv_heads = shape.family == ModelFamily::kGpt2 ? 4 : 2;
  options.model.intermediate_size = 3 * shape.hidden_size;
  options.model.vocab_size = shape.vocab_size;
  options.model.max_seq_len = dataset.seq_len();
  resolve(options.model);
  options.compute_dtype = shape.dtype;
  options.sequence_tokens = dataset.seq_len();
  options.global_batch_size = 8;
  options.lanes = 4;
  options.micro_batch_size = shape.micro_batch_size;
  options.recompute = shape.recompute;
  options.segments_per_sequence = dataset.max_segments_per_sample();
  options.evaluates = true;
  return options;
}

OptimizerHyper hyper_at(int64_t step) {
  OptimizerHyper hyper;
  hyper.lr = 1e-3f;
  hyper.beta1 = 0.9f;
  hyper.beta2 = 0.95f;
  hyper.eps = 1e-8f;
  hyper.weight_decay = 0.1f;
  hyper.clip = 1.0f;
  hyper.bias_correction1 = static_cast<float>(1 - std::pow(0.9, static_cast<double>(step + 1)));
  hyper.bias_correction2 = static_cast<float>(1 - std::pow(0.95, static_cast<double>(step + 1)));
  return hyper;
}

/// The real file system, except that a save stops before it renames its manifest until it is let go: so it is certain to be in flight.
class GatedFileSystem final : public FileSystem {
 public:
  void make_directory(const std::string& path) override { real_.make_directory(path); }
  int create_file(const std::string& path) override { return real_.create_file(path); }
  void write_all(int file, const std::string& path, std::span<const std::byte> data) override {
    const heap_calls::Strict strict;
    real_.write_all(file, path, data);
  }
  void sync_file(int, const std::string&) override {}  // a disk's speed is not what is tested
  void close_file(int file, const std::string& path) override { real_.close_file(file, path); }
  void rename_path(const std::string& from, const std::string& to) override {
    if (to.ends_with("manifest.json")) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return open_; });
    }
    real_.rename_path(from, to);
  }
  void exchange_paths(const std::string& a, const std::string& b) override { real_.exchange_paths(a, b); }
  void sync_directory(const std::string&) override {}
  void remove_file(const std::string& path) override { real_.remove_file(path); }
  void remove_directory(const std::string& path) override { real_.remove_directory(path); }

  void set_open(bool open) {
    {
      const std::lock_guard lock(mutex_);
      open_ = open;
    }
    changed_.notify_all();
  }

 private:
  FileSystem& real_ = real_file_system();
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
};

/// A training run as the trainer makes it, without files of its own but its data and checkpoints.
class TrainingRun {
 public:
  TrainingRun(const Shape& shape, const Dataset& dataset, const std::string& checkpoints)
      : engine_options_(default_engine_options(2)),
        plan_(make_training_plan(plan_options(shape, dataset), workspace_traits(engine_options_, dataset.seq_len()))),
        overhead_bytes_(resident_memory_bytes()),
        engine_(plan_, engine_options_),
        prefetcher_(dataset, prefetch_options(), {buffers_of(engine_.batch(0)), buffers_of(engine_.batch(1))}) {
    engine_.initialize_weights(11);
    CheckpointOptions options;
    options.directory = checkpoints;
    options.buffer = engine_.checkpoint_buffer();
    options.files = &files_;
    CheckpointContent content;
    content.model = strict_sources(std::nullopt, "");
    for (const auto& [field, suffix] : {std::pair(StateField::kLow, ".low"), std::pair(StateField::kMoment1, ".m"), std::pair(StateField::kMoment2, ".v")})
      for (TensorSource& source : strict_sources(field, suffix)) content.state.push_back(std::move(source));
    content.documents = {{"config.json", "{}\n"}};
    content.position_names = {"next_sample"};
    writer_.emplace(options, std::move(content));
  }
  ~TrainingRun() { files_.set_open(true); }

  const TrainingEngine& engine() const { return engine_; }
  int64_t overhead_bytes() const { return overhead_bytes_; }

  /// Everything that the trainer does between two reports; `saves`: a save begins with the step.
  StepResult step(bool saves) {
    if (saves) {
      const int64_t position[] = {step_};
      writer_->start(step_, position);
    }
    const Prefetcher::Batch batch = prefetcher_.next();
    const int copy = batch.buffers->ids == engine_.batch(0).ids.data() ? 0 : 1;
    return engine_.step(copy, hyper_at(step_++), before_update_);
  }
  void close_gate() { files_.set_open(false); }
  bool save_in_flight() const { return !writer_->poll(); }
  CheckpointResult finish_save() {
    files_.set_open(true);
    return writer_->wait();
  }

 private:
  static BatchBuffers buffers_of(const BatchView& view) {
    return {view.ids.data(), view.targets.data(), view.positions.data(), view.segment_starts.data(), view.segment_counts.data()};
  }
  Prefetcher::Options prefetch_options() const {
    Prefetcher::Options options;
    options.global_batch_size = static_cast<uint64_t>(plan_.options.global_batch_size);
    for (int i = 0; i < plan_.options.global_batch_size; ++i) options.sequences.push_back(i);
    return options;
  }
  std::vector<TensorSource> strict_sources(std::optional<StateField> field, std::string_view suffix) const {
    std::vector<PhysicalTensor> tensors;
    for (size_t i = 0; i < plan_.stage.parameters.size(); ++i) {
      std::byte* data = field ? engine_.state_data(i, *field) : engine_.parameter_data(i);
      if (data == nullptr) continue;
      const DType dtype = !field ? plan_.stage.compute_dtype : *field == StateField::kLow ? DType::kI16 : plan_.options.optimizer.moment_dtype;
      tensors.push_back({&plan_.stage.parameters[i], data, dtype});
    }
    std::vector<TensorSource> sources = tensor_sources(tensors, suffix);
    for (TensorSource& source : sources)
      source.read = [read = source.read](uint64_t offset, std::span<std::byte> out) {
        const heap_calls::Strict strict;
        read(offset, out);
      };
    return sources;
  }

  GatedFileSystem files_;
  EngineOptions engine_options_;
  Plan plan_;
  int64_t overhead_bytes_;  // resident before the engine was made
  TrainingEngine engine_;
  Prefetcher prefetcher_;
  std::optional<CheckpointWriter> writer_;
  std::function<void()> before_update_ = [this] {
    if (save_in_flight()) writer_->wait_sources();
  };
  int64_t step_ = 0;
};

class AllocationTest : public ::testing::Test {
 protected:
  AllocationTest() {
    const std::string path = directory_ / "train.orrtok";
    // 3 MB: several checksummed blocks, so that some are read for the first time in a counted step.
    testing::write_shard(path, testing::random_documents(15000, 200, kVocabSize, true, 5), kVocabSize);
    dataset_.emplace(std::vector<DataSource>{{"train", {path}, 1.0}}, Dataset::Options{.seq_len = 64, .vocab_size = kVocabSize});
  }

  testing::TemporaryDirectory directory_;
  std::optional<Dataset> dataset_;
};

// The counter sees what it must: otherwise zero would say nothing.
TEST_F(AllocationTest, CallsOfEveryThreadAreCounted) {
  if (!heap_calls::available()) GTEST_SKIP() << "the sanitizer has its own malloc";
  ThreadPool pool(2);
  void* kept[2] = {};
  heap_calls::start();
  std::atomic<int> begun = 0;
  pool.run([&](int thread_index, int) {
    for (++begun; begun < 2;) std::this_thread::yield();  // or the caller might do the worker's part too
    kept[thread_index] = ::operator new(1000 + static_cast<size_t>(thread_index));
  });
  {
    const heap_calls::Strict strict;
    free(kept[0]);
  }
  heap_calls::stop();
  free(kept[1]);
  int64_t main_calls = 0, worker_calls = 0, bytes = 0, strict_calls = 0;
  for (const heap_calls::Thread& thread : heap_calls::threads()) {
    (std::string_view(thread.name) == "compute1" ? worker_calls : main_calls) += thread.calls();
    bytes += thread.bytes;
    strict_calls += thread.strict_calls;
  }
  EXPECT_EQ(main_calls, 2);
  EXPECT_EQ(worker_calls, 1);
  EXPECT_EQ(bytes, 2001);
  EXPECT_EQ(strict_calls, 1);
}

/// Bookkeeping of the checkpoint's thread: 4 KiB a tensor is ample for its name, shape, hash and two lines of JSON.
constexpr int64_t kBookkeepingBytesPerTensor = 4096;
constexpr std::string_view kCheckpointThread = "orrery-ckpt";

void expect_no_heap_calls(TrainingRun& run, const std::string& what) {
  const int64_t tensors = 4 * static_cast<int64_t>(run.engine().plan().stage.parameters.size());
  int steps_with_save = 0;
  int64_t our_calls = 0, checkpoint_calls = 0, checkpoint_peak = 0;
  for (int step = 0; step < 6; ++step) {
    const bool saves = step % 3 == 0;  // begins in this step and is still there in the next one
    if (saves) run.close_gate();
    heap_calls::start();
    const StepResult result = run.step(saves);
    steps_with_save += run.save_in_flight();
    heap_calls::stop();
    EXPECT_GT(result.num_valid, 0);
    for (const heap_calls::Thread& thread : heap_calls::threads()) {
      if (std::string_view(thread.name) == kCheckpointThread) {
        checkpoint_calls += thread.calls();
        checkpoint_peak = std::max(checkpoint_peak, thread.peak_bytes);
        EXPECT_EQ(thread.strict_calls, 0) << what << ": while the bytes of a tensor were moved";
        continue;
      }
      our_calls += thread.calls();
      EXPECT_EQ(thread.calls(), 0) << what << ", step " << step << ", thread " << thread.name << ": " << thread.allocations << " allocations of " << thread.bytes
                                   << " bytes, " << thread.frees << " frees; the first came from (see stderr)";
      if (thread.calls() > 0) heap_calls::print_origin(thread);
    }
    if (step % 3 == 1) {
      EXPECT_GT(run.finish_save().bytes, 0u);
    }
  }
  EXPECT_EQ(steps_with_save, 4) << what;
  EXPECT_LE(checkpoint_peak, tensors * kBookkeepingBytesPerTensor) << what;
  fmt::print("{}: {} heap calls in 6 steps; checkpoint thread's bookkeeping {} calls, at most {:.1f} KiB live\n", what, our_calls, checkpoint_calls,
             static_cast<double>(checkpoint_peak) / 1024);
}

TEST_F(AllocationTest, AStepMakesNoHeapCall) {
  if (!heap_calls::available()) GTEST_SKIP() << "the sanitizer has its own malloc";
  std::vector<Shape> shapes = {{ModelFamily::kGpt2, DType::kBF16, Recompute::kNone, 1}, {ModelFamily::kGpt2, DType::kF32, Recompute::kFull, 4}};
  for (DType dtype : {DType::kBF16, DType::kF32})
    for (Recompute recompute : {Recompute::kNone, Recompute::kFull})
      for (int64_t micro_batch_size : {1, 4}) shapes.push_back({ModelFamily::kLlama, dtype, recompute, micro_batch_size});
  for (size_t i = 0; i < shapes.size(); ++i) {
    TrainingRun run(shapes[i], *dataset_, directory_ / fmt::format("run{}", i));
    run.step(false);  // warm-up
    expect_no_heap_calls(run, shapes[i].text());
  }
}

TEST_F(AllocationTest, ResidentMemoryIsTheArena) {
  if (!heap_calls::available()) GTEST_SKIP() << "a sanitizer keeps shadow memory";
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    const Shape shape{ModelFamily::kLlama, dtype, Recompute::kNone, 4, 384, 4, 8192};
    TrainingRun run(shape, *dataset_, directory_ / fmt::format("resident{}", dtype_name(dtype)));
    for (int step = 0; step < 5; ++step) {
      run.step(step == 2);
      if (step == 3) (void)run.finish_save();
    }
    const int64_t resident = resident_memory_bytes(), arena = run.engine().arena().bytes();
    const int64_t slack = std::max<int64_t>(arena / 50, 16 << 20);
    fmt::print("{}: resident {:.1f} MiB = arena {:.1f} + before the engine {:.1f} + {:.1f}; allowed {:.1f}\n", shape.text(), static_cast<double>(resident) / kMiB,
               static_cast<double>(arena) / kMiB, static_cast<double>(run.overhead_bytes()) / kMiB,
               static_cast<double>(resident - arena - run.overhead_bytes()) / kMiB, static_cast<double>(slack) / kMiB);
    EXPECT_EQ(arena, run.engine().plan().memory.total_bytes);
    EXPECT_LE(resident, arena + slack + run.overhead_bytes());
    EXPECT_GE(resident, arena);  // every page is there
  }
}

}  // namespace
}  // namespace orrery
