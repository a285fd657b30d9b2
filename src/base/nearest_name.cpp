#include "base/nearest_name.h"

#include <algorithm>
#include <vector>

namespace orrery {
namespace {

char folded(char c) {
  if (c >= 'A' && c <= 'Z') return static_cast<char>(c - 'A' + 'a');
  return c == '-' ? '_' : c;
}

}  // namespace

size_t edit_distance(std::string_view a, std::string_view b) {
  // Three rows of the table: a swap of neighbours looks two rows back.
  std::vector<size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = folded(a[i - 1]) == folded(b[j - 1]);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (same ? 0 : 1)});
      const bool swapped = i > 1 && j > 1 && folded(a[i - 1]) == folded(b[j - 2]) && folded(a[i - 2]) == folded(b[j - 1]);
      if (swapped) row[j] = std::min(row[j], before_last[j - 2] + 1);
    }
    std::swap(before_last, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

std::optional<std::string_view> nearest_name(std::string_view word, std::span<const std::string_view> names) {
  // A hostile "name" of a megabyte is nobody's typing error.
  if (word.empty() || word.size() > 64) return std::nullopt;
  std::optional<std::string_view> best;
  size_t best_distance = 0;
  for (const std::string_view name : names) {
    const size_t distance = edit_distance(word, name);
    const size_t limit = std::max<size_t>(std::min<size_t>(2, word.size() / 2), name.size() / 3);
    if (distance > limit || (best && distance >= best_distance)) continue;
    best = name;
    best_distance = distance;
  }
  // "gpt2" for "gpt2-124m": a beginning counts when nothing else is near.
  if (!best && word.size() >= 3) {
    for (const std::string_view name : names) {
      if (name.starts_with(word)) return name;
    }
  }
  return best;
}

}  // namespace orrery
