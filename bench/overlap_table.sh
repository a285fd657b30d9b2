#!/usr/bin/env bash
# The tables of bench/results/2026-11-29-overlap.md: data-parallel ranks over a link on which communication takes about half as long as compute, then
# pipelines with twice as many micro-batches as ranks, and with as few as ranks, on a faster and on a slower link (overlap_netns.sh). Needs root.
#   bench/overlap_table.sh [BUILD] [ARGUMENTS of overlap_bench...]      BUILD: the build folder, build/release
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(realpath "${1:-build/release}"); shift || true
for run in "2gbit zero3" "1gbit pipeline" "150mbit pipeline" "1gbit few-micro-batches" "150mbit few-micro-batches"; do
  read -r rate family <<<"$run"
  echo "## $family, a link of $rate"
  ORRERY_MPI_PLUGIN_DIR=$build bench/overlap_netns.sh "$rate" "$build/bench/overlap_bench" "$family" "$@"
done
