// Numbers as people write and read them: 4k, 4Ki, 1.5B, 30m in; 11.0 M, 1.50 GiB, 3m10s out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace orrery {

/// "4k" 4,000; "4Ki" 4,096; M/Mi, G/Gi or B (billion), T/Ti; "1_000", "1.5M". None unless the value is a whole number within 63
/// bits.
std::optional<int64_t> parse_count(std::string_view text);

/// As parse_count with an optional B at the end: "512MiB", "1.5GB", "2Gi", "100". Without the i, powers of 1000.
std::optional<int64_t> parse_bytes(std::string_view text);

/// Seconds: "30m", "1h30m", "2d", "500ms", "1.5h", "90". Finite, not negative.
std::optional<double> parse_duration_seconds(std::string_view text);

/// "11.0 M", "512": three digits and k, M, B, T.
std::string format_count(double value);
/// "1.50 GiB", "512 B": three digits and powers of 1024.
std::string format_bytes(double bytes);
/// "1.23 TFLOP/s" from 1.23e12 and "FLOP/s": three digits and powers of 1000.
std::string format_rate(double value, std::string_view unit);
/// "850ms", "4.2s", "3m10s", "2h05m", "3d04h".
std::string format_duration(double seconds);

}  // namespace orrery
