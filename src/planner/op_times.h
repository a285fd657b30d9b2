// What single ops and collectives take on one machine, measured by layer_probe.h (src/train) and kept in a file: the planner prices a
// plan from this table (step_time.h). Pure data and look-up; the closed form for machines that are absent is cost_model.h.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "ir/block.h"

namespace orrery {

struct OpMeasurement {
  double seconds = 0;
  double flops = 0, bytes = 0;  // of the measured call: what another size of the same op is scaled by
};

/// Seconds of a collective by the bytes of the whole buffer, ascending in bytes.
using CommCurve = std::vector<std::pair<double, double>>;

/// Where an op runs beside its shapes: "avx512 dp2 1 thread x2 ranks, 512 tokens". Ops of different contexts are not compared.
struct TimingContext {
  std::string device;         // instruction set and arithmetic
  int num_threads = 1;        // of a rank
  int busy_ranks = 1;         // that compute at one time on this machine, as many as its cores allow
  int64_t sequence_tokens = 0;
  std::string fold;           // how a step's sequences are cut: part of the key of ops with gradient outputs
};

class OpTimes {
 public:
  void add(const std::string& key, const OpMeasurement& measurement) { ops_[key] = measurement; }
  void add_comm(const std::string& key, CommCurve curve) { comm_[key] = std::move(curve); }
  bool has(const std::string& key) const { return ops_.contains(key); }
  bool has_comm(const std::string& key) const { return comm_.contains(key); }
  size_t size() const { return ops_.size(); }
  /// Names of probes that were made: what one did not find it would not find again.
  bool was_probed(const std::string& name) const { return probes_.contains(name); }
  void add_probe(const std::string& name) { probes_.insert(name); }

  /// Seconds of the op of `key` with this cost: as measured, or scaled from the measured op of the same kind and context that is
  /// nearest in size, or, of one that memory bounds, from another such op of that context; `exact` says whether it was measured. None when
  /// there is none.
  std::optional<double> seconds(const std::string& key, double flops, double bytes, bool& exact) const;
  /// Seconds of a collective over `bytes`; linear between and beyond measured sizes.
  std::optional<double> comm_seconds(const std::string& key, double bytes) const;

  std::string to_json(const std::string& machine) const;
  /// None when the text is no table of this version, or of another machine (the program's version is part of what `machine` says).
  static std::optional<OpTimes> from_json(const std::string& text, const std::string& machine);
  /// The machine of a table's text; none when it is no table of this version.
  static std::optional<std::string> machine_of(const std::string& text);

 private:
  std::map<std::string, OpMeasurement> ops_;  // "kind@context|shapes"
  std::map<std::string, CommCurve> comm_;
  std::set<std::string> probes_;
};

/// "linear@avx512 dp2 t1 x2 L512|bf16[T<=2048,384] ...": equal for ops that take the same time.
std::string op_key(const Stage& stage, const Op& op, const TimingContext& context);
/// "rs@n2 local": `operation` is rs (f32 gradients to shards), ag (to every rank) or xs (an all-reduce of f64).
std::string comm_key(const std::string& operation, int num_ranks, const std::string& transport);

}  // namespace orrery
