// Proves that one model has one digest in every form it can take (Hugging Face folder, one file or several; checkpoint; run directory;
// GGUF), for each architecture; that a GGUF file made by the `gguf` package, rope permutation included, reads as its Hugging Face
// weights; and that wrong folders are refused by name.
#include "checkpoint/model_source.h"

#include <gtest/gtest.h>

#include <random>

#include "base/bfloat16.h"
#include "base/fuzz_util.h"
#include "base/golden.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/test_files.h"

namespace orrery {
namespace {

const std::string kTokenizerJson = R"({"version":"1.0","added_tokens":[{"id":4,"content":"<|end|>","special":true},{"id":5,"content":"<u>","special":false}],
  "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},
  "model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"c":3},"merges":["a b"]}})";
const std::string kTokenizerConfig = R"({"eos_token":"<|end|>","chat_template":"{{ messages }}"})";

ModelConfig tiny_config(const std::string& architecture) {
  ModelConfig config = default_model_config(architecture == "GPT2LMHeadModel" ? ModelFamily::kGpt2 : ModelFamily::kLlama);
  config.architecture = architecture;
  config.hidden_size = 64;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = architecture == "GPT2LMHeadModel" ? 4 : 2;
  config.intermediate_size = 96;
  config.vocab_size = 11;
  config.max_seq_len = 16;
  config.eos_token_ids = {4};
  if (architecture == "LlamaForCausalLM") config.rope_scaling = {RopeScalingKind::kLlama3, 8.0, 1.0, 4.0, 8192};
  if (architecture == "MistralForCausalLM") config.sliding_window = 8;
  if (architecture == "Qwen2ForCausalLM") config.attention_bias = true;
  if (architecture == "Qwen3ForCausalLM") config.qk_norm = true, config.head_dim = 32, config.tie_embeddings = true;
  resolve(config);
  validate(config, "test");
  return config;
}

/// A bf16 Hugging Face folder with random weights.
void write_folder(const ModelConfig& config, const std::string& directory) {
  std::filesystem::create_directory(directory);
  std::mt19937 random(9);
  std::vector<SafetensorsSpec> specs;
  for (const LogicalTensor& tensor : logical_tensors(config)) specs.push_back({tensor.name, DType::kBF16, tensor.shape});
  std::string file = make_safetensors_header(specs, {{"format", "pt"}});
  for (const SafetensorsSpec& spec : specs) {
    for (uint64_t i = 0; i < spec.bytes() / 2; ++i) {
      const uint16_t bits = f32_to_bf16(static_cast<float>(random() % 20001) / 10000.0f - 1.0f);
      file.append(reinterpret_cast<const char*>(&bits), 2);
    }
  }
  write_text(join_path(directory, "model.safetensors"), file);
  write_text(join_path(directory, "config.json"), model_config_to_json(config, DType::kBF16));
  write_text(join_path(directory, "tokenizer.json"), kTokenizerJson);
  write_text(join_path(directory, "tokenizer_config.json"), kTokenizerConfig);
}

class EveryArchitecture : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Architectures, EveryArchitecture,
                         testing::Values("GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"));

TEST_P(EveryArchitecture, OneDigestInEveryForm) {
  TemporaryDirectory directory;
  const ModelConfig config = tiny_config(GetParam());
  write_folder(config, directory.file("hf"));
  const ModelSource hf = open_model(directory.file("hf"));
  EXPECT_EQ(hf.form(), ModelForm::kHuggingFace);
  EXPECT_EQ(hf.config(), config);
  EXPECT_EQ(hf.tokenizer().chat_template, "{{ messages }}");
  const std::string digest = model_digest(hf);
  EXPECT_EQ(model_digest(hf, DType::kBF16), digest);
  EXPECT_NE(model_digest(hf, DType::kF32), digest);

  // In several files.
  write_hf_folder(hf, directory.file("sharded"), {.max_file_bytes = 20'000});
  EXPECT_TRUE(path_exists(directory.file("sharded/model.safetensors.index.json")));
  const ModelSource sharded = open_model(directory.file("sharded"));
  EXPECT_EQ(sharded.config(), config);
  EXPECT_EQ(model_digest(sharded), digest);
  EXPECT_EQ(*sharded.tokenizer().file("tokenizer.json"), kTokenizerJson);

  // GGUF: f32 and bf16 hold it exactly; and back to a folder.
  for (const BlockType type : {BlockType::kF32, BlockType::kBF16}) {
    const std::string path = directory.file(fmt::format("{}.gguf", block_type_name(type)));
    write_gguf(hf, path, type);
    const ModelSource gguf = open_model(path);
    EXPECT_EQ(gguf.form(), ModelForm::kGguf);
    EXPECT_EQ(gguf.config(), config);
    EXPECT_EQ(model_digest(gguf, DType::kBF16), digest);
    EXPECT_EQ(model_digest(gguf, DType::kF32), model_digest(hf, DType::kF32));
    write_hf_folder(gguf, directory.file("back-" + std::string(block_type_name(type))), {.dtype = DType::kBF16});
    const ModelSource back = open_model(directory.file("back-" + std::string(block_type_name(type))));
    EXPECT_EQ(back.config(), config);
    EXPECT_EQ(model_digest(back), digest);
    EXPECT_EQ(*back.tokenizer().file("tokenizer.json"), kTokenizerJson);
  }
}

TEST_P(EveryArchitecture, Q8GgufIsNear) {
  TemporaryDirectory directory;
  write_folder(tiny_config(GetParam()), directory.file("hf"));
  const ModelSource hf = open_model(directory.file("hf"));
  write_gguf(hf, directory.file("q.gguf"), BlockType::kQ8_0);
  const ModelSource gguf = open_model(directory.file("q.gguf"));
  expect_error([&] { model_digest(gguf); }, ErrorCode::kUnsupported, {"--as"});
  for (size_t i = 0; i < hf.tensors().size(); ++i) {
    const size_t count = static_cast<size_t>(hf.tensors()[i].rows() * hf.tensors()[i].columns());
    std::vector<float> wanted(count), found(count);
    hf.read_rows(i, 0, hf.tensors()[i].rows(), wanted.data());
    gguf.read_rows(i, 0, hf.tensors()[i].rows(), found.data());
    // A block's step is amax/127 with a half-precision scale, and amax is at most 1: half a step, and 2^-11 of the value.
    for (size_t e = 0; e < count; ++e) ASSERT_NEAR(found[e], wanted[e], 0.5 / 127 + 1.0 / 2048) << hf.tensors()[i].name;
  }
}

// Ctrl-C in the middle of an export, wherever it comes: kCancelled names the target, which is not there, and no part of it is left.
TEST(ModelSource, AnExportThatIsStoppedLeavesNothing) {
  TemporaryDirectory directory;
  write_folder(tiny_config("LlamaForCausalLM"), directory.file("hf"));
  const ModelSource hf = open_model(directory.file("hf"));
  // The question is counted; a stop is requested at the n-th. The last one stands between the whole partial file and its name.
  const auto stop_at = [&](const std::string& target, int n, auto&& write) {
    int asked = 0;
    const StopRequested stop = [&] {
      EXPECT_TRUE(path_exists(target + ".partial"));
      return ++asked == n;
    };
    if (n == 0) {
      write(stop);
      return asked;
    }
    expect_error([&] { write(stop); }, ErrorCode::kCancelled, {"interrupted; nothing was written at " + target});
    EXPECT_FALSE(path_exists(target));
    EXPECT_FALSE(path_exists(target + ".partial"));
    return asked;
  };
  const auto every_stop = [&](const std::string& name, auto&& write) {
    const int questions = stop_at(directory.file("whole-" + name), 0, [&](const StopRequested& stop) { write(directory.file("whole-" + name), stop); });
    EXPECT_GE(questions, static_cast<int>(hf.tensors().size())) << "asked for every tensor";
    for (int n = 1; n <= questions; ++n)
      stop_at(directory.file(name), n, [&](const StopRequested& stop) { write(directory.file(name), stop); });
  };
  every_stop("model.gguf", [&](const std::string& path, const StopRequested& stop) { write_gguf(hf, path, BlockType::kQ8_0, stop); });
  every_stop("folder", [&](const std::string& path, const StopRequested& stop) { write_hf_folder(hf, path, {.stop_requested = stop}); });
}

TEST(ModelSource, RunDirectoryAndCheckpoint) {
  TemporaryDirectory directory;
  const ModelConfig config = tiny_config("Qwen2ForCausalLM");
  write_folder(config, directory.file("hf"));
  const ModelSource hf = open_model(directory.file("hf"));
  // Physical memory as the model has it: q, k and v fused, others one to one.
  std::vector<ParameterSpec> specs;
  for (const LogicalTensor& tensor : logical_tensors(config)) {
    const bool joins = tensor.name.ends_with("k_proj.weight") || tensor.name.ends_with("v_proj.weight");
    if (!joins) specs.push_back({.name = tensor.name, .shape = tensor.shape});
    ParameterSpec& spec = specs.back();
    int64_t row = 0;
    for (const ParameterSegment& segment : spec.segments) row += segment.num_rows;
    spec.segments.push_back({tensor.name, tensor.shape, false, 0, row, tensor.shape[0]});
    spec.shape[0] = row + tensor.shape[0];
    // The biases stand between the weights in model order; they keep their own parameters.
    if (tensor.name.ends_with("q_proj.bias") || tensor.name.ends_with("k_proj.bias")) specs.push_back({.name = "next", .shape = {0, config.hidden_size}});
  }
  std::vector<std::vector<std::byte>> weights, low;
  std::vector<PhysicalTensor> weight_tensors, low_tensors;
  for (const ParameterSpec& spec : specs) {
    weights.emplace_back(static_cast<size_t>(spec.num_elements() * 2));
    low.emplace_back(static_cast<size_t>(spec.num_elements() * 2), std::byte{1});
    weight_tensors.push_back({&spec, weights.back().data(), DType::kBF16});
    low_tensors.push_back({&spec, low.back().data(), DType::kI16});
  }
  load_model(hf, weight_tensors, low_tensors);
  for (const auto& bytes : low) EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; }));

