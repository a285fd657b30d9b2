#!/usr/bin/env python3
"""Makes tiny.safetensors with the `safetensors` package: one tensor of each element type.

Needs: pip install safetensors torch numpy.   Usage: make_format_goldens.py [DIRECTORY]
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
