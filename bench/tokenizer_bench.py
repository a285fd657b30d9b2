#!/usr/bin/env python3
"""The `tokenizers` and `tiktoken` packages beside tokenizer_bench, on the same file and vocabularies, one thread each, in CPU time.

Needs: pip install tokenizers tiktoken openai-whisper (its gpt2.tiktoken). Usage: tokenizer_bench.py BENCH_BINARY TEXT_FILE
"""
import base64, importlib.util, os, subprocess, sys, tempfile, time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

bench, path = sys.argv[1:3]
text = open(path, encoding="utf-8").read()
megabytes = len(text.encode()) / 1e6
lines = text.split("\n")
REPEATS = 5


def best(work):
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def orrery(*arguments):
    print(subprocess.run([bench, *arguments], stdout=subprocess.PIPE, check=True, text=True).stdout, end="", flush=True)


def hugging_face(tokenizer):
    whole = best(lambda: tokenizer.encode_batch_fast([text], add_special_tokens=False))
    by_line = best(lambda: tokenizer.encode_batch_fast(lines, add_special_tokens=False))
    ids = sum(len(e.ids) for e in tokenizer.encode_batch_fast([text], add_special_tokens=False))
    print(f"tokenizers                whole {megabytes / whole:7.1f} MB/s                lines {megabytes / by_line:7.1f} MB/s  {ids} ids")


def printable_bytes():
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    rest = [b for b in range(256) if b not in keep]
    return {b: chr(b) for b in keep} | {b: chr(256 + i) for i, b in enumerate(rest)}


with tempfile.TemporaryDirectory() as folder:
    print(f"# {os.path.basename(path)}, {megabytes:.1f} MB; training 4096 tokens on its first 2 MB", flush=True)
    part = os.path.join(folder, "part.txt")
    sample = text.encode()[:2_000_000].decode("utf-8", "ignore")
    open(part, "w", encoding="utf-8").write(sample)
    trained = os.path.join(folder, "trained")
    orrery("train", part, "4096", trained)
    package = Tokenizer(models.BPE())
    package.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    start = time.process_time()
    package.train_from_iterator([sample], trainers.BpeTrainer(vocab_size=4096, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False,
                                                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    print(f"tokenizers  trained {package.get_vocab_size()} tokens in {time.process_time() - start:.2f} s")
    mine = Tokenizer.from_file(os.path.join(trained, "tokenizer.json"))
    print("same vocabulary:", mine.get_vocab() == package.get_vocab())
    print("# trained 4096, gpt2 pattern", flush=True)
    orrery("speed", trained, path, str(REPEATS))
    hugging_face(mine)

    whisper = os.path.dirname(importlib.util.find_spec("whisper").origin)
    ranks_file = f"{whisper}/assets/gpt2.tiktoken"
    ranks = {base64.b64decode(l.split()[0]): int(l.split()[1]) for l in open(ranks_file, "rb")}
    table = printable_bytes()
    show = lambda token: "".join(table[b] for b in token)
    merges = sorted((rank, ranks[t[:i]], ranks[t[i:]], show(t[:i]), show(t[i:])) for t, rank in ranks.items() for i in range(1, len(t)) if t[:i] in ranks and t[i:] in ranks)
    gpt2 = Tokenizer(models.BPE({show(t): r for t, r in ranks.items()}, [m[3:] for m in merges]))
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    print("# gpt2 50256", flush=True)
    orrery("speed", f"gpt2={ranks_file}", path, str(REPEATS))
    hugging_face(gpt2)
    encoding = tiktoken.Encoding("gpt2", pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", mergeable_ranks=ranks, special_tokens={})
    whole = best(lambda: encoding.encode_ordinary(text))
    by_line = best(lambda: [encoding.encode_ordinary(line) for line in lines])
    print(f"tiktoken                  whole {megabytes / whole:7.1f} MB/s                lines {megabytes / by_line:7.1f} MB/s  {len(encoding.encode_ordinary(text))} ids")
