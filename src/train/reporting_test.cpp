// Proves the text of a step for terminals, pipes and programs (snapshots; never wider than the terminal), the bytes of a
// TensorBoard event file (against records written by the tensorboard package), the loss plots, and that metrics.jsonl survives
// a kill.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "train/loss_plot.h"
#include "train/progress.h"
#include "train/step_report.h"
#include "train/tensorboard.h"

namespace orrery {
namespace {

StepReport example() {
  StepReport report;
  report.step = 40;
  report.num_steps = 240;
  report.loss = 6.3121;
  report.gradient_norm = 1.934;
  report.lr = 3e-4;
  report.tokens = 163840;
  report.tokens_per_second = 5312;
  report.flops_per_second = 0.61e12;
  report.peak_flops_per_second = 1.07e12;
  report.memory_bytes = int64_t{410} << 20;
  report.planned_bytes = int64_t{420} << 20;
  report.elapsed_seconds = 31;
  report.eta_seconds = 155;
  return report;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

struct ScratchFolder {
  std::string path = std::filesystem::temp_directory_path() / fmt::format("orrery_reporting_{}", ::getpid());
  ScratchFolder() { std::filesystem::remove_all(path); }
  ~ScratchFolder() { std::filesystem::remove_all(path); }
};

TEST(StepLine, Snapshot) {
  EXPECT_EQ(step_line(example(), {}),
            "step  40/240  loss 6.312  gnorm 1.93  lr 3.0e-4  5.31k tok/s  610 GFLOP/s  57% of peak  mem 0.40 of 0.41 GiB  eta "
            "2m35s");
}

TEST(StepLine, LeavesOutWhatIsNotKnown) {
  StepReport report;
  report.step = 1;
  report.num_steps = 5;
  EXPECT_EQ(step_line(report, {}), "step 1/5  loss nan  gnorm nan  lr 0.0e+0");
  StepReport faster = example();
  faster.peak_flops_per_second = 0.3e12;  // of a probe beside other work
  EXPECT_EQ(step_line(faster, {}).find("of peak"), std::string::npos);
}

TEST(StepLine, NeverWiderThanTheTerminal) {
  StepReport report = example();
  report.validation_loss = 5.5;
  report.skipped_steps = 3;
  for (int width = 1; width < 200; ++width) {
    EXPECT_LE(step_line(report, {.width = width}).size(), static_cast<size_t>(width));
    std::string plain;
    bool escape = false;
    for (const char c : step_line(report, {.width = width, .color = true})) {
      if (c == '\x1b') escape = true;
      if (!escape) plain += c;
      if (c == 'm' && escape) escape = false;
    }
    EXPECT_EQ(plain, step_line(report, {.width = width}));
  }
  EXPECT_EQ(step_line(example(), {.width = 40}), "step  40/240  loss 6.312  eta 2m35s");
}

TEST(StepJson, ParsesAndHasNullForTheUnknown) {
  StepReport report = example();
  report.loss = std::nan("");
  report.eta_seconds = -1;
  const auto json = nlohmann::json::parse(step_json(report));
  EXPECT_EQ(json["step"], 40);
  EXPECT_TRUE(json["loss"].is_null());
  EXPECT_TRUE(json["eta_seconds"].is_null());
  EXPECT_NEAR(json["peak_share"].get<double>(), 0.57, 0.001);
  EXPECT_FALSE(json.contains("validation_loss"));
}

TEST(TensorBoard, RecordsHaveTheBytesOfThePackage) {
  // From tests/golden/make_tensorboard.py.
  std::string hex;
  const std::string bytes =
      tensorboard_version_record(1.5) +
      tensorboard_scalar_record(2.5, 300, std::vector<TensorBoardScalar>{{"train/loss", 1.25}, {"train/lr", 0.0}});
  for (const char c : bytes) hex += fmt::format("{:02x}", static_cast<unsigned char>(c));
  EXPECT_EQ(hex,
            "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c32000000000000002419"
            "56ec09000000000000044010ac022a240a110a0a747261696e2f6c6f7373150000a03f0a0f0a08747261696e2f6c721500000000c2032a20");
}

TEST(TensorBoard, TwoWritersOfOneSecondDoNotShareAFile) {
  const ScratchFolder folder;
  const std::vector<TensorBoardScalar> scalars = {{"a", 1.0}};
  TensorBoardWriter first(folder.path), second(folder.path);
  first.add(1, scalars);
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path))
    count += entry.path().filename().string().starts_with("events.out.tfevents.");
  EXPECT_EQ(count, 2);
}

LossCurve example_curve(int num_steps) {
  LossCurve curve;
  for (int step = 1; step <= num_steps; ++step) {
    curve.train.push_back({step, 2 + 6 * std::exp(-step / 60.0) + 0.15 * std::sin(step * 12.9898)});
    if (step % (num_steps / 6) == 0) curve.validation.push_back({step, 2.2 + 6 * std::exp(-step / 60.0)});
  }
  curve.train[5].loss = std::nan("");
  return curve;
}

TEST(LossPlot, SvgHasBothCurvesAndStaysSmall) {
  const std::string svg = loss_svg(example_curve(100000), {.title = "a <b> & c", .log_axis = true});
  EXPECT_LT(svg.size(), 40000u);
  EXPECT_NE(svg.find("a &lt;b&gt; &amp; c"), std::string::npos);
  EXPECT_NE(svg.find("class=\"validation\" points="), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  // For eyes: ORRERY_PLOT_DIR=/tmp train_test --gtest_filter=LossPlot.*
  if (const char* folder = std::getenv("ORRERY_PLOT_DIR")) {
    std::ofstream(std::string(folder) + "/linear.svg") << loss_svg(example_curve(240), {.title = "llama-11m on jargon"});
    std::ofstream(std::string(folder) + "/log.svg")
        << loss_svg(example_curve(24000), {.title = "a long run", .log_axis = true});
  }
}

TEST(LossPlot, DegenerateCurves) {
  EXPECT_NE(loss_svg({}, {}).find("no finite loss yet"), std::string::npos);
  LossCurve one;
  one.train = {{1, 3.0}};
  EXPECT_NE(loss_svg(one, {.log_axis = true}).find("</svg>"), std::string::npos);
  EXPECT_EQ(loss_terminal_plot(one, {}), "");
  one.train.push_back({2, 3.0});
  EXPECT_NE(loss_terminal_plot(one, {}), "");
  one.train.push_back({3, -1.0});  // no logarithm
  EXPECT_EQ(loss_svg(one, {.log_axis = true}).find("nan"), std::string::npos);
}

TEST(LossPlot, TerminalPlotFitsItsWidth) {
  for (const bool unicode : {false, true}) {
    std::istringstream lines(loss_terminal_plot(example_curve(240), {.width = 40, .height = 6, .unicode = unicode}));
    int count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
      size_t columns = 0;
      for (const char c : line) columns += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
      EXPECT_LE(columns, 40u) << line;
      if (!unicode) {
        EXPECT_EQ(columns, line.size());
      }
    }
    EXPECT_EQ(count, 7);
  }
}

TEST(Progress, MetricsOfAKilledRunAreCutAtTheCheckpoint) {
  const ScratchFolder folder;
  const std::string path = folder.path + "/metrics.jsonl";
  StepReport report = example();
  {
    Progress progress({.folder = folder.path});
    for (report.step = 1; report.step <= 5; ++report.step) {
      report.loss = 10.0 - static_cast<double>(report.step);
      progress.step(report);
    }
  }
  std::ofstream(path, std::ios::app) << "{\"step\":6,\"lo";  // the kill tore this line
  {
    Progress progress({.folder = folder.path, .resume_step = 3});
    EXPECT_EQ(progress.curve().train.size(), 3u);
    report.step = 4;
    report.loss = 1.0;
    progress.step(report);
    progress.finish();
  }
  const LossCurve curve = read_metrics(path, 1000);
  ASSERT_EQ(curve.train.size(), 4u);
  EXPECT_EQ(curve.train[2].loss, 7.0);
  EXPECT_EQ(curve.train[3].loss, 1.0);
  EXPECT_NE(read_file(folder.path + "/loss.svg").find("<svg"), std::string::npos);
}

}  // namespace
}  // namespace orrery
