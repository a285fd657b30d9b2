#!/usr/bin/env python3
"""What offloading costs and saves: one run file trained a few steps with nothing, state, activations, state and weights, and all of it offloaded, in turns.
Prints the arena and the median time of a step of each, beside the run that offloads nothing.

offload_bench.py ORRERY RUN.TOML [--rounds 2] [--steps 8] [--warmup 2] [--dir FOLDER] [-- further arguments of orrery train]
"""
import argparse, json, os, shutil, statistics, subprocess, sys, tempfile

WHAT = {"nothing": [], "state": ["optimizer"], "activations": ["activations"], "state, weights": ["optimizer", "parameters"], "all": ["optimizer", "activations", "parameters"]}

def main():
    p = argparse.ArgumentParser()
    p.add_argument("orrery"); p.add_argument("run")
    p.add_argument("--rounds", type=int, default=2); p.add_argument("--steps", type=int, default=8); p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--dir")
    end = (sys.argv + ["--"]).index("--")
    own, rest = sys.argv[1:end], sys.argv[end + 1:]
    a = p.parse_args(own)
    seconds, arena = {name: [] for name in WHAT}, {}
    with tempfile.TemporaryDirectory(dir=a.dir) as folder:
        for _ in range(a.rounds):
            for name, offload in WHAT.items():
                run = os.path.join(folder, "run")
                settings = [f"checkpoint.dir={run}", f"train.steps={a.warmup + a.steps}", "checkpoint.every_steps=1000000", f"parallel.offload={json.dumps(offload)}"]
                command = [a.orrery, "train", a.run] + [argument for setting in settings for argument in ("--set", setting)] + rest
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode != 0: sys.exit(f"{' '.join(command)} failed: {done.stderr[-600:]}")
                steps = [json.loads(line) for line in open(os.path.join(run, "metrics.jsonl"))][a.warmup:]
                seconds[name] += [(after["elapsed_seconds"] - before["elapsed_seconds"]) for before, after in zip(steps, steps[1:])]
                arena[name] = steps[-1]["planned_bytes"] / 2**20
                # The tokenizer and the shards are made once.
                for entry in os.listdir(run):
                    if entry.startswith("step-") or entry in ("metrics.jsonl", "tb", "trace.json", "loss.svg"):
                        path = os.path.join(run, entry)
                        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    base = statistics.median(seconds["nothing"])
    for name in WHAT:
        median = statistics.median(seconds[name])
        print(f"{name:16} arena {arena[name]:8.1f} MiB   {median:7.3f} s a step   {median / base:5.2f} of the time with nothing offloaded")

main()
