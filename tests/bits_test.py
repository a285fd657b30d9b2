#!/usr/bin/env python3
"""One run, one digest: `checkpoint hash --state` after 200 steps is the same for 1 and 2 threads, every micro-batch size, every
recompute policy, data-parallel ranks as threads with ZeRO 0 to 3, with state, activations and weights offloaded, and after SIGKILLs at random moments, saves included; and arithmetic ids emulated with f32 FMAs on AVX2 equal the
native kernels. A small Llama-shaped and a small GPT-2-shaped model on text of this repository.

bits_test.py ORRERY SOURCE [--kills N] [--seed S]      prints 'N passed, N failed, N skipped'
"""
import argparse, os, random, shutil, signal, subprocess, sys, tempfile, time

RUN = """
[model]
family = "{family}"
hidden_size = 64
num_layers = 2
num_heads = 4
{kv}
intermediate_size = 128
vocab_size = 512
max_seq_len = 64
[data]
train = ["{corpus}/*.md"]
val_fraction = 0.1
tokenizer = "train:bpe"
[train]
steps = 200
global_batch_size = 8
log_every = 50
{extra}
[optimizer]
lr = 3e-3
warmup_steps = 20
[checkpoint]
every_steps = 20
keep = 2
"""

class Bench:
    def __init__(self, orrery, corpus, folder):
        self.orrery, self.corpus, self.folder, self.count = orrery, corpus, folder, 0
        self.passed = self.failed = self.skipped = 0

    def start(self, family, settings=(), environment=None, extra="", name=None):
        """A training process and the folder it trains in."""
        self.count += 1
        run = os.path.join(self.folder, name or f"run{self.count}")
        toml = os.path.join(self.folder, f"{os.path.basename(run)}.toml")
        with open(toml, "w") as f:
            f.write(RUN.format(family=family, corpus=self.corpus, extra=extra, kv="num_kv_heads = 2" if family == "llama" else ""))
        command = [self.orrery, "train", toml, "--set", f"checkpoint.dir={run}"]
        for setting in settings:
            command += ["--set", setting] if "=" in setting else setting.split()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
        return process, run

    def digest(self, run):
        out = subprocess.run([self.orrery, "checkpoint", "hash", "--state", run], capture_output=True, text=True)
        return out.stdout.strip() if out.returncode == 0 else f"error: {out.stderr.strip()}"

    def train(self, *args, **kwargs):
        process, run = self.start(*args, **kwargs)
        _, log = process.communicate(timeout=600)
        return self.digest(run) if process.returncode == 0 else f"exit {process.returncode}: {log[-400:]}"

    def check(self, name, got, wanted):
        ok = got == wanted
        self.passed, self.failed = self.passed + ok, self.failed + (not ok)
        print(("ok     " if ok else "FAILED ") + name + ("" if ok else f"\n  got    {got}\n  wanted {wanted}"), flush=True)

    def skip(self, name, why):
        self.skipped += 1
        print(f"skipped {name}: {why}", flush=True)

def kill_at_random_moments(bench, family, wanted, num_kills, rng):
    # Delays are spread over a run's length, so that kills hit set-up, steps and saves. A run that ends before its kill is checked
    # and begun again; what was killed before counts.
    begin = time.time()
    bench.train(family, name=f"{family}-length")
    length, kills = time.time() - begin, 0
    for _ in range(6 * num_kills + 6):
        process, run = bench.start(family, name=f"{family}-killed")
        try:
            _, log = process.communicate(timeout=rng.uniform(0.02, length) if kills < num_kills else 600)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        if process.returncode != 0:
            bench.check(f"{family}: resumes after kill {kills}", f"exit {process.returncode}: {log[-400:]}", "exit 0")
            return
        bench.check(f"{family}: digest after {kills} SIGKILLs", bench.digest(run), wanted)
        if kills >= num_kills: return
        shutil.rmtree(run)
        length *= 0.6  # the machine is quicker than it was when the length was taken
    bench.skip(f"{family}: {num_kills - kills} of {num_kills} kills", "the runs ended before them")

def ranks_and_layouts(bench, family):
    """Data-parallel ranks as threads against one rank, and one run killed and continued with 4, 3, 8 and 1 ranks."""
    lanes = ["train.steps=40", "train.lanes=8", "checkpoint.every_steps=5"]
    wanted = bench.train(family, lanes)
    for ranks, zero in ((2, 0), (3, 1), (8, 2), (4, 3), (3, 3)):
        bench.check(f"{family}: {ranks} ranks, ZeRO-{zero}", bench.train(family, lanes + [f"--ranks {ranks}", f"parallel.zero_stage={zero}"]), wanted)
    bench.check(f"{family}: 4 ranks, ZeRO-3 in groups of 2", bench.train(family, lanes + ["--ranks 4", "parallel.zero_stage=3", "parallel.hybrid_shard_size=2"]), wanted)
    for index, (ranks, zero) in enumerate(((4, 3), (3, 2), (8, 1), (1, 0))):
        process, run = bench.start(family, lanes + [f"--ranks {ranks}", f"parallel.zero_stage={zero}"], name=f"{family}-relayout")
        # Killed once it has saved a few steps more than it found; the last layout runs to the end.
        until = 10 * (index + 1)
        while index < 3 and process.poll() is None:
            steps = [int(name[5:]) for name in os.listdir(run) if name.startswith("step-")] if os.path.isdir(run) else []
            if steps and max(steps) >= until: process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        process.communicate(timeout=600)
    bench.check(f"{family}: killed and continued with 4, 3, 8, 1 ranks", bench.digest(run), wanted)

