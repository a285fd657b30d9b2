#!/usr/bin/env bash
# By hand, before a release: every test under AddressSanitizer and UndefinedBehaviorSanitizer, then the tests with threads under
# ThreadSanitizer. Both take AMX code as it is (tile loads and stores are not instrumented: what they touch is checked by the code
# around them only). allocation_test skips itself: a sanitizer has its own malloc.
#   scripts/sanitize.sh [asan|tsan]      both when neither is named
set -euo pipefail
cd "$(dirname "$0")/.."
which=${1:-both}
jobs=${JOBS:-2}
case "$which" in asan | tsan | both) ;; *) echo "usage: $0 [asan|tsan]" >&2; exit 2 ;; esac

if [ "$which" != tsan ]; then
  cmake --preset asan >/dev/null
  cmake --build --preset asan -j "$jobs"
  ctest --preset asan -j 1 --timeout 3600
fi

if [ "$which" != asan ]; then
  # The thread pool with everything that runs on it (kernels, engine), ranks as threads, the prefetcher, the checkpoint's thread; the server's engine,
  # and the server itself under the conformance checklist.
  cmake --preset tsan >/dev/null
  cmake --build --preset tsan -j "$jobs" --target base_test backend_test comm_test data_test checkpoint_test train_test serve_test orrery
  export TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1"
  ctest --preset tsan -j 1 --timeout 3600 -R '^(base|comm|data|checkpoint|serve|conformance)_test$'
  build/tsan/src/train/train_test --gtest_filter='Engine.*'
  build/tsan/src/backend/backend_test --gtest_filter='*Gemm*:*Attention*'
fi