  std::vector<std::byte> buffer(8192);
  CheckpointContent content;
  content.model = tensor_sources(weight_tensors, "");
  content.state = tensor_sources(low_tensors, ".low");
  content.documents = {{"config.json", model_config_to_json(config, DType::kBF16)}};
  for (const auto& document : read_tokenizer_files(directory.file("hf"))) content.documents.push_back(document);
  const std::string run = directory.file("run");
  CheckpointWriter writer({.directory = run, .buffer = buffer}, content);
  for (const int64_t step : {1, 2}) {
    writer.start(step, {});
    EXPECT_EQ(writer.wait().digest, model_digest(hf));
  }
  const ModelSource checkpoint = open_model(run);
  EXPECT_EQ(checkpoint.form(), ModelForm::kCheckpoint);
  EXPECT_EQ(checkpoint.path(), run + "/step-00000002");
  EXPECT_EQ(checkpoint.config(), config);
  EXPECT_EQ(model_digest(checkpoint), model_digest(hf));
  EXPECT_EQ(*checkpoint.tokenizer().file("tokenizer_config.json"), kTokenizerConfig);
  // A damaged newest one is passed over, with the reason kept.
  std::filesystem::resize_file(run + "/step-00000002/model.safetensors", 99);
  const ModelSource older = open_model(run);
  EXPECT_EQ(older.path(), run + "/step-00000001");
  ASSERT_EQ(older.skipped().size(), 1u);
  std::filesystem::resize_file(run + "/step-00000001/model.safetensors", 99);
  expect_error([&] { open_model(run); }, ErrorCode::kCorruptData, {"none of its 2 checkpoints"});
}

