#include "tools/number_checks.h"

#include <CLI/CLI.hpp>
#include <string>

namespace orrery {
namespace {

CLI::Validator number_check(const char* wanted, bool (*fits)(double)) {
  const auto check = [wanted, fits](std::string& text) {
    double value = 0;
    return CLI::detail::lexical_cast(text, value) && fits(value) ? std::string() : std::string("wanted ") + wanted + ", found " + text;
  };
  return CLI::Validator(check, wanted);
}

}  // namespace

CLI::Validator above_zero() {
  return number_check("a number above 0", [](double value) { return value > 0; });
}

CLI::Validator zero_or_more() {
  return number_check("0 or more", [](double value) { return value >= 0; });
}

CLI::Validator from_zero_to_one() {
  return number_check("0 to 1", [](double value) { return value >= 0 && value <= 1; });
}

}  // namespace orrery
