// Checks of numbers on the command line whose messages a person can read: CLI11's own print the largest double.
#pragma once

namespace CLI {
class Validator;
}

namespace orrery {

CLI::Validator above_zero();
CLI::Validator zero_or_more();
CLI::Validator from_zero_to_one();

}  // namespace orrery
