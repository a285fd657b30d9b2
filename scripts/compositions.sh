#!/usr/bin/env bash
# Every generated composition of layouts (data parallel x ZeRO x pipeline schedule x micro-batch x recompute x split x shared layers x model)
# against one rank, or the fewest that share layers in the same way, bit for bit: minutes on two cores. The default tests run a twelfth of them.
# ORRERY_COMPOSITION_STEPS: steps of each, 3 where it is not given.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake --preset release >/dev/null
cmake --build --preset release --target train_test
ORRERY_COMPOSITIONS=all build/release/src/train/train_test --gtest_filter='CompositionTest.*'
