#!/usr/bin/env python3
"""Two data-parallel ranks of one thread each, in turns with one rank of two threads and with PyTorch's DDP and FSDP on the same
batch, bf16: llama-11m, 8 sequences of 512 tokens a step, or gpt2-124m, 4. Prints the median tokens/s of each and its ratios, as JSON.

ranks_vs_torch.py ORRERY CORPUS [--torchrun TORCHRUN --peer train_torch.py] [--rounds 3] [--steps 8] [--model llama-11m|gpt2-124m]
CORPUS is a folder of .txt files (scripts/fetch_corpus.sh); without --torchrun only Orrery's own layouts are compared.
"""
import argparse, json, os, re, statistics, subprocess, tempfile

BATCH = {"llama-11m": 8, "gpt2-124m": 4}

def orrery(args, folder, ranks, zero, reduction="reproducible"):
    toml = os.path.join(folder, "run.toml")
    if not os.path.exists(toml):
        text = subprocess.run([args.orrery, "examples", args.model], capture_output=True, text=True, check=True).stdout
        with open(toml, "w") as f: f.write(re.sub(r"^(tokens|steps) = .*$", f"steps = {args.steps}", text, flags=re.M))
    command = [args.orrery, "train", toml, "--json", "--fresh", "--threads", "2", "--ranks", str(ranks)]
    for setting in (f"parallel.zero_stage={zero}", f"parallel.reduction={reduction}", "model.max_seq_len=512", f"train.global_batch_size={BATCH[args.model]}", "train.lanes=4", "train.eval_every=0", "data.tokenizer=train:bpe", "data.train=[\"" + os.path.abspath(args.corpus) + "/*.txt\"]", "optimizer.warmup_steps=1", f"checkpoint.dir={folder}/run"):
        command += ["--set", setting]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rates = [line["tokens_per_second"] for line in map(json.loads, out.splitlines()) if "tokens_per_second" in line]
    return statistics.median(rates[2:])  # the first steps warm up

def torch(args, parallel):
    command = [args.torchrun, "--nproc-per-node", "2", args.peer, "--model", args.model, "--batch", str(BATCH[args.model] // 2), "--seq", "512", "--parallel", parallel, "--threads", "1", "--steps", str(args.steps)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout
    return json.loads(out.splitlines()[-1])["tokens_per_s"]

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("orrery"); parser.add_argument("corpus")
    parser.add_argument("--torchrun"); parser.add_argument("--peer")
    parser.add_argument("--rounds", type=int, default=3); parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--model", choices=BATCH, default="llama-11m")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"one rank, two threads": lambda: orrery(args, folder, 1, 0),
                 "two ranks, ZeRO-0": lambda: orrery(args, folder, 2, 0),
                 "two ranks, ZeRO-0, fast reduction": lambda: orrery(args, folder, 2, 0, "fast"),
                 "two ranks, ZeRO-1": lambda: orrery(args, folder, 2, 1),
                 "two ranks, ZeRO-3": lambda: orrery(args, folder, 2, 3)}
        if args.torchrun: kinds |= {"PyTorch DDP": lambda: torch(args, "ddp"), "PyTorch FSDP": lambda: torch(args, "fsdp")}
        rates = {name: [] for name in kinds}
        for _ in range(args.rounds):
            for name, run in kinds.items(): rates[name].append(run())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(json.dumps({"tokens_per_second": medians, "all": rates, "load": os.getloadavg()[0],
                      "of one rank": {name: round(rate / medians["one rank, two threads"], 3) for name, rate in medians.items()}}, indent=1))

main()
