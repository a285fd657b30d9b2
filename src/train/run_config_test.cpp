// Proves that a run file becomes one typed value and back without loss, that every example in the repository is valid, and that
// whatever is wrong with a file is reported with its place, the nearest name and what is allowed (the texts are snapshots).
#include "train/run_config.h"

#include <gtest/gtest.h>

#include <random>

namespace orrery {
namespace {

constexpr std::string_view kRun = R"([model]
family = "llama"
hidden_size = 384
num_layers = 6
num_heads = 6
num_kv_heads = 2
vocab_size = 4096
max_seq_len = 512

[data]
train = ["corpus/*.txt", {path = "shards/", weight = 2.5}]
val_fraction = 0.05
tokenizer = "train:bpe"

[train]
steps = "1k"
global_batch_size = 8

[optimizer]
lr = 1e-3
)";

std::string message_of(const std::string& text, std::vector<std::string> overrides = {},
                       ErrorCode expected = ErrorCode::kInvalidConfig) {
  try {
    parse_run_config(text, "run.toml", overrides);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), expected) << error.what();
    return error.what();
  }
  return "accepted";
}

std::string with(std::string_view from, std::string_view to) {
  std::string text(kRun);
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos);
  return text.replace(at, from.size(), to);
}

TEST(RunConfig, ReadsTheExampleOfTheDocumentation) {
  const RunConfig config = parse_run_config(kRun, "first.toml");
  EXPECT_EQ(config.model.family, ModelFamily::kLlama);
  EXPECT_EQ(config.model.hidden_size, 384);
  EXPECT_FALSE(config.model.head_dim);
  ASSERT_EQ(config.data.train.size(), 2u);
  EXPECT_EQ(config.data.train[0], (WeightedPath{"corpus/*.txt", 1.0}));
  EXPECT_EQ(config.data.train[1], (WeightedPath{"shards/", 2.5}));
  EXPECT_EQ(config.train.steps, 1000);
  EXPECT_FALSE(config.train.micro_batch_size);
  EXPECT_EQ(config.optimizer.lr, 1e-3);
  EXPECT_EQ(config.optimizer.schedule, LrScheduleName::kCosine);
  EXPECT_EQ(config.checkpoint.dir, "runs/first");
  EXPECT_EQ(config.checkpoint.every_seconds, 1800);
  EXPECT_EQ(config.budget.memory.fraction, 0.8);
  EXPECT_EQ(num_train_steps(config, 512), 1000);
}

TEST(RunConfig, OverridesWinAndTakeBareWords) {
  const std::vector<std::string> overrides = {"train.steps=20",
                                              "train.dtype=f32",
                                              "train.micro_batch_size=2",
                                              "data.train=a.txt",
                                              "checkpoint.every_seconds=1h30m",
                                              "budget.memory=2GiB",
                                              "train.arithmetic=fma1"};
  const RunConfig config = parse_run_config(kRun, "run.toml", overrides);
  EXPECT_EQ(config.train.steps, 20);
  EXPECT_EQ(config.train.dtype, ComputeDType::kF32);
  EXPECT_EQ(config.train.micro_batch_size, 2);
  EXPECT_EQ(config.data.train, (std::vector<WeightedPath>{{"a.txt", 1.0}}));
  EXPECT_EQ(config.checkpoint.every_seconds, 5400);
  EXPECT_EQ(config.budget.memory.bytes, int64_t{2} << 30);
  EXPECT_EQ(config.train.arithmetic, Arithmetic::kFma1);
}

TEST(RunConfig, TheResolvedFileReadsBackEqual) {
  RunConfig config = parse_run_config(
      kRun, "run.toml", std::vector<std::string>{"optimizer.eps=3.0000000000000004e-9", "checkpoint.dir=a \"b\"\\c"});
  EXPECT_EQ(parse_run_config(run_config_to_toml(config), "other.toml"), config);
  config.train.micro_batch_size = 4;
  config.train.arithmetic = Arithmetic::kDp2;
  config.checkpoint.dir = "tab\there, newline\nthere, \x7f";
  EXPECT_EQ(parse_run_config(run_config_to_toml(config), "other.toml"), config);
}

TEST(RunConfig, TokensBecomeSteps) {
  const RunConfig config = parse_run_config(with("steps = \"1k\"", "tokens = \"1M\""), "run.toml");
  EXPECT_EQ(num_train_steps(config, 512), 245);  // ceil(1e6 / (8 * 512))
}

