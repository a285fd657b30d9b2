#!/usr/bin/env python3
"""Makes tiny.safetensors (one tensor of each element type), and one tiny model as a GGUF file and as Hugging Face weights.

Needs: pip install safetensors torch numpy gguf.   Usage: make_format_goldens.py [DIRECTORY]
"""
import pathlib
import sys

import torch
from safetensors.torch import save_file

out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
values = torch.arange(6)
types = dict(f32=torch.float32, bf16=torch.bfloat16, f16=torch.float16, f64=torch.float64, i8=torch.int8, u8=torch.uint8, i16=torch.int16,
             i32=torch.int32, i64=torch.int64, bool=torch.bool)
save_file({name: values.to(dtype).reshape(2, 3) for name, dtype in types.items()}, out / "tiny.safetensors", metadata={"format": "pt"})

# tiny_llama.gguf, written by the `gguf` package as llama.cpp's converter does, and the same weights as Hugging Face has them.
import gguf  # noqa: E402
import numpy as np  # noqa: E402

random = np.random.default_rng(5)
H, HEADS, KV, D, FF, V = 32, 4, 2, 16, 64, 48


def permute(w, heads):
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def bf16(shape):  # values that every type of the file holds exactly
    x = random.standard_normal(shape).astype(np.float32)
    return torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy()


hf = {"model.embed_tokens.weight": bf16((V, H)), "model.norm.weight": bf16((H,))}
layer = "model.layers.0."
for name, shape in [("input_layernorm", (H,)), ("post_attention_layernorm", (H,)), ("self_attn.q_proj", (HEADS * D, H)),
                    ("self_attn.k_proj", (KV * D, H)), ("self_attn.v_proj", (KV * D, H)), ("self_attn.o_proj", (H, HEADS * D)),
                    ("mlp.gate_proj", (FF, H)), ("mlp.up_proj", (FF, H)), ("mlp.down_proj", (H, FF))]:
    hf[layer + name + ".weight"] = bf16(shape)
writer = gguf.GGUFWriter(str(out / "tiny_llama.gguf"), "llama")
writer.add_block_count(1)
writer.add_context_length(64)
writer.add_embedding_length(H)
writer.add_feed_forward_length(FF)
writer.add_head_count(HEADS)
writer.add_head_count_kv(KV)
writer.add_key_length(D)
writer.add_value_length(D)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(D)
writer.add_rope_freq_base(10000.0)
writer.add_vocab_size(V)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list([chr(0x100 + i) for i in range(V)])
writer.add_token_types([1] * V)
writer.add_token_merges(["\u0100 \u0101"])
writer.add_eos_token_id(3)
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
for name, w in sorted(hf.items()):
    target = names.get_name(name, try_suffixes=(".weight",))
    if "q_proj" in name:
        w = permute(w, HEADS)
    if "k_proj" in name:
        w = permute(w, KV)
    if w.ndim == 1:
        writer.add_tensor(target, w)
    elif "down_proj" in name:
        q8 = gguf.quants.quantize(w, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(target, q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        hf[name] = gguf.quants.dequantize(q8, gguf.GGMLQuantizationType.Q8_0)
    else:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(target, gguf.quants.quantize(w, kind), raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
save_file({name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in hf.items()}, out / "tiny_llama.safetensors", metadata={"format": "pt"})
