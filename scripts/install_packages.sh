#!/usr/bin/env bash
# Installs the Debian 12 packages that the build and the tests need; does nothing when all are there.
set -euo pipefail
packages=(g++ cmake ninja-build ccache git ca-certificates python3
  libfmt-dev libtomlplusplus-dev libcli11-dev nlohmann-json3-dev libsimdjson-dev libpcre2-dev libutf8proc-dev
  libzstd-dev zlib1g-dev libxxhash-dev libhwloc-dev libgtest-dev
  libopenmpi-dev openmpi-bin libmpich-dev mpich
  libboost1.81-dev libssl-dev)
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
sudo=(); [ "$(id -u)" = 0 ] || sudo=(sudo)
echo "installing: ${missing[*]}" >&2
"${sudo[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