def delayed_and_offloaded(bench, family):
    """Delayed gradients in a 2BW pipeline against one rank, evaluated in between, killed and continued in other layouts; and what is offloaded against what is not,
    killed with it and continued without."""
    common = ["train.steps=40", "train.lanes=8", "checkpoint.every_steps=5", "train.micro_batch_size=1"]
    offload = ["parallel.offload=['optimizer','activations','parameters']"]
    two_bw = ["parallel.schedule=2bw", "parallel.pipeline_parallel_size=2"]
    plain = bench.train(family, common)
    wanted = bench.train(family, common + ["train.gradient_delay=1"])
    bench.check(f"{family}: a delay changes the bits", len(wanted) == 32 and wanted != plain, True)
    bench.check(f"{family}: 2bw, 2 ranks", bench.train(family, common + two_bw + ["--ranks 2"]), wanted)
    bench.check(f"{family}: 2bw, 4 ranks, ZeRO-1, state offloaded", bench.train(family, common + two_bw + ["--ranks 4", "parallel.zero_stage=1", "parallel.offload=['optimizer']"]), wanted)
    bench.check(f"{family}: 2bw, 4 ranks, ZeRO-1, evaluated every 3 steps", bench.train(family, common + two_bw + ["--ranks 4", "parallel.zero_stage=1", "train.eval_every=3"]), wanted)
    bench.check(f"{family}: everything offloaded", bench.train(family, common + offload), plain)
    bench.check(f"{family}: everything offloaded, 2 ranks, ZeRO-3", bench.train(family, common + offload + ["--ranks 2", "parallel.zero_stage=3"]), plain)
    for name, layouts, digest in (("2bw", (two_bw + ["--ranks 4"], two_bw + ["--ranks 2"], ["train.gradient_delay=1"]), wanted), ("offloaded", (offload, []), plain)):
        for index, layout in enumerate(layouts):
            process, run = bench.start(family, common + layout, name=f"{family}-{name}")
            while index + 1 < len(layouts) and process.poll() is None:
                steps = [int(n[5:]) for n in os.listdir(run) if n.startswith("step-")] if os.path.isdir(run) else []
                if steps and max(steps) >= 15 * (index + 1): process.send_signal(signal.SIGKILL)
                time.sleep(0.002)
            process.communicate(timeout=600)
        bench.check(f"{family}: {name}, killed and continued without", bench.digest(run), digest)
    process, run = bench.start(family, common + offload + ["parallel.offload_dir=/nowhere"])
    _, log = process.communicate(timeout=600)
    bench.check(f"{family}: no folder to offload to: exit 3 with one message", (process.returncode, log.count("cannot make a file there")), (3, 1))

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("orrery"); parser.add_argument("source")
    parser.add_argument("--kills", type=int, default=6); parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    rng = random.Random(args.seed)
    flags = open("/proc/cpuinfo").read()
    with tempfile.TemporaryDirectory() as folder:
        corpus = os.path.join(folder, "corpus"); os.mkdir(corpus)
        # Only files that change rarely would keep the digest stable; nothing here depends on its value, only on equality.
        for base in (args.source, os.path.join(args.source, "docs")):
            for name in sorted(os.listdir(base)):
                if name.endswith(".md"): shutil.copy(os.path.join(base, name), corpus)
        bench = Bench(os.path.abspath(args.orrery), corpus, folder)
        for family in ("llama", "gpt2"):
            wanted = bench.train(family, ["--threads 1", "train.micro_batch_size=8", "train.recompute=none"])
            bench.check(f"{family}: trains", len(wanted), 32)
            variants = [["--threads 2"], ["train.micro_batch_size=1"], ["train.micro_batch_size=2", "--threads 2", "train.recompute=selective"],
                        ["train.micro_batch_size=4", "train.recompute=full"], ["train.micro_batch_size=8", "train.recompute=full", "--threads 2"]]
            for variant in variants: bench.check(f"{family}: {' '.join(variant)}", bench.train(family, variant), wanted)
            ranks_and_layouts(bench, family)
            delayed_and_offloaded(bench, family)
            kill_at_random_moments(bench, family, wanted, args.kills, rng)
        for arithmetic, flag in (("amx32", "amx_bf16"), ("dp2", "avx512_bf16")):
            if flag not in flags:
                bench.skip(f"{arithmetic} native against emulated", "this processor lacks the instruction"); continue
            extra = f'arithmetic = "{arithmetic}"'
            short = ["train.steps=40"]
            native = bench.train("llama", short, extra=extra)
            bench.check(f"{arithmetic}: AVX-512 emulation", bench.train("llama", short, {"ORRERY_ISA": "avx512"} if flag == "amx_bf16" else {"ORRERY_ISA": "avx2"}, extra), native)
            bench.check(f"{arithmetic}: AVX2 emulation", bench.train("llama", short, {"ORRERY_ISA": "avx2"}, extra), native)
        print(f"{bench.passed} passed, {bench.failed} failed, {bench.skipped} skipped")
        return 1 if bench.failed else 0

if __name__ == "__main__":
    sys.exit(main())