TEST(RunConfig, UnknownKeySnapshot) {
  EXPECT_EQ(
      message_of(with("num_heads = 6", "n_head = 6")),
      "run.toml:5:1: unknown key `model.n_head`\n"
      "  5 | n_head = 6\n"
      "    | ^^^^^^ did you mean `num_heads`? (section [model], integer, at least 1, required without from)  see: "
      "orrery help num_heads\n"
      "    | [model] takes family, from, hidden_size, num_layers, num_heads, num_kv_heads, head_dim, intermediate_size, "
      "vocab_size, "
      "max_seq_len, rope_theta, norm_eps, rope_scaling, rope_scaling_factor, rope_low_freq_factor, rope_high_freq_factor, "
      "rope_original_max_seq_len, tie_embeddings, attention_bias, attention_output_bias, mlp_bias, qk_norm, sliding_window, num_experts, "
      "num_experts_per_tok, moe_intermediate_size, shared_expert_intermediate_size, first_k_dense_replace");
}

TEST(RunConfig, ChoiceTypeAndRangeSnapshots) {
  EXPECT_EQ(message_of(with("[optimizer]", "[optimizer]\nschedule = \"cosin\"")),
            "run.toml:20:12: `optimizer.schedule` has no value \"cosin\"\n"
            "  20 | schedule = \"cosin\"\n"
            "     |            ^^^^^^^ did you mean \"cosine\"? one of constant, cosine, linear, wsd");
  EXPECT_EQ(message_of(with("num_layers = 6", "num_layers = [6]")),
            "run.toml:4:14: `model.num_layers` is a list\n"
            "  4 | num_layers = [6]\n"
            "    |              ^^^ expected integer, at least 1, required without from");
}

struct BadFile {
  const char *from, *to, *expected;
};

TEST(RunConfig, EveryMistakeNamesItsPlaceAndAWayOut) {
  const BadFile kCases[] = {
      {"num_heads = 6", "num_heads = 5", "run.toml:5:13: num_heads = 5 does not divide hidden_size = 384"},
      {"num_kv_heads = 2", "num_kv_heads = 4", "num_kv_heads = 4 does not divide num_heads = 6"},
      {"hidden_size = 384", "hidden_size = 0", "run.toml:3:15: `model.hidden_size` is 0, below 1"},
      {"hidden_size = 384", "hidden_size = \"3x\"", "not a whole number"},
      {"hidden_size = 384", "hidden_size = 3.5", "not a whole number"},
      {"hidden_size = 384", "hidden_size = 9e300", "not a whole number"},
      {"lr = 1e-3", "lr = nan", "not a finite number"},
      {"lr = 1e-3", "", "`optimizer.lr` is missing"},
      {"family = \"llama\"", "", "`model.family` is missing"},
      {"family = \"llama\"", "family = \"llama\"\nfrom = \"x\"", "exclude each other"},
      {"steps = \"1k\"", "steps = 5\ntokens = 7", "exclude each other"},
      {"steps = \"1k\"", "", "length of the run is missing"},
      {"global_batch_size = 8", "", "`train.global_batch_size` is missing"},
      {"global_batch_size = 8", "global_batch_size = 6", "not a multiple of train.lanes = 4"},
      {"global_batch_size = 8", "global_batch_size = 8\nlanes = 3", "not a power of two"},
      {"global_batch_size = 8", "global_batch_size = 8\nmicro_batch_size = 16", "larger than global_batch_size"},
      {"global_batch_size = 8", "global_batch_size = 8\nlr = 0.1", "did you mean `lr`? (section [optimizer]"},
      {"[train]", "[trian]", "did you mean [train]?"},
      {"[model]", "lr = 1\n[model]", "it belongs to the section [optimizer]"},
      {"[optimizer]", "[optimizer]\nlr = 1", "redefine"},
      {"[optimizer]", "[optimizer", "run.toml:19:11:"},
      {"train = [\"corpus/*.txt\", {path = \"shards/\", weight = 2.5}]", "train = []", "names no text"},
      {"weight = 2.5", "weight = 0", "a weight is above 0"},
      {"weight = 2.5", "wieght = 2.5", "has an entry with `wieght`"},
      {"val_fraction = 0.05", "", "accepted"},
      {"val_fraction = 0.05", "validation = \"v.txt\"\nval_fraction = 0.1", "exclude each other"},
      {"tokenizer = \"train:bpe\"", "tokenizer = \"train:bp\"", "did you mean \"train:bpe\"?"},
      {"vocab_size = 4096", "", "needs `model.vocab_size`"},
      {"tokenizer = \"train:bpe\"", "seq_len = 1024", "longer than model.max_seq_len"},
      {"lr = 1e-3", "lr = 1e-3\nwarmup_steps = 2000", "longer than the run"},
      {"[optimizer]", "[parallel]\ntensor_parallel_size = 4294967296\n[optimizer]", "above 16384"},
      {"[optimizer]", "[parallel]\nvirtual_stages = 4294967296\n[optimizer]", "above 16384"},
  };
  for (const BadFile& bad : kCases)
    EXPECT_NE(message_of(with(bad.from, bad.to)).find(bad.expected), std::string::npos) << message_of(with(bad.from, bad.to));
}

