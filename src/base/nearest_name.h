// "Did you mean": the name in a list that a misspelt word most likely stands for.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace orrery {

/// Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`; ASCII case and '-' against '_' cost nothing.
size_t edit_distance(std::string_view a, std::string_view b);

/// The name nearest to `word`; none when every name is further than a third of its length (and two edits) away. Ties go to
/// the first in the list.
std::optional<std::string_view> nearest_name(std::string_view word, std::span<const std::string_view> names);

}  // namespace orrery
