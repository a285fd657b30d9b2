// Which layouts there are: every combination of the parallel degrees, sharding, micro-batch, recompute and schedule that a model, its batch and the
// devices allow, one after the other, in one order. What they take and which are kept is search.cpp's.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "planner/search.h"

namespace orrery {

std::vector<int64_t> divisors(int64_t n, int64_t limit);

/// Who is shown the layouts.
class LayoutVisitor {
 public:
  virtual ~LayoutVisitor() = default;
  /// Degrees and sharding are chosen, and the smallest of what follows from them is filled in. False: nothing of it is worth a look. The candidate comes
  /// back as it was.
  virtual bool wants_batches(Candidate& c) = 0;
  /// A whole layout; the visitor fills in the rest.
  virtual void visit(Candidate& c) = 0;
};

class LayoutSpace {
 public:
  /// Both outlive it; `result` holds the devices of the cluster's groups and their capacities.
  LayoutSpace(const SearchRequest& request, const SearchResult& result) : request_(request), result_(result) {}

  /// Every layout on `counts` devices of each group: every set of groups as one pool, and as pipelines over them in every order.
  void visit_all(const std::vector<int64_t>& counts, LayoutVisitor& visitor);

  /// Whether the model falls into `tp` equal parts: heads, columns of the MLP, and kv heads that are whole or shared by whole ranks.
  bool cuts_matrices(int64_t tp) const;
  /// Whether `cp` context ranks, by the method that is fixed, can share what tensor ranks leave: ulysses gives each of them heads and kv heads of its own.
  bool cuts_heads(int64_t tp, int64_t cp) const;
  /// Whether the batch, and what is fixed, allow `dp` replicas.
  bool takes_replicas(int64_t dp) const;
  /// Calls use(dp) for every (tp, pp, cp) whose ranks divide n devices, until one says true; whether one did.
  bool any_model_degrees(int64_t n, const std::function<bool(int64_t)>& use) const;

 private:
  DevicePart part_of(size_t group, int64_t num_devices, int64_t num_ranks) const;
  std::vector<int64_t> tensor_degrees(int64_t limit) const;
  bool takes_pipeline(int64_t pp) const;
  template <typename Use>
  void for_context_degrees(int64_t tp, Use use) const;
  void visit_pool(const std::vector<size_t>& groups);
  void visit_pipelines(const std::vector<size_t>& groups);
  void visit_degrees(const std::vector<DevicePart>& parts, int64_t tp, int64_t pp, int64_t cp, int64_t dp);
  void visit_sharding(Candidate& c);
  void visit_batches(Candidate& c);
  void visit_micro_batch(Candidate& c, double micro);

  const SearchRequest& request_;
  const SearchResult& result_;
  std::vector<int64_t> counts_;       // of the visit that is under way
  LayoutVisitor* visitor_ = nullptr;  // its
};

}  // namespace orrery