TEST(RunConfig, WhatIsNotThereIsUnsupportedUnlessItIsTheDefault) {
  const std::string text(kRun);
  EXPECT_NE(message_of(text + "[parallel]\nexpert_parallel_size = 2", {}, ErrorCode::kUnsupported).find("which this version does not have"), std::string::npos);
  EXPECT_EQ(message_of(text + "[parallel]\ntensor_parallel_size = 1\nschedule = \"1f1b\"\nlayout = \"manual\""), "accepted");
  EXPECT_EQ(message_of(text, {"train.dtype=fp8"}), "accepted");  // devices elsewhere compute in it; prepare_run refuses it here
  EXPECT_EQ(message_of(text, {"budget.hours=3", "budget.energy=0.5", "budget.price_per_hour=1.25"}), "accepted");
  EXPECT_NE(message_of(text, {"budget.hours=0"}).find("below 1e-09"), std::string::npos);
}

TEST(RunConfig, DelayAndOffload) {
  const std::string text = std::string(kRun) + "[parallel]\n";
  EXPECT_EQ(parse_run_config(text + "schedule = \"2bw\"", "run.toml").train.gradient_delay, 1);
  EXPECT_EQ(parse_run_config(text, "run.toml").train.gradient_delay, 0);
  EXPECT_NE(message_of(text + "schedule = \"2bw\"", {"train.gradient_delay=0"}).find("leave one of them out"), std::string::npos);
  EXPECT_EQ(message_of(text + "offload = [\"optimizer\", \"activations\", \"parameters\"]"), "accepted");
  EXPECT_NE(message_of(text + "offload = [\"gradients\"]").find("wanted: optimizer, activations, parameters"), std::string::npos);
}

TEST(RunConfig, OverrideMistakes) {
  EXPECT_EQ(message_of(std::string(kRun), {"model.n_layer=3"}).substr(0, 80),
            "--set: unknown key `model.n_layer`\n   | model.n_layer=3\n   | ^^^^^^^^^^^^^^^ did");
  EXPECT_NE(message_of(std::string(kRun), {"steps=3"}).find("the key has no section"), std::string::npos);
  EXPECT_NE(message_of(std::string(kRun), {"train.steps"}).find("there is no `=`"), std::string::npos);
  EXPECT_NE(message_of(std::string(kRun), {"train.steps=1\nseed=3"}).find("not a whole number"), std::string::npos);
}

TEST(RunConfig, DamagedFilesAreRefusedNotCrashedOn) {
  // Single-byte changes, cuts and repeats from a seed: each gives a value or an Error, nothing else.
  std::mt19937 random(20240607);
  for (int round = 0; round < 4000; ++round) {
    std::string text(kRun);
    for (int edits = 1 + static_cast<int>(random() % 4); edits > 0 && !text.empty(); --edits) {
      const size_t at = random() % text.size();
      const int what = static_cast<int>(random() % 4);
      if (what == 0)
        text[at] = static_cast<char>(random());
      else if (what == 1)
        text.erase(at, 1 + random() % 8);
      else if (what == 2)
        text.insert(at, text.substr(random() % text.size(), random() % 20));
      else
        text.resize(at);
    }
    try {
      const RunConfig config = parse_run_config(text, "run.toml");
      EXPECT_EQ(parse_run_config(run_config_to_toml(config), "run.toml"), config) << text;
    } catch (const Error& error) {
      EXPECT_EQ(exit_status(error.code()), 2) << error.what();
    }
  }
}

}  // namespace
}  // namespace orrery
