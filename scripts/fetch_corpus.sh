#!/usr/bin/env bash
# usage: fetch_corpus.sh DIR [PACKAGE...]
# Puts the plain text of Debian packages into DIR, one .txt file per text file of each package; the default is jargon-text (1.7 MB
# of prose). Others of use: perl-doc (pod, about 10 MB), doc-rfc-std, manpages. The packages are downloaded and unpacked, not
# installed, because container images leave /usr/share/doc out at installation. Text that is already there is not fetched again.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
directory=$1; shift
packages=("$@"); [ ${#packages[@]} -gt 0 ] || packages=(jargon-text)
mkdir -p "$directory"
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
chmod 755 "$work"  # apt reads it as its own user

fetch() {  # package: its .deb into $work
  (cd "$work" && apt-get download -qq "$1" 2>"$work/apt.log") && return
  # A fresh image has no package lists yet.
  local sudo=(); [ "$(id -u)" = 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update -qq
  (cd "$work" && apt-get download -qq "$1") || { echo "cannot download the package $1: $(cat "$work/apt.log")" >&2; exit 3; }
}

for package in "${packages[@]}"; do
  if compgen -G "$directory/$package-*.txt" >/dev/null; then echo "$package: already in $directory" >&2; continue; fi
  fetch "$package"
  dpkg-deb -x "$work/$package"_*.deb "$work/$package"
  count=0
  while IFS= read -r -d '' file; do
    name=$(basename "${file%.gz}"); name=${name%.*}
    target="$directory/$package-$name.txt"
    if [[ $file = *.gz ]]; then gzip -dc "$file" >"$target.tmp"; else cat "$file" >"$target.tmp"; fi
    mv "$target.tmp" "$target"
    count=$((count + 1))
  done < <(find "$work/$package" -type f \( -name '*.txt' -o -name '*.txt.gz' -o -name '*.pod' -o -name '*.pod.gz' -o -name '*.md' \
             -o -name '*.md.gz' -o -name '*.rst' -o -name '*.rst.gz' \) -print0 | sort -z)
  [ $count -gt 0 ] || { echo "the package $package holds no .txt, .pod, .md or .rst file" >&2; exit 4; }
  echo "$package: $count files, $(cat "$directory/$package"-*.txt | wc -c) bytes in $directory" >&2
done
