#!/usr/bin/env python3
"""Makes tests/golden/tokenizer_*.json: small tokenizers trained on text made here, odd texts, and the ids of the packages.

Needs: pip install tokenizers tiktoken sentencepiece. Usage: make_tokenizer_goldens.py [OUTPUT_FOLDER]
Every file: {"kind", "file" (text) or "file_base64", "cases": [{"text" or "hex", "ids", "special" (allow special tokens and add BOS)}]}
"""
import base64, io, json, os, random, sys, tempfile

import sentencepiece
import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))

WORDS = """the of and to in a is that it was for on are as with his they at be this from have or by one had not but what all were when
we there can an your which their said if do will each about how up out them then she many some so these would other into has more her
two like him see time could no make than first been its who now people my made over did down only way find use may water long little
very after words called just where most know function return import class self value index token model train layer weight gradient
planet orbit brass machine show every where running walked quickly happiest unbelievable internationalization""".split()
OTHER = ["Привет мир как дела сегодня", "你好世界 今天天气很好", "こんにちは世界 今日はいい天気ですね", "안녕하세요 세계 오늘", "שלום עולם", "مرحبا بالعالم كيف حالك",
         "Γειά σου Κόσμε", "हिन्दी भाषा में", "ภาษาไทย สวัสดี", "naïve café résumé Ünïcödé", "def f(x):\n    return x ** 2  # comment",
         "for (int i = 0; i < n; ++i) { sum += a[i]; }", "👍 🎉 👩‍👩‍👧‍👦", "It's we'll they're don't I'd I've", "3.14159 2026 1,000,000", "ﬁ ﬂ ① ½ Ａ ｂ"]


def corpus():
    rng = random.Random(7)
    lines = []
    for _ in range(1500):
        line = " ".join(rng.choices(WORDS, k=rng.randint(3, 14)))
        lines.append(line.capitalize() + rng.choice([".", "!", "?", "", ", and so on."]))
        if rng.random() < 0.4:
            lines.append(rng.choice(OTHER))
    return lines


CURATED = ["", " ", "  ", "a", "\n", "\r\n", "\n\n \n", "\t\tx", "Hello, world!", "  two  spaces  between  ", "trailing   ", "line\r\n\r\nline\n",
           "It's I'LL we'Re don'T 'S 'ſ x'd", "x = [i**2 for i in range(10)]\n    return x != 3.14  # 12345678", "if(a&&b||!c){d->e();}//!!\n/",
           "Привет, мир! Γειά σου", "שלום عالم مرحبا", "你好，世界。こんにちは 안녕하세요", "हिन्दी ภาษาไทย สวัสดี", "👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇩🇪", "é e\u0301 ﬁ ① ½ ² Ａｂ ǅ ª",
           "a" * 300, "ab" * 200, "abc" * 50 + "d", "the" * 60, "x" + " " * 40 + "y", " \n" * 20, "\u3000\u2003\u00a0n\u0085z\u200b", "camelCaseHTTPServer XMLHttp",
           "0123456789 1,234.56 ٣٤٥ Ⅷ", "don’t “quote” — dash…", "\x00\x01\x7f", "<s>Hello</s> <unk> <|end|>x <|end|>", "a<tag>b <tag> c<tag>", "internationalization unbelievable", "▁the ▁▁ x▁y"]


def texts(seed, n=70):
    rng = random.Random(seed)
    alphabet = list("abcetXYZ019 .,'!/-_\n\r\t") + WORDS[:40] + ["'s", "'LL", "é", "я", "中", "ั", "\u0301", "٣", "½", "👍", "\u200d", "\u00a0", "\u3000", "ǅ", "ʰ", "ª", "  ", "▁", "ſ", " the", " and"]
    return CURATED + ["".join(rng.choices(alphabet, k=rng.randint(1, 24))) for _ in range(n)]


BROKEN = [b"\xff", b"abc\xffdef", b"\xe2\x82", b"the \xf0\x9f\x91 x", b"\xc0\xaf", b"\xed\xa0\x80", b"ok \x80\x80 and", b"\xf4\x90\x80\x80"]