TEST(ModelSource, MastersSplitLosslessly) {
  TemporaryDirectory directory;
  const ModelConfig config = tiny_config("LlamaForCausalLM");
  write_folder(config, directory.file("hf"));
  std::mt19937 random(1);
  std::vector<float> values(64);
  for (float& value : values) value = static_cast<float>(random()) / 4e9f - 0.5f;
  // The norm gets values that need all 24 bits.
  const ModelSource hf = open_model(directory.file("hf"));
  write_hf_folder(hf, directory.file("f32"), {.dtype = DType::kF32});
  std::string f32_file = read_text(directory.file("f32/model.safetensors"));
  const SafetensorsHeader header = read_safetensors_header(MemorySource("m", as_byte_span(f32_file)));
  std::memcpy(f32_file.data() + header.find("model.norm.weight")->begin, values.data(), 256);
  write_text(directory.file("f32/model.safetensors"), f32_file);
  const ParameterSpec spec{.name = "norm", .shape = {64}, .segments = {{"model.norm.weight", {64}, false, 0, 0, 64}}};
  std::vector<uint16_t> high(64);
  std::vector<int16_t> low(64);
  const PhysicalTensor weight{&spec, reinterpret_cast<std::byte*>(high.data()), DType::kBF16}, rest{&spec, reinterpret_cast<std::byte*>(low.data()), DType::kI16};
  load_model(open_model(directory.file("f32")), {&weight, 1}, {&rest, 1});
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(join_master(high[i], low[i]), values[i]);
}

