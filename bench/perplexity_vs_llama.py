#!/usr/bin/env python3
"""Perplexity of each quantized type here and by llama.cpp, on the same files and the same text, by hand: rounding must not cost 0.5 %.

    perplexity_vs_llama.py LLAMA_BIN_FOLDER MODEL.gguf TEXT [--types q4_0 q8_0 ...] [--chunks 8] [--build build/release]

MODEL.gguf (F32, F16 or BF16) is quantized by llama-quantize into each type, in a temporary folder; a type of "as_is" takes MODEL as it
stands. Windows of 512 tokens, the second half of each scored, as llama-perplexity counts. Exit code 1 when a type is more than 0.5 % apart.
"""
import argparse, json, os, pathlib, re, subprocess, sys, tempfile

TYPES = ["as_is", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0", "q3_k_m", "q2_k"]

def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0: raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-800:]}")
    return done.stdout + done.stderr

def main():
    p = argparse.ArgumentParser()
    p.add_argument("llama", type=pathlib.Path); p.add_argument("model"); p.add_argument("text")
    p.add_argument("--types", nargs="+", default=TYPES); p.add_argument("--chunks", default="8"); p.add_argument("--build", type=pathlib.Path, default="build/release")
    a = p.parse_args()
    worst = 0.0
    print("| type | here, bf16 | here, f32 | llama.cpp | apart (f32) |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in a.types:
            path = a.model if name == "as_is" else os.path.join(folder, name + ".gguf")
            if name != "as_is": run([a.llama / "llama-quantize", a.model, path, name.upper(), "2"])
            ours = {dtype: json.loads(run([a.build / "bench/decode_bench", path, "--dtype", dtype, "--perplexity", a.text, "--chunks", a.chunks]).splitlines()[0])["perplexity"] for dtype in ("bf16", "f32")}
            text = run([a.llama / "llama-perplexity", "-m", path, "-f", a.text, "-c", "512", "-b", "512", "--chunks", a.chunks, "-t", str(os.cpu_count())])
            theirs = float(re.search(r"Final estimate: PPL = ([\d.]+)", text)[1])
            apart = ours["f32"] / theirs - 1
            worst = max(worst, abs(apart))
            print(f"| {name} | {ours['bf16']:.4f} ({100 * (ours['bf16'] / theirs - 1):+.2f} %) | {ours['f32']:.4f} | {theirs:.4f} | {100 * apart:+.2f} % |", flush=True)
            if name != "as_is": os.unlink(path)
    print(f"worst {100 * worst:.2f} %")
    sys.exit(worst > 0.005)

main()
