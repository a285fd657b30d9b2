// The model builders: every logical tensor of a configuration appears exactly once, forward blocks infer, and both phases of a
// stage share their parameters.
#include "model/decoder.h"

#include <gtest/gtest.h>

#include <map>

namespace orrery {
namespace {

ModelConfig small(ModelFamily family) {
  ModelConfig config = default_model_config(family);
  config.hidden_size = 64;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = family == ModelFamily::kGpt2 ? 4 : 2;
  config.intermediate_size = 96;
  config.vocab_size = 100;
  config.max_seq_len = 32;
  resolve(config);
  return config;
}

void expect_complete(const ModelConfig& config) {
  Stage stage;
  ForwardOptions options;
  options.max_tokens = 64;
  options.max_segments = 8;
  build_forward(config, options, stage, Phase::kForward);
  const size_t num_parameters_before = stage.parameters.size();
  build_forward(config, options, stage, Phase::kEval);
  EXPECT_EQ(stage.parameters.size(), num_parameters_before);
  EXPECT_EQ(stage.block(Phase::kForward).ops.size(), stage.block(Phase::kEval).ops.size());
  std::map<std::string, int> seen;
  int64_t elements = 0;
  for (const ParameterSpec& spec : stage.parameters) {
    elements += spec.num_elements();
    for (const ParameterSegment& segment : spec.segments) ++seen[segment.tensor];
  }
  const auto tensors = logical_tensors(config);
  EXPECT_EQ(seen.size(), tensors.size());
  for (const LogicalTensor& tensor : tensors) EXPECT_EQ(seen[tensor.name], 1) << tensor.name;
  EXPECT_EQ(elements, num_parameters(config));
}

TEST(Decoder, Gpt2HasEveryTensorOnce) { expect_complete(small(ModelFamily::kGpt2)); }

TEST(Decoder, LlamaVariantsHaveEveryTensorOnce) {
  ModelConfig config = small(ModelFamily::kLlama);
  for (bool tied : {false, true})
    for (bool qk_norm : {false, true})
      for (bool bias : {false, true}) {
        config.tie_embeddings = tied;
        config.qk_norm = qk_norm;
        config.attention_bias = bias;
        expect_complete(config);
      }
}

// Two layers of the kind that five in six are, and one that sees everything: both rope tables are read.
TEST(Decoder, Gemma3HasEveryTensorOnce) {
  ModelConfig config = small(ModelFamily::kGemma3);
  config.num_layers = 3;
  config.sliding_window = 7;
  config.sliding_layers = {true, true, false};
  expect_complete(config);
  Stage stage;
  ForwardOptions options;
  options.max_tokens = 64;
  options.max_segments = 8;
  build_forward(config, options, stage, Phase::kForward);
  ASSERT_EQ(stage.constants.size(), 2u);
  EXPECT_EQ(stage.constants[0].theta, 1e4);  // of layer 0
  EXPECT_EQ(stage.constants[1].theta, 1e6);
}

}  // namespace
}  // namespace orrery
