#!/usr/bin/env python3
"""Guards the cost model's accuracy on the published runs that are in the repository: the bounds of ARCHITECTURE.md for sources that
no fit has seen and for calibrated sources; and that malformed tables are refused with a place."""
import json
import pathlib
import subprocess
import sys
import tempfile

program, root = sys.argv[1], pathlib.Path(sys.argv[2])
table = root / "bench" / "data" / "published_runs.csv"


def run(path):
    return subprocess.run([program, "plan", "validate", str(path), "--json"], capture_output=True, text=True)


result = run(table)
assert result.returncode == 0, result.stderr
report = json.loads(result.stdout)
frozen, calibrated = (report["modes"][name] for name in ("frozen", "calibrated"))
assert frozen["total"]["rows_scored"] >= 0.97 * frozen["total"]["rows"], frozen["total"]
assert frozen["total"]["mape"] <= 10.5 and frozen["total"]["median"] <= 8 and frozen["mean_of_sources"]["mape"] <= 11, frozen["total"]
assert frozen["total"]["regret_mean"] <= 2.5 and frozen["total"]["regret_p95"] <= 12 and frozen["total"]["spearman"] >= 0.93, frozen["total"]
assert calibrated["total"]["mape"] <= 6 and calibrated["total"]["median"] <= 3.5 and calibrated["mean_of_sources"]["mape"] <= 6, calibrated["total"]
assert calibrated["total"]["regret_mean"] <= 2.5 and calibrated["total"]["regret_p95"] <= 10, calibrated["total"]
assert calibrated["total"]["spearman"] >= 0.95, calibrated["total"]
for entry in frozen["classes"] + calibrated["classes"]:
    assert 0.85 <= entry["interval_coverage"] <= 0.95, entry
assert frozen["total"]["memory_mape"] <= 5 and all(s["memory_mape"] <= 8 for s in frozen["sources"]), frozen["sources"]
assert report["out_of_memory"]["rows"] > 0 and report["out_of_memory"]["called_fitting"] == 0, report["out_of_memory"]
assert all(row["reason"] for row in report["not_scored"])
assert [source["mape"] for source in frozen["sources"]] == sorted((s["mape"] for s in frozen["sources"]), reverse=True)
assert run(table).stdout == result.stdout, "two runs differ"

with tempfile.TemporaryDirectory() as folder:
    lines = table.read_text().splitlines()
    short = pathlib.Path(folder) / "short.csv"
    short.write_text(lines[0] + "\n" + lines[1] + "\nfew,fields\n")
    bad = run(short)
    assert bad.returncode == 4 and "short.csv:3" in bad.stderr, (bad.returncode, bad.stderr)
    missing = pathlib.Path(folder) / "missing.csv"
    missing.write_text(lines[0].replace("hidden", "wide", 1) + "\n")
    bad = run(missing)
    assert bad.returncode == 4 and "`hidden`" in bad.stderr, (bad.returncode, bad.stderr)
    assert run(pathlib.Path(folder) / "none.csv").returncode == 2
print("ok")