TEST(ModelSource, GgufOfTheReferencePackage) {
  const ModelSource gguf = open_model(golden_path("tiny_llama.gguf"));
  EXPECT_EQ(gguf.config().norm_eps, 1e-5);
  EXPECT_EQ(gguf.config().head_dim, 16);
  EXPECT_TRUE(gguf.config().tie_embeddings);
  EXPECT_EQ(gguf.tokenizer().vocabulary->eos_id, 3);
  EXPECT_EQ(gguf.tokenizer().vocabulary->merges.size(), 1u);
  const FileSource file(golden_path("tiny_llama.safetensors"));
  const SafetensorsHeader header = read_safetensors_header(file);
  for (size_t i = 0; i < gguf.tensors().size(); ++i) {
    const SourceTensor& tensor = gguf.tensors()[i];
    const SafetensorsEntry* entry = header.find(tensor.name);
    ASSERT_NE(entry, nullptr) << tensor.name;
    std::vector<float> wanted(entry->bytes / 4), found(wanted.size());
    file.read(entry->begin, std::as_writable_bytes(std::span(wanted)));
    gguf.read_rows(i, 0, tensor.rows(), found.data());
    EXPECT_EQ(wanted, found) << tensor.name;
    // Any rows, alone.
    gguf.read_rows(i, tensor.rows() / 2, 1, found.data());
    for (int64_t c = 0; c < tensor.columns(); ++c) EXPECT_EQ(found[static_cast<size_t>(c)], wanted[static_cast<size_t>(tensor.rows() / 2 * tensor.columns() + c)]);
  }
}

TEST(ModelSource, AGgufFileThatShrankIsAnErrorNotASignal) {
  TemporaryDirectory directory;
  const std::string path = directory.file("m.gguf");
  std::filesystem::copy_file(golden_path("tiny_llama.gguf"), path);
  const ModelSource gguf = open_model(path);
  std::filesystem::resize_file(path, 4096);
  const size_t last = gguf.tensors().size() - 1;
  std::vector<float> row(static_cast<size_t>(gguf.tensors()[last].columns()));
  expect_error([&] { gguf.read_rows(last, gguf.tensors()[last].rows() - 1, 1, row.data()); }, ErrorCode::kCorruptData, {"m.gguf"});
}

TEST(ModelSource, MutatedGgufModelsNeverCrash) {
  TemporaryDirectory directory;
  const std::string path = directory.file("m.gguf");
  const auto open = [&](const uint8_t* data, size_t size) {
    write_text(path, std::string(reinterpret_cast<const char*>(data), size));
    try {
      const ModelSource gguf = open_model(path);
      for (size_t i = 0; i < gguf.tensors().size(); ++i) {
        std::vector<float> row(static_cast<size_t>(gguf.tensors()[i].columns()));
        gguf.read_rows(i, gguf.tensors()[i].rows() - 1, 1, row.data());
      }
    } catch (const Error&) {
    }
  };
  // Mutations of the metadata alone (the tensors' bytes can be anything), whose end is found by its last tensor's name.
  const std::string golden = read_text(golden_path("tiny_llama.gguf"));
  const size_t header = golden.rfind("output_norm.weight") + 64;
  std::mt19937_64 random(5);
  for (int run = 0; run < 1500; ++run) {
    std::vector<uint8_t> data(golden.begin(), golden.begin() + static_cast<ptrdiff_t>(header));
    for (uint64_t count = 1 + random() % 3; count > 0; --count) mutate_bytes(data, {}, random);
    data.insert(data.end(), golden.begin() + static_cast<ptrdiff_t>(std::min(header, golden.size())), golden.end());
    open(data.data(), data.size());
  }
}

TEST(ModelSource, MutatedTokenizersNeverCrash) {
  const ModelConfig config = tiny_config("LlamaForCausalLM");
  const auto read = [&](const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    for (const bool settings : {false, true}) {
      try {
        (void)vocabulary_from_tokenizer_json(settings ? std::string_view(kTokenizerJson) : text, settings ? text : std::string_view(), config);
      } catch (const Error&) {
      }
    }
  };
  run_mutations(read, {kTokenizerJson, kTokenizerConfig}, 3000, 6);
}

