#!/usr/bin/env python3
"""Makes block_formats.bin: random blocks of every GGUF type that Orrery decodes, and their f32 values by the `gguf` package.

Needs: pip install gguf numpy.   Usage: make_block_goldens.py [OUT]
Record: u32 type, u32 num_blocks, the blocks, their elements as f32; little endian. A last record of type 8 | 0x80000000 is an
encoding: num_blocks, then 32 f32 a block, then the Q8_0 blocks that the package's quantizer makes of them.
"""
import pathlib
import struct
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

TYPES = [T.BF16, T.F16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.MXFP4, T.NVFP4, T.IQ4_NL, T.IQ4_XS]
# Byte offsets of the half-precision scales, which are drawn finite; every other byte is uniform.
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2],
          T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0]}


def main() -> None:
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).with_name("block_formats.bin"))
    random = np.random.default_rng(1)
    data = b""
    for kind in TYPES:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        num_blocks = max(4, 512 // elements)
        blocks = random.integers(0, 256, (num_blocks, size), dtype=np.uint8)
        for offset in HALVES.get(kind, []):
            scale = (random.standard_normal(num_blocks) * 10.0 ** random.integers(-6, 2, num_blocks)).astype(np.float16)
            blocks[:, offset:offset + 2] = scale.reshape(-1, 1).view(np.uint8)
        if kind in (T.BF16, T.F16):
            blocks[:, 1] &= 0xBD  # finite
        if kind == T.MXFP4:
            blocks[0, 0], blocks[1, 0], blocks[2, 0] = 0, 1, 254
            blocks[:, 0] = np.minimum(blocks[:, 0], 250)
        if kind == T.NVFP4:
            blocks[0, :4] = [0, 1, 0x7E, 0x7F]
            blocks[:, :4] &= 0x7F
        values = quants.dequantize(blocks, kind).astype(np.float32)
        assert values.size == num_blocks * elements, kind
        data += struct.pack("<II", int(kind), num_blocks) + blocks.tobytes() + values.tobytes()
    x = (random.standard_normal((16, 32)) * 10.0 ** random.integers(-8, 3, (16, 1))).astype(np.float32)
    x[0] = 0
    data += struct.pack("<II", int(T.Q8_0) | 0x80000000, len(x)) + x.tobytes() + quants.quantize(x, T.Q8_0).tobytes()
    out.write_bytes(data)
    print(f"{out}: {len(data)} bytes")


main()
