#include "train/progress.h"

#include <langinfo.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <clocale>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "train/tensorboard.h"

namespace orrery {
namespace {

constexpr int kPlotWidth = 72;

/// The locale from the environment, without changing the program's own.
bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    const std::string text = value;
    return text.find("UTF-8") != std::string::npos || text.find("utf8") != std::string::npos ||
           text.find("UTF8") != std::string::npos || text.find("utf-8") != std::string::npos;
  }
  return false;
}

void write_text(std::FILE* stream, const std::string& text) {
  // A reader that went away is no reason to end a run: errors of the screen are ignored.
  std::fwrite(text.data(), 1, text.size(), stream);
  std::fflush(stream);
  std::clearerr(stream);
}

/// The step of a line of metrics.jsonl, and its losses; none for a torn or foreign line.
bool parse_metrics_line(const std::string& line, int64_t& step, double& loss, std::optional<double>& validation) {
  const nlohmann::json value = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object() || !value.contains("step") || !value["step"].is_number_integer()) return false;
  step = value["step"].get<int64_t>();
  const auto number = [&](const char* name) { return value.contains(name) && value[name].is_number(); };
  loss = number("loss") ? value["loss"].get<double>() : std::numeric_limits<double>::quiet_NaN();
  validation = number("validation_loss") ? std::optional(value["validation_loss"].get<double>()) : std::nullopt;
  return true;
}

/// Calls visit(step, loss, validation, end offset) for each whole line, in order, until it says false.
template <typename Visit>
void visit_metrics(const std::string& path, Visit&& visit) {
  std::ifstream file(path, std::ios::binary);
  std::string line;
  int64_t offset = 0;
  while (std::getline(file, line) && !file.eof()) {
    offset += static_cast<int64_t>(line.size()) + 1;
    int64_t step = 0;
    double loss = 0;
    std::optional<double> validation;
    if (!parse_metrics_line(line, step, loss, validation) || !visit(step, loss, validation, offset)) return;
  }
}

}  // namespace

TerminalTraits terminal_traits(std::FILE* stream) {
  TerminalTraits traits;
  traits.unicode = locale_is_utf8();
  const int file = ::fileno(stream);
  traits.is_terminal = file >= 0 && ::isatty(file) == 1;
  if (!traits.is_terminal) return traits;
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  traits.color = (no_color == nullptr || *no_color == '\0') && term != nullptr && std::strcmp(term, "dumb") != 0;
  winsize size{};
  traits.width = ::ioctl(file, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
  return traits;
}

LossCurve read_metrics(const std::string& path, int64_t last_step) {
  LossCurve curve;
  visit_metrics(path, [&](int64_t step, double loss, const std::optional<double>& validation, int64_t) {
    if (step > last_step) return false;
    curve.train.push_back({step, loss});
    if (validation) curve.validation.push_back({step, *validation});
    return true;
  });
  return curve;
}

/// metrics.jsonl, appended to line by line.
class Progress::MetricsFile {
 public:
  MetricsFile(const std::string& path, int64_t resume_step) : path_(path) {
    int64_t keep_bytes = 0;
    visit_metrics(path, [&](int64_t step, double, const std::optional<double>&, int64_t end) {
      if (step > resume_step) return false;
      keep_bytes = end;
      return true;
    });
    // Steps behind the checkpoint are about to be computed again; a torn line goes too.
    if (std::filesystem::exists(path)) std::filesystem::resize_file(path, static_cast<uintmax_t>(keep_bytes));
    file_ = std::fopen(path.c_str(), "ab");
    if (file_ == nullptr) throw_io_error(errno, fmt::format("cannot open {}", path));
  }
  ~MetricsFile() { std::fclose(file_); }

  void add(const std::string& line) {
    if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0) {
      throw_io_error(errno, fmt::format("cannot write {}", path_));
    }
  }

 private:
  std::string path_;
  std::FILE* file_ = nullptr;
};

