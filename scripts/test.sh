#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test that needs no accelerator. One command on a fresh Debian 12.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install_packages.sh
cmake --preset release >/dev/null
cmake --build --preset release
ctest --preset release -j 2
