#!/usr/bin/env python3
"""Serving speed beside llama.cpp on the same machine and model file, in turns, so that a noisy machine is noisy for both. Medians and ratios.

serve_vs_llama.py kernels DECODE_BENCH LLAMA_BIN MODEL.gguf... [--rounds 3] [--clock wall|cpu]
    prompt of 512, decoding at 1, 8 and 32 sequences: decode_bench, llama-bench and llama-batched-bench
    --clock cpu: both count processor time, with one thread each, for a machine that others use; llama.cpp's clock is replaced at load time (needs cc)
serve_vs_llama.py server ORRERY LLAMA_BIN MODEL.gguf... [--rounds 1] [--clients 1 16 64] [--seconds 20] [--load LOAD.py] [--python PYTHON] [--orrery-options ...]
    both servers with all cores, llama-server with 16 slots of 1,024 tokens; each client sends its next streamed completion (128 words, 64 tokens) when the last
    one ended. Asked by `orrery bench serve`, or by a program LOAD.py (--url --clients --seconds, one JSON line) where given.
LLAMA_BIN is the folder of llama.cpp's programs, built for this processor. Standard library only.
"""
import argparse, json, os, shlex, socket, statistics, subprocess, tempfile, time, urllib.request

# Every clock is the process's processor time.
CPU_CLOCK = """#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t which, struct timespec *t) { (void)which; return syscall(SYS_clock_gettime, CLOCK_PROCESS_CPUTIME_ID, t); }
"""

def cpu_clock_library(folder):
    with open(f"{folder}/clock.c", "w") as f: f.write(CPU_CLOCK)
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", f"{folder}/clock.so", f"{folder}/clock.c"], check=True)
    return f"{folder}/clock.so"

def json_lines(command, preload=None):
    out = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, LD_PRELOAD=preload) if preload else None)
    lines = [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]
    if out.returncode != 0 or not lines: raise SystemExit(f"{' '.join(command)} failed: {out.stderr[-600:]}")
    return lines

KEYS = ["pp512", "batch 1", "batch 8", "batch 32"]

def ours_once(a, model):
    result = json_lines([a.program, model, "--clock", a.clock] + (["--threads", "1"] if a.clock == "cpu" else []))[-1]
    return {key: result[key.replace(" ", "_")] for key in KEYS} | {"apart": result["core_round_trip_ns"]}

def theirs_once(a, model, preload):
    threads, result = "1" if preload else str(os.cpu_count()), {}
    for line in json_lines([f"{a.llama}/llama-bench", "-m", model, "-t", threads, "-p", "512", "-n", "64", "-r", "3", "-o", "jsonl"], preload):
        result["pp512" if line["n_prompt"] else "batch 1"] = line["avg_ts"]
    for line in json_lines([f"{a.llama}/llama-batched-bench", "-m", model, "-t", threads, "-c", "16384", "-b", "2048", "-ub", "512", "-npp", "128", "-ntg", "32", "-npl", "8,32", "--output-format", "jsonl"], preload):
        result[f"batch {line['pl']}"] = line["speed_tg"]
    return result

def kernels(a):
    folder = tempfile.TemporaryDirectory()
    preload = cpu_clock_library(folder.name) if a.clock == "cpu" else None
    print("| model | | " + " | ".join(KEYS) + " |\n|---|---|---|---|---|---|")
    for model in a.models:
        ours, theirs = [], []
        for _ in range(a.rounds):
            ours.append(ours_once(a, model))
            theirs.append(theirs_once(a, model, preload))
        middle = lambda runs: [statistics.median(run[key] for run in runs) for key in KEYS]
        rows = {"Orrery": middle(ours), "llama.cpp": middle(theirs), "ratio": [statistics.median(o[key] / t[key] for o, t in zip(ours, theirs)) for key in KEYS]}
        for name, values in rows.items():
            print(f"| {os.path.basename(model)} | {name} | " + " | ".join(f"{v:.2f}" if name == "ratio" else f"{v:,.0f}" for v in values) + " |", flush=True)
        apart = [ns for run in ours for ns in run["apart"]]
        print(f"load average {os.getloadavg()[0]:.1f}, cores {min(apart):.0f} to {max(apart):.0f} ns apart", flush=True)

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

def server_once(a, command, port, clients):
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if server.poll() is not None: raise SystemExit(f"{' '.join(command)} ended with {server.returncode}")
            try:
                urllib.request.urlopen(url + "/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        if a.load:
            result = json_lines([a.python, a.load, "--url", url, "--clients", str(clients), "--seconds", str(a.seconds)])[-1]
            return {"tokens/s": result["tokens_per_s"], "p50": result["ttft_ms_p50"], "p99": result["ttft_ms_p99"], "itl": result["itl_ms_p50"], "errors": result["errors"]}
        # About as many requests as the slower server answers in the time: three for each client.
        result = json_lines([a.program, "bench", "serve", "--url", url, "--clients", str(clients), "--requests", str(max(8, 3 * clients)), "--json"])[-1]
        first, between = result["time_to_first_token_ms"], result["inter_token_latency_ms"]
        return {"tokens/s": result["tokens_per_second"], "p50": first["p50"], "p99": first["p99"], "itl": between["p50"], "errors": result["requests"] - result["completed"]}
    finally:
        server.terminate()
        server.wait()

def servers(a):
    print("| model | clients | | tokens/s | first token p50 ms | p99 ms | between tokens ms | errors |\n|---|---|---|---|---|---|---|---|")
    for model in a.models:
        for clients in a.clients:
            runs = {"Orrery": [], "llama.cpp": []}
            for _ in range(a.rounds):
                port = str(free_port())
                runs["Orrery"].append(server_once(a, [a.program, "serve", model, "--port", port] + shlex.split(a.orrery_options), port, clients))
                port = str(free_port())
                runs["llama.cpp"].append(server_once(a, [f"{a.llama}/llama-server", "-m", model, "--port", port, "-np", "16", "-t", str(os.cpu_count()), "-c", "16384"], port, clients))
            middle = {who: {key: statistics.median(run[key] for run in each) for key in each[0]} for who, each in runs.items()}
            for who, m in middle.items():
                print(f"| {os.path.basename(model)} | {clients} | {who} | {m['tokens/s']:.0f} | {m['p50']:.0f} | {m['p99']:.0f} | {m['itl']:.1f} | {m['errors']:.0f} |", flush=True)
            ratio = {key: middle["Orrery"][key] / middle["llama.cpp"][key] for key in ("tokens/s", "p50", "p99", "itl")}
            print(f"| | | ratio | {ratio['tokens/s']:.2f} | {ratio['p50']:.2f} | {ratio['p99']:.2f} | {ratio['itl']:.2f} | load {os.getloadavg()[0]:.1f} |", flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["kernels", "server"])
    p.add_argument("program"); p.add_argument("llama"); p.add_argument("models", nargs="+")
    p.add_argument("--rounds", type=int, default=0); p.add_argument("--clock", default="wall", choices=["wall", "cpu"]); p.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    p.add_argument("--seconds", type=int, default=20); p.add_argument("--load"); p.add_argument("--python", default="python3"); p.add_argument("--orrery-options", default="")
    a = p.parse_args()
    a.rounds = a.rounds or (3 if a.what == "kernels" else 1)
    kernels(a) if a.what == "kernels" else servers(a)

main()
