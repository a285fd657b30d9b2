#!/usr/bin/env python3
"""Orrery beside PyTorch on real shapes, by hand: logits and every gradient of 2 x 128 tokens, in f32 and bf16, against float64.

    compare_torch.py [--shape gpt2-124m|llama-135m|qwen3-narrow ...] [--keep DIRECTORY]

Random weights are made here, PyTorch's results are written as tests/equivalence/golden_case.h reads them, and build/release/tests/
compare_golden prints both distances from float64 for the worst tensors of each kind. Exit code 1 when a tensor lies outside NUMERICS
rule 14. A run takes up to 6 GiB of memory and some minutes on two cores.

Needs: pip install torch transformers safetensors; cmake --build --preset release --target compare_golden
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import transformers as tf

from torch_reference import make_batches, write_case

SHAPES = {
    "gpt2-124m": tf.GPT2Config(n_positions=1024, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    # SmolLM2-135M's.
    "llama-135m": tf.LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                                 num_key_value_heads=3, max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=1e5, tie_word_embeddings=True),
    # Qwen3-0.6B with fewer layers and a smaller vocabulary, and an untied head.
    "qwen3-narrow": tf.Qwen3Config(vocab_size=20011, hidden_size=1024, intermediate_size=3072, num_hidden_layers=6, num_attention_heads=16,
                                   num_key_value_heads=8, head_dim=128, max_position_embeddings=2048, rms_norm_eps=1e-6, rope_theta=1e6,
                                   tie_word_embeddings=False),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--keep", type=pathlib.Path, help="write the models here instead of a temporary directory")
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    program = pathlib.Path(__file__).resolve().parents[1] / "build" / "release" / "tests" / "compare_golden"
    failed = False
    for name in arguments.shape or SHAPES:
        config = SHAPES[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.keep or pathlib.Path(temporary)) / name
            batches = make_batches(7, config.vocab_size, 1, 2, arguments.tokens)
            write_case(folder, config, 1, batches, gradients=lambda *_: True)
            print(f"== {name}: 2 x {arguments.tokens} tokens", flush=True)
            failed |= subprocess.run([program, folder]).returncode != 0
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
