#!/usr/bin/env python3
"""Training speed and memory beside PyTorch on the same machine, model, batch and dtype, in turns, so that a noisy machine is noisy
for both. Prints the median tokens/s of each, the ratio, and peak memory.

train_vs_torch.py TRAIN_BENCH TRAIN_TORCH.py [--python venv/bin/python] [--rounds 3] [--models gpt2-124m llama-135m llama-11m] [--no-compile]
                  [--recompute none|selective|full] [--steps 6] [--warmup 2] [--clock wall|cpu]
--clock cpu: both count processor time, with one thread each; for a machine that others use.
Needs: pip install torch in that python. TRAIN_TORCH.py is the peer program (its options: --model --batch --seq --dtype --threads --compile).
"""
import argparse, json, os, statistics, subprocess

BATCH = {"gpt2-124m": 4, "llama-135m": 4, "llama-11m": 8}

def last_json(command):
    out = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in out.stdout.splitlines() if line.startswith("{")]
    if out.returncode != 0 or not lines: raise SystemExit(f"{' '.join(command)} failed: {out.stderr[-600:]}")
    return json.loads(lines[-1])

def main():
    p = argparse.ArgumentParser()
    p.add_argument("train_bench"); p.add_argument("train_torch")
    p.add_argument("--python", default="python3"); p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--models", nargs="+", default=list(BATCH)); p.add_argument("--no-compile", action="store_true")
    p.add_argument("--recompute", default="none"); p.add_argument("--steps", default="6"); p.add_argument("--warmup", default="2")
    p.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    a = p.parse_args()
    cpu = a.clock == "cpu"
    # The peer times its steps with perf_counter; for processor time that name stands for process_time.
    torch_program = ["-c", "import sys, time, runpy; time.perf_counter = time.process_time; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"] if cpu else []
    common = ["--seq", "512", "--threads", "1" if cpu else "2", "--steps", a.steps, "--warmup", a.warmup]
    print(f"load average before: {os.getloadavg()[0]:.1f}", flush=True)
    for model in a.models:
        batch, ours, theirs = str(BATCH[model]), [], []
        for _ in range(a.rounds):
            ours.append(last_json([a.train_bench, model, "--batch", batch, "--recompute", a.recompute, "--clock", a.clock] + common))
            theirs.append(last_json([a.python] + torch_program + [a.train_torch, "--model", model, "--batch", batch, "--dtype", "bf16"] + common
                                    + ([] if a.no_compile else ["--compile"])))
            print(f"  {model}: orrery {ours[-1]['tokens_per_s']:.0f} tokens/s {ours[-1]['peak_rss_mib']} MiB, torch {theirs[-1]['tokens_per_s']:.0f} tokens/s "
                  f"{theirs[-1]['peak_rss_mib']} MiB (load {os.getloadavg()[0]:.1f})", flush=True)
        speed = [statistics.median(run["tokens_per_s"] for run in runs) for runs in (ours, theirs)]
        memory = [max(run["peak_rss_mib"] for run in runs) for runs in (ours, theirs)]
        print(f"{model}: orrery {speed[0]:.0f} tokens/s, torch {theirs[0]['version']} {speed[1]:.0f}, ratio {speed[0] / speed[1]:.2f}; "
              f"memory {memory[0]} of {memory[1]} MiB, ratio {memory[0] / memory[1]:.2f}", flush=True)

main()
