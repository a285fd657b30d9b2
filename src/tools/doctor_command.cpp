// `orrery doctor [RUN.toml]`: what is wrong with this machine, for any run or for this one; each finding with its fix.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "comm/mpi_transport.h"
#include "runtime/doctor.h"
#include "tools/commands.h"
#include "train/run_setup.h"

namespace orrery {
namespace {

struct Options {
  std::string run, folder = ".";
  bool json = false;
};

// What the run will take here, without building its data: sizes come from the plan, so the shards and tokenizer have to exist.
DoctorJob job_of(const std::string& path, std::string& folder) {
  const RunConfig config = load_run_config(path);
  const RunSetup setup = prepare_run(config, {.num_ranks = 0}, [](std::string_view line) { fmt::print(stderr, "{}\n", line); });
  folder = setup.folder;
  DoctorJob job;
  for (const Plan& plan : plan_run(setup)) {
    job.arena_bytes += plan.memory.total_bytes;
    const auto bytes = [&](MemoryClass c) { return plan.memory.class_bytes[static_cast<size_t>(c)]; };
    // One more than is kept lies on the disk while it is written.
    job.checkpoint_bytes += (bytes(MemoryClass::kWeights) + bytes(MemoryClass::kMasterLow) + bytes(MemoryClass::kMoments)) * (config.checkpoint.keep + 1);
  }
  return job;
}

int run_doctor(Options options) {
  DoctorJob job;
  if (!options.run.empty()) job = job_of(options.run, options.folder);
  DoctorFacts facts = doctor_facts(options.folder);
  facts.mpi = usable_mpi();
  const std::vector<Finding> findings = diagnose(facts, job);
  if (options.json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Finding& f : findings) list.push_back({{"severity", severity_name(f.severity)}, {"subject", f.subject}, {"found", f.found}, {"fix", f.fix}});
    fmt::print("{}\n", list.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  } else {
    for (const Finding& f : findings) fmt::print("{:<9}{:<18}{}\n{}", severity_name(f.severity), f.subject, f.found, f.fix.empty() ? "" : fmt::format("{:>27}fix: {}\n", "", f.fix));
  }
  return findings.front().severity == Severity::kError ? 3 : 0;
}

}  // namespace

void add_doctor_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("doctor", "what is wrong with this machine for a run, each finding with its fix");
  command->add_option("file", options->run, "a run file: is there room for this run?");
  command->add_option("--dir", options->folder, "where checkpoints will go")->capture_default_str();
  command->add_flag("--json", options->json, "print JSON");
  command->footer("Examples:\n  orrery doctor\n  orrery doctor run.toml\nExit status: 3 when something makes runs impossible, else 0.\n");
  command->callback([options, &exit_code] { exit_code = run_doctor(*options); });
}

}  // namespace orrery
