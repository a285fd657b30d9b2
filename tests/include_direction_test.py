#!/usr/bin/env python3
"""Proves that includes follow the ladder, which is the order of the folders in the top CMakeLists.txt: a folder of src/ may include only
itself and folders listed before it; and that heavy third-party headers stay in .cpp files. Prints every violation with its place."""
import pathlib
import re
import sys

HEAVY = ["nlohmann/json.hpp", "toml++/", "CLI/", "simdjson.h", "pcre2.h", "boost/", "openssl/"]
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')

root = pathlib.Path(sys.argv[1])
LADDER = re.search(r"foreach\(folder (base[^)]*)\)", (root / "CMakeLists.txt").read_text())[1].split()
source = root / "src"
folders = sorted(path.name for path in source.iterdir() if path.is_dir())
errors = [f"src/{name}: not in the ladder" for name in folders if name not in LADDER]
count = 0
for path in sorted(source.rglob("*")):
    if path.suffix not in (".h", ".cpp", ".inl", ".cu"):
        continue
    folder = path.relative_to(source).parts[0]
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        count += 1
        place = f"{path.relative_to(source.parent)}:{number}"
        target = match[2]
        if match[1] == "<":
            if path.suffix == ".h" and any(target.startswith(heavy) for heavy in HEAVY):
                errors.append(f"{place}: {target} belongs into a .cpp file")
            continue
        other = target.split("/")[0]
        if "/" not in target or other not in LADDER:
            errors.append(f'{place}: "{target}" is not written from src/')
        elif LADDER.index(other) > LADDER.index(folder):
            errors.append(f"{place}: {folder} may not include {other}")
assert count > 50, "found no source"
print("\n".join(errors) if errors else f"ok: {count} includes in {len(folders)} folders")
sys.exit(bool(errors))
