#!/usr/bin/env python3
"""Makes torch/*: tiny models as Hugging Face folders, each with golden.safetensors: what PyTorch computes in float64 from the same weights,
and how far PyTorch in float32 and bfloat16 is from that (scripts/torch_reference.py). Read by tests/equivalence/torch_golden_test.cpp.

Needs: pip install torch transformers safetensors gguf (made with torch 2.15, transformers 5.23).   Usage: make_torch_goldens.py [DIRECTORY]
"""
import pathlib
import sys

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[1] / "scripts"))
import torch  # noqa: E402
import transformers as tf  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch_reference import make_batches, write_case  # noqa: E402

out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "torch"
torch.set_num_threads(1)

VOCAB, LENGTH, STEPS = 97, 32, 50
# Numbers that f32 holds, so that both sides train with the same ones.
OPTIMIZER = dict(lr=2.0**-8, warmup_steps=5, min_lr_ratio=0.125, beta1=0.875, beta2=0.96875, eps=2.0**-27, weight_decay=0.125, clip=1.0)

llama = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True)
gpt2 = tf.GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_inner=96, n_positions=LENGTH, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                     bos_token_id=0, eos_token_id=0)
qwen3 = tf.Qwen3Config(**{**llama, "head_dim": 24, "intermediate_size": 48, "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 1e6})
qwen2 = tf.Qwen2Config(**{**llama, "num_hidden_layers": 1, "rms_norm_eps": 1e-6})
# A short original context, so that all three ranges of wave lengths occur within head_dim 16.
llama3 = tf.LlamaConfig(**{**llama, "rope_theta": 5e5}, rope_scaling=dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16))
mistral = tf.MistralConfig(**llama, sliding_window=7)


def everything(name, gradient):
    return True


def vectors(name, gradient):
    return gradient.dim() == 1


for name, config, seed, kept, steps, weights_from in [
        ("gpt2", gpt2, 1, everything, STEPS, None),
        ("llama", tf.LlamaConfig(**llama), 2, everything, STEPS, None),
        ("qwen3", qwen3, 3, everything, STEPS, None),
        ("qwen2", qwen2, 4, vectors, 0, None),
        ("llama3", llama3, 2, vectors, 0, "llama"),
        ("mistral", mistral, 2, vectors, 0, "llama")]:
    batches = make_batches(100 + seed, VOCAB, 4 if steps else 1, 2, LENGTH)
    golden = write_case(out / name, config, seed, batches, kept, OPTIMIZER if steps else None, steps, weights_from)
    print(name, "loss", golden["loss"].tolist(), "logits", golden["logits.errors"].tolist())
    if steps:
        print("  loss curve", golden["losses"][0, ::7].tolist(), "f32 error", golden["losses"][1, ::7].tolist())


# Gemma 3, which is read from GGUF: its norm weights there are the factors themselves, Hugging Face's files hold them less 1. hidden_size 64,
# because PyTorch rounds the embedding's factor to the type of the weights, and 8 is exact in all. The sixth layer has no window.
import gguf  # noqa: E402

LAYERS, H, D, FF = 7, 64, 16, 96
gemma = tf.Gemma3TextConfig(vocab_size=VOCAB, hidden_size=H, intermediate_size=FF, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=1,
                            head_dim=D, query_pre_attn_scalar=D, max_position_embeddings=64, rms_norm_eps=1e-6, sliding_window=7, tie_word_embeddings=True,
                            hidden_activation="gelu_pytorch_tanh")
write_case(out / "gemma3", gemma, 6, make_batches(106, VOCAB, 1, 2, LENGTH), lambda name, gradient: False)
weights = load_file(out / "gemma3" / "model.safetensors")
(out / "gemma3" / "model.safetensors").unlink()
(out / "gemma3" / "config.json").unlink()
writer = gguf.GGUFWriter(str(out / "gemma3" / "model.gguf"), "gemma3")
writer.add_block_count(LAYERS)
writer.add_context_length(64)
writer.add_embedding_length(H)
writer.add_feed_forward_length(FF)
writer.add_head_count(4)
writer.add_head_count_kv(1)
writer.add_key_length(D)
writer.add_value_length(D)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_rope_freq_base(1e6)
writer.add_sliding_window(7)
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, LAYERS)
for name, w in sorted(weights.items()):
    w = w.float().numpy()
    target = names.get_name(name, try_suffixes=(".weight",))
    if w.ndim == 1:
        writer.add_tensor(target, w + 1)
    else:
        writer.add_tensor(target, gguf.quants.quantize(w, gguf.GGMLQuantizationType.BF16), raw_dtype=gguf.GGMLQuantizationType.BF16)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
