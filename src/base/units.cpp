#include "base/units.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>

namespace orrery {
namespace {

/// The number at the front of `text`, underscores between digits allowed; `text` keeps the rest.
std::optional<double> take_number(std::string_view& text) {
  std::string digits;
  size_t length = 0;
  for (; length < text.size(); ++length) {
    const char c = text[length];
    const bool digit = c >= '0' && c <= '9';
    // 1e9 is a number; the e of nothing else is. The digit behind tells them apart.
    const bool exponent = (c == 'e' || c == 'E') && !digits.empty() && length + 1 < text.size() && text[length + 1] >= '0' &&
                          text[length + 1] <= '9';
    if (digit || c == '.' || exponent) {
      digits += c;
    } else if (c != '_' || digits.empty()) {
      break;
    }
  }
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size() || !std::isfinite(value))
    return std::nullopt;
  text.remove_prefix(length);
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  return value;
}

std::optional<int64_t> whole(double value) {
  if (!(value >= 0) || value >= 9223372036854775808.0) return std::nullopt;
  // 0.1 has no exact double, 0.1M = 100,000 has: products within rounding of a whole number count.
  const double rounded = std::nearbyint(value);
  if (std::abs(value - rounded) > 1e-9 * std::max(1.0, value)) return std::nullopt;
  return static_cast<int64_t>(rounded);
}

std::optional<int64_t> parse_plain(std::string_view text) {
  int64_t value = 0;
  std::string digits;
  for (const char c : text) {
    if (c != '_') digits += c;
  }
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (digits.empty() || digits[0] == '-' || error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

/// The factor of a suffix such as "k", "Ki", "M", "".
std::optional<double> scale_of(std::string_view suffix, bool b_is_billion) {
  if (suffix.empty()) return 1.0;
  const bool binary = suffix.size() == 2 && suffix[1] == 'i';
  if (suffix.size() > 1 && !binary) return std::nullopt;
  int power = 0;
  switch (suffix[0]) {
    case 'k':
    case 'K':
      power = 1;
      break;
    case 'M':
      power = 2;
      break;
    case 'G':
      power = 3;
      break;
    case 'B':
      power = b_is_billion && !binary ? 3 : 0;
      break;
    case 'T':
      power = 4;
      break;
    default:
      break;
  }
  if (power == 0) return std::nullopt;
  return std::pow(binary ? 1024.0 : 1000.0, power);
}

std::string three_digits(double value) {
  const double size = std::abs(value);
  return size >= 99.95   ? fmt::format("{:.0f}", value)
         : size >= 9.995 ? fmt::format("{:.1f}", value)
                         : fmt::format("{:.2f}", value);
}

template <size_t N>
std::string scaled(double value, double base, const std::array<std::string_view, N>& prefixes) {
  size_t power = 0;
  // 999.7 would print as 1000: it belongs to the next prefix.
  while (power + 1 < N && std::abs(value) >= base * (power == 0 ? 1.0 : 0.9995)) {
    value /= base;
    ++power;
  }
  const bool plain = power == 0 && value == std::floor(value);
  return fmt::format("{} {}", plain ? fmt::format("{:.0f}", value) : three_digits(value), prefixes[power]);
}

}  // namespace

std::optional<int64_t> parse_count(std::string_view text) {
  if (const auto plain = parse_plain(text)) return plain;
  const auto number = take_number(text);
  const auto scale = scale_of(text, /*b_is_billion=*/true);
  if (!number || !scale) return std::nullopt;
  return whole(*number * *scale);
}

std::optional<int64_t> parse_bytes(std::string_view text) {
  if (const auto plain = parse_plain(text)) return plain;
  const auto number = take_number(text);
  if (!number) return std::nullopt;
  if (text.ends_with('B')) text.remove_suffix(1);
  const auto scale = scale_of(text, /*b_is_billion=*/false);
  if (!scale) return std::nullopt;
  return whole(*number * *scale);
}

std::optional<double> parse_duration_seconds(std::string_view text) {
  if (text.empty()) return std::nullopt;
  double total = 0;
  bool first = true;
  while (!text.empty()) {
    const auto number = take_number(text);
    if (!number) return std::nullopt;
    size_t length = 0;
    while (length < text.size() && text[length] >= 'a' && text[length] <= 'z') ++length;
    const std::string_view unit = text.substr(0, length);
    text.remove_prefix(length);
    if (unit == "ms")
      total += *number * 1e-3;
    else if (unit == "s" || (unit.empty() && first && text.empty()))
      total += *number;
    else if (unit == "m" || unit == "min")
      total += *number * 60;
    else if (unit == "h")
      total += *number * 3600;
    else if (unit == "d")
      total += *number * 86400;
    else
      return std::nullopt;
    first = false;
  }
  return std::isfinite(total) ? std::optional(total) : std::nullopt;
}

std::string format_count(double value) {
  constexpr std::array<std::string_view, 5> kPrefixes = {"", "k", "M", "B", "T"};
  std::string text = scaled(value, 1000, kPrefixes);
  if (text.ends_with(' ')) text.pop_back();
  return text;
}

std::string format_bytes(double bytes) {
  constexpr std::array<std::string_view, 6> kPrefixes = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  return scaled(bytes, 1024, kPrefixes);
}

std::string format_rate(double value, std::string_view unit) {
  constexpr std::array<std::string_view, 6> kPrefixes = {"", "k", "M", "G", "T", "P"};
  return scaled(value, 1000, kPrefixes) + std::string(unit);
}

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "-";
  if (seconds < 0.9995) return fmt::format("{:.0f}ms", seconds * 1e3);
  if (seconds < 59.95) return fmt::format("{:.1f}s", seconds);
  const int64_t whole_seconds = std::llround(std::min(seconds, 9e15));
  if (whole_seconds < 3600) return fmt::format("{}m{:02}s", whole_seconds / 60, whole_seconds % 60);
  const int64_t minutes = (whole_seconds + 30) / 60;
  if (minutes < 24 * 60) return fmt::format("{}h{:02}m", minutes / 60, minutes % 60);
  const int64_t hours = (minutes + 30) / 60;
  return fmt::format("{}d{:02}h", hours / 24, hours % 24);
}

}  // namespace orrery
