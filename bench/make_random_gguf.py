#!/usr/bin/env python3
"""A GGUF file of a Llama shape with random weights in the types of a Q4_K_M file: for speed alone, its text is noise. Tokenizer and other metadata come from
another llama GGUF file, so programs load it. Standard library only.

make_random_gguf.py FROM.gguf TO.gguf [--hidden 2048 --layers 16 --heads 32 --kv-heads 8 --intermediate 8192]     default: 1.07 G numbers
"""
import argparse, os, struct

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of GGUF's fixed types
F32, Q4_K, Q6_K = 0, 12, 14
ALIGN = 32

class Reader:
    def __init__(self, data): self.data, self.at = data, 0
    def take(self, n):
        self.at += n
        return self.data[self.at - n:self.at]
    def number(self, form): return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]
    def text(self): return self.take(self.number("Q"))
    def skip_value(self, kind):
        if kind == 8: self.text()
        elif kind == 9:
            of, count = self.number("I"), self.number("Q")
            if of == 8:
                for _ in range(count): self.text()
            else: self.take(SIZES[of] * count)
        else: self.take(SIZES[kind])

def metadata(path):
    """name -> (type, the value's bytes)"""
    with open(path, "rb") as f: reader = Reader(f.read(64 << 20))
    assert reader.take(4) == b"GGUF" and reader.number("I") in (2, 3), f"{path} is no GGUF file of version 2 or 3"
    reader.number("Q")
    values = {}
    for _ in range(reader.number("Q")):
        name, kind = reader.text().decode(), reader.number("I")
        begin = reader.at
        reader.skip_value(kind)
        values[name] = (kind, reader.data[begin:reader.at])
    return values

def half(x): return struct.pack("<e", x)

def blocks(kind, count):
    """`count` random blocks with a standard deviation of about 0.02."""
    size = {Q4_K: 144, Q6_K: 210}[kind]
    data = bytearray(os.urandom(count * size))
    if kind == Q4_K:  # d, dmin: codes have mean 7.5, so the minimum takes the mean away
        data[0::size], data[1::size] = half(1.2e-4)[0:1] * count, half(1.2e-4)[1:2] * count
        data[2::size], data[3::size] = half(9e-4)[0:1] * count, half(9e-4)[1:2] * count
    else:
        data[208::size], data[209::size] = half(1.5e-5)[0:1] * count, half(1.5e-5)[1:2] * count
    return data

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source"); p.add_argument("to")
    for name, value in dict(hidden=2048, layers=16, heads=32, kv_heads=8, intermediate=8192).items(): p.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    a = p.parse_args()
    values = metadata(a.source)
    number = lambda x: (4, struct.pack("<I", x))
    head = a.hidden // a.heads
    values.update({"llama.embedding_length": number(a.hidden), "llama.block_count": number(a.layers), "llama.attention.head_count": number(a.heads),
                   "llama.attention.head_count_kv": number(a.kv_heads), "llama.feed_forward_length": number(a.intermediate), "llama.rope.dimension_count": number(head),
                   "general.file_type": number(15), "general.name": (8, struct.pack("<Q", 6) + b"random")})
    vocabulary = struct.unpack("<Q", values["tokenizer.ggml.tokens"][1][4:12])[0]
    tensors = [("token_embd.weight", (a.hidden, vocabulary), Q6_K), ("output_norm.weight", (a.hidden,), F32)]
    for i in range(a.layers):
        # llama.cpp's use_more_bits: value and down projections of the first and last eighth, and of every third layer between.
        more = Q6_K if i < a.layers // 8 or i >= 7 * a.layers // 8 or (i - a.layers // 8) % 3 == 2 else Q4_K
        tensors += [(f"blk.{i}.{name}.weight", shape, kind) for name, shape, kind in (
            ("attn_norm", (a.hidden,), F32), ("ffn_norm", (a.hidden,), F32), ("attn_q", (a.hidden, a.hidden), Q4_K), ("attn_k", (a.hidden, a.kv_heads * head), Q4_K),
            ("attn_v", (a.hidden, a.kv_heads * head), more), ("attn_output", (a.hidden, a.hidden), Q4_K), ("ffn_gate", (a.hidden, a.intermediate), Q4_K),
            ("ffn_up", (a.hidden, a.intermediate), Q4_K), ("ffn_down", (a.intermediate, a.hidden), more))]
    head_bytes = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)))
    for name, (kind, data) in values.items(): head_bytes += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + data
    offset, sizes = 0, []
    for name, shape, kind in tensors:
        count = 1
        for n in shape: count *= n
        sizes.append(count * 4 if kind == F32 else count // 256 * {Q4_K: 144, Q6_K: 210}[kind])
        head_bytes += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)
        offset += (sizes[-1] + ALIGN - 1) // ALIGN * ALIGN
    with open(a.to, "wb") as f:
        f.write(head_bytes + bytes(-len(head_bytes) % ALIGN))
        for (name, shape, kind), size in zip(tensors, sizes):
            data = struct.pack("<f", 1.0) * shape[0] if kind == F32 else blocks(kind, size // {Q4_K: 144, Q6_K: 210}[kind])
            f.write(data + bytes(-len(data) % ALIGN))
    print(f"{a.to}: {offset / 1e9:.2f} GB")

main()