TEST(ModelSource, VocabularyHolesAreUnused) {
  const GgufVocabulary vocabulary = vocabulary_from_tokenizer_json(kTokenizerJson, kTokenizerConfig, tiny_config("LlamaForCausalLM"));
  EXPECT_EQ(vocabulary.pre, "gpt-2");
  EXPECT_EQ(vocabulary.tokens[10], "[PAD10]");
  EXPECT_EQ(vocabulary.token_types, (std::vector<int32_t>{1, 1, 1, 1, 3, 4, 5, 5, 5, 5, 5}));
  EXPECT_EQ(vocabulary.eos_id, 4);
  expect_error([] { vocabulary_from_tokenizer_json(R"({"model":{"type":"Unigram","vocab":[]}})", "", tiny_config("LlamaForCausalLM")); }, ErrorCode::kUnsupported, {"Unigram"});
  expect_error([] { vocabulary_from_tokenizer_json(R"({"model":{"type":"BPE","vocab":{"a":99}},"pre_tokenizer":{"type":"ByteLevel"}})", "", tiny_config("LlamaForCausalLM")); },
               ErrorCode::kCorruptData, {"99", "vocabulary of 11"});
}

TEST(ModelSource, BaseModelNamesWithoutPrefix) {
  TemporaryDirectory directory;
  const ModelConfig config = tiny_config("GPT2LMHeadModel");
  write_folder(config, directory.file("hf"));
  const std::string digest = model_digest(open_model(directory.file("hf")));
  std::string text = read_text(directory.file("hf/model.safetensors"));
  uint64_t length = 0;
  std::memcpy(&length, text.data(), 8);
  std::string header = text.substr(8, length);
  for (size_t at; (at = header.find("\"transformer.")) != std::string::npos;) header.replace(at, 13, "\"");
  const uint64_t shorter = header.size();
  write_text(directory.file("hf/model.safetensors"), std::string(reinterpret_cast<const char*>(&shorter), 8) + header + text.substr(8 + length));
  EXPECT_EQ(model_digest(open_model(directory.file("hf"))), digest);
}

TEST(ModelSource, WrongPlacesAreNamed) {
  TemporaryDirectory directory;
  expect_error([&] { open_model(directory.file("nowhere")); }, ErrorCode::kCorruptData, {"nowhere"});
  expect_error([&] { open_model(directory.path()); }, ErrorCode::kCorruptData, {"holds no model"});
  write_folder(tiny_config("LlamaForCausalLM"), directory.file("hf"));
  expect_error([&] { open_model(directory.file("hf/config.json")); }, ErrorCode::kCorruptData, {"not a GGUF file"});
  const ModelSource hf = open_model(directory.file("hf"));
  expect_error([&] { write_hf_folder(hf, directory.file("hf")); }, ErrorCode::kInvalidArgument, {"not an empty directory"});
  expect_error([&] { write_gguf(hf, directory.file("hf/config.json"), BlockType::kF32); }, ErrorCode::kInvalidArgument, {"it exists"});
  ModelConfig windows = tiny_config("Qwen2ForCausalLM");
  windows.sliding_window = 4;
  windows.sliding_layers = {0, 1};
  expect_error([&] { gguf_architecture(windows); }, ErrorCode::kUnsupported, {"sliding window"});
  expect_error([&] { write_gguf(hf, directory.file("x.gguf"), BlockType::kQ4_0); }, ErrorCode::kUnsupported, {"Q4_0"});
  EXPECT_FALSE(path_exists(directory.file("x.gguf")) || path_exists(directory.file("x.gguf.partial")));
  std::string config = read_text(directory.file("hf/config.json"));
  config.replace(config.find("\"num_hidden_layers\": 2"), 22, "\"num_hidden_layers\": 3");
  write_text(directory.file("hf/config.json"), config);
  expect_error([&] { open_model(directory.file("hf")); }, ErrorCode::kCorruptData, {"model.layers.2", "missing"});
  std::filesystem::remove(directory.file("hf/model.safetensors"));
  write_text(directory.file("hf/model.safetensors.index.json"), R"({"weight_map":{"a":"../../etc/passwd"}})");
  expect_error([&] { open_model(directory.file("hf")); }, ErrorCode::kCorruptData, {"not the name of a file"});
}

}  // namespace
}  // namespace orrery