def write(name, kind, file, cases):
    entry = {"kind": kind}
    entry["file_base64" if isinstance(file, bytes) else "file"] = base64.b64encode(file).decode() if isinstance(file, bytes) else file
    entry["cases"] = cases
    path = os.path.join(OUT, f"tokenizer_{name}.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(entry, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    print(path, os.path.getsize(path))
    assert os.path.getsize(path) < 300_000


def hf_cases(t, seed):
    cases = [{"text": x, "ids": t.encode(x, add_special_tokens=False).ids} for x in texts(seed) if not any(s in x for s in ("<s>", "</s>", "<unk>", "<|end|>"))]
    cases += [{"text": x, "ids": t.encode(x, add_special_tokens=True).ids, "special": True} for x in texts(seed, 5)]
    for case in cases:
        case["decoded"] = t.decode(case["ids"], skip_special_tokens=False)
    return cases


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
UP, LOW, CON = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+{CON}|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*{CON}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def isolated(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(pre, normalizer=None, ignore_merges=False, vocab_size=700, bos=False):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    last = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    t.pre_tokenizer = pre_tokenizers.Sequence(pre + last) if pre else pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer:
        t.normalizer = normalizer
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, special_tokens=["<s>", "</s>", "<|end|>"],
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_tokens([AddedToken("<tag>", lstrip=True, rstrip=True, normalized=False)])
    if bos:
        t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return t


def main():
    gpt2 = byte_level([])
    write("gpt2", "json", gpt2.to_str(), hf_cases(gpt2, 1))
    variants = {"llama3": ([isolated(LLAMA3)], None, True), "qwen2": ([isolated(QWEN2)], normalizers.NFC(), False), "cl100k": ([isolated(CL100K)], None, True),
                "o200k": ([isolated(O200K)], None, False),
                "smollm": ([pre_tokenizers.Digits(individual_digits=True), isolated(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")], None, False),
                "deepseek": ([isolated(r"\p{N}{1,3}"), isolated("[一-龥぀-ゟ゠-ヿ]+"), isolated(DEEPSEEK)], None, False),
                "odd": ([pre_tokenizers.Punctuation("merged_with_previous"), pre_tokenizers.Split(Regex("[aeiou]+x?"), "merged_with_next"), pre_tokenizers.Digits()],
                        normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace(Regex("tt+"), "T"), normalizers.Strip()]), False)}
    for name, (pre, normalizer, ignore) in variants.items():
        t = byte_level(pre, normalizer, ignore, bos=name in ("llama3", "odd"))
        write(name, "json", t.to_str(), hf_cases(t, hash_of(name)))

    t = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.train_from_iterator([w for line in corpus() for w in line.split()], trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)], show_progress=False, limit_alphabet=60))
    t = Tokenizer.from_str(strip_byte_tokens(t.to_str()))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    write("llama2", "json", t.to_str(), hf_cases(t, 20))

    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    t.decoder = decoders.Metaspace(prepend_scheme="first")
    t.train_from_iterator(corpus(), trainers.UnigramTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False))
    write("unigram", "json", t.to_str(), [{k: v for k, v in c.items() if k != "decoded"} for c in hf_cases(t, 21)])

    for name, options in {"sp_unigram": dict(model_type="unigram", normalization_rule_tsv=small_rules()), "sp_bpe": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False),
                          "sp_bpe_rules": dict(model_type="bpe", normalization_rule_tsv=small_rules()),
                          "sp_user": dict(model_type="unigram", byte_fallback=True, normalization_rule_name="identity", user_defined_symbols=["<tag>", "ing"], add_dummy_prefix=False)}.items():
        sink = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus()), model_writer=sink, vocab_size=700, hard_vocab_limit=False, character_coverage=0.98, minloglevel=2, **options)
        sp = sentencepiece.SentencePieceProcessor(model_proto=sink.getvalue())
        cases = [{"text": x, "ids": sp.encode(x), "decoded": None} for x in texts(hash_of(name))]
        cases += [{"hex": x.hex(), "ids": sp.encode(x)} for x in BROKEN]
        for case in cases:
            case.pop("decoded", None)
        write(name, "sentencepiece", sink.getvalue(), cases)

    enc_file, enc = rank_file(gpt2)
    write("tiktoken", "tiktoken:o200k", enc_file, [{"text": x, "ids": enc.encode_ordinary(x)} for x in texts(30)])
    train_text = "\n".join(corpus())[:60000]
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator([train_text], trainers.BpeTrainer(vocab_size=900, min_frequency=3, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    write("trained", "trained", t.to_str(), [{"text": train_text, "ids": []}])


def small_rules():
    """A normalization of a few dozen rows: the real ones compile to 240 KB."""
    rows = [(f"{0xFF21 + i:X}", f"{0x41 + i:X}") for i in range(26)] + [(f"{0xFF41 + i:X}", f"{0x61 + i:X}") for i in range(26)]
    rows += [("FB01", "66 69"), ("FB02", "66 6C"), ("2460", "31"), ("BD", "31 2044 32"), ("A0", "20"), ("3000", "20"), ("9", "20"), ("A", "20"), ("D", "20"),
             ("65 301", "E9"), ("200B", ""), ("85", "20"), ("2003", "20")]
    path = os.path.join(tempfile.mkdtemp(), "rules.tsv")
    with open(path, "w") as f:
        f.writelines(f"{a}\t{b}\n" for a, b in rows)
    return path


def hash_of(name):
    return sum(ord(c) * (i + 1) for i, c in enumerate(name))


def strip_byte_tokens(text):
    """Byte tokens belong to the vocabulary, and are not added tokens."""
    data = json.loads(text)
    data["added_tokens"] = [x for x in data["added_tokens"] if not x["content"].startswith("<0x")]
    return json.dumps(data, ensure_ascii=False)


def rank_file(t):
    """The gpt2 vocabulary as tiktoken ranks: bytes first, merges in order."""
    data = json.loads(t.to_str())
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, extra = {}, 256
    for b in range(256):
        if b in keep:
            table[chr(b)] = b
        else:
            table[chr(extra)], extra = b, extra + 1
    tokens = [bytes([b]) for b in range(256)]
    for merge in data["model"]["merges"]:
        token = bytes(table[c] for c in "".join(merge))
        if token not in tokens:
            tokens.append(token)
    enc = tiktoken.Encoding("small", pat_str=O200K, mergeable_ranks={t: i for i, t in enumerate(tokens)}, special_tokens={})
    return "".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens)), enc


main()