Progress::Progress(const ProgressOptions& options) : options_(options) {
  if (options.folder.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(options.folder, error);
  if (error) throw_io_error(error.value(), fmt::format("cannot make the run's folder {}", options.folder));
  const std::string path = options.folder + "/metrics.jsonl";
  if (options.resume_step > 0) curve_ = read_metrics(path, options.resume_step);
  or_warn(metrics_, [&] { metrics_ = std::make_unique<MetricsFile>(path, options.resume_step); });
  or_warn(tensorboard_, [&] { tensorboard_ = std::make_unique<TensorBoardWriter>(options.folder + "/tb"); });
}

Progress::~Progress() { erase_live_line(); }

// What was learnt is worth more than its record: a file that cannot be written is given up with a warning.
template <typename File, typename Action>
void Progress::or_warn(std::unique_ptr<File>& file, Action&& action) {
  const auto give_up = [&](const char* reason) {
    file.reset();
    note(fmt::format("warning: {}; training goes on without this file", reason));
  };
  try {
    action();
  } catch (const Error& error) {
    give_up(error.what());
  } catch (const std::filesystem::filesystem_error& error) {
    give_up(error.what());
  }
}

void Progress::erase_live_line() {
  if (live_line_shown_) write_text(stderr, "\r\x1b[K");
  live_line_shown_ = false;
}

void Progress::step(const StepReport& report) {
  curve_.train.push_back({report.step, report.loss});
  if (report.validation_loss) curve_.validation.push_back({report.step, *report.validation_loss});
  const std::string json = step_json(report) + "\n";
  if (metrics_) or_warn(metrics_, [&] { metrics_->add(json); });
  if (tensorboard_) {
    std::vector<TensorBoardScalar> scalars = {{"train/loss", report.loss},
                                              {"train/gradient_norm", report.gradient_norm},
                                              {"train/lr", report.lr},
                                              {"speed/tokens_per_second", report.tokens_per_second},
                                              {"speed/flops_per_second", report.flops_per_second}};
    if (report.validation_loss) scalars.push_back({"validation/loss", *report.validation_loss});
    or_warn(tensorboard_, [&] { tensorboard_->add(report.step, scalars); });
  }
  if (options_.json) return write_text(stdout, json);
  const TerminalTraits terminal = terminal_traits(stderr);
  if (!terminal.is_terminal) return write_text(stderr, step_line(report, {}) + "\n");
  // The last column stays free: some terminals wrap when it is written.
  const std::string line = step_line(report, {.width = std::max(1, terminal.width - 1), .color = terminal.color});
  // A validated step, and the last one, stay on the screen.
  const bool stays = report.validation_loss.has_value() || report.step == report.num_steps;
  write_text(stderr, "\r\x1b[K" + line + (stays ? "\n" : ""));
  live_line_shown_ = !stays;
}

void Progress::note(std::string_view text) {
  erase_live_line();
  write_text(stderr, std::string(text) + "\n");
}

void Progress::finish() {
  if (live_line_shown_) write_text(stderr, "\n");
  live_line_shown_ = false;
  if (!options_.json) {
    const TerminalTraits terminal = terminal_traits(stderr);
    const int width = terminal.width > 0 ? std::min(kPlotWidth, terminal.width - 1) : kPlotWidth;
    write_text(stderr, loss_terminal_plot(curve_, {.width = width, .height = 8, .unicode = terminal.unicode}));
  }
  if (!options_.folder.empty()) {
    const std::filesystem::path folder(options_.folder);
    try {
      write_loss_svg(curve_, options_.folder + "/loss.svg", (folder.has_filename() ? folder : folder.parent_path()).filename().string());
    } catch (const Error& error) {
      note(fmt::format("warning: {}", error.what()));
    }
  }
}

void write_loss_svg(const LossCurve& curve, const std::string& path, std::string_view title) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << loss_svg(curve, {.title = title});
  file.close();
  if (!file) throw_io_error(errno != 0 ? errno : EIO, fmt::format("cannot write {}", path));
}

}  // namespace orrery
