"""What Orrery is compared with: small or real models in PyTorch, three times over. f64 is the oracle, f32 and bf16 are the references of
NUMERICS rule 14, ||x - f64|| <= 2 ||reference - f64||. Used by tests/golden/make_torch_goldens.py and scripts/compare_torch.py.

Needs: pip install torch transformers safetensors
"""
import json
import math
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


NUM_ORDERS = 8


class InDouble(TorchFunctionMode):
    """transformers computes norms, softmax and rope in float32 whatever the model's type, so a float64 model is no float64 oracle. Inside
    this mode every request for float32 asks for float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def swap(x):
            return torch.float64 if x is torch.float32 else x
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(swap, args), **{key: swap(value) for key, value in (kwargs or {}).items()})


class NoFloat32(TorchDispatchMode):
    """Proof that the oracle is one: an operation with a result in less than float64 is an error."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            # A scalar is a Python number on its way into an operation (masks), not a result.
            if isinstance(x, torch.Tensor) and x.dim() > 0 and x.dtype in (torch.float32, torch.bfloat16, torch.float16):
                raise TypeError(f"{function} made {x.dtype} {tuple(x.shape)} inside the float64 oracle")
        return result


def make_weights(config, seed):
    """Every parameter, drawn so that nothing is 0 or 1 by accident, and a bf16 number, so that all types start from the same weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    weights = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            # Rows' products with unit vectors have a variance of about 1: attention and logits far from uniform. Embeddings are unit.
            value = noise * (1.0 if "embed" in name or "wte" in name else 0.3 if "wpe" in name else 1.0 / math.sqrt(config.hidden_size))
            if "wte" in name or (config.tie_word_embeddings and "embed_tokens" in name):
                value = noise * (2.0 / math.sqrt(config.hidden_size))
        else:
            value = 0.1 * noise + (1.0 if "norm" in name or ".ln_" in name and name.endswith("weight") else 0.0)
            if config.model_type.startswith("gemma"):
                # Stored less 1; of steps that 1 + weight does not round away.
                value = (noise * 16).round() / 128
        weights[name] = value.to(torch.bfloat16)
    return weights


def build(config, weights, dtype):
    config = type(config).from_dict(config.to_dict())
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("lm_head") for name in missing), (missing, unexpected)
    model.tie_weights()
    return model.train()  # dropout is 0 in every configuration here


def mean_loss(logits, targets):
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).long(), ignore_index=-1)


def run(config, weights, ids, targets, dtype):
    """Logits, loss and gradients of the mean loss, in `dtype`, as float64."""
    def body():
        model = build(config, weights, dtype)
        logits = model(ids.long(), use_cache=False).logits
        # The loss itself in f32 at least, as training code does.
        loss = mean_loss(logits if dtype == torch.float64 else logits.to(torch.float32), targets)
        loss.backward()
        return logits.detach().double(), loss.item(), {name: p.grad.double() for name, p in model.named_parameters()}
    if dtype != torch.float64:
        return body()
    with InDouble():
        # Building in the mode also makes rope's frequencies in float64; weights arrive as bf16, so the proof starts after it.
        model = build(config, weights, torch.float64)
        with NoFloat32():
            logits = model(ids.long(), use_cache=False).logits
            loss = mean_loss(logits, targets)
            loss.backward()
        return logits.detach(), loss.item(), {name: p.grad for name, p in model.named_parameters()}


def cosine_lr(optimizer, step, num_steps):
    """src/train/lr_schedule.h: linear warm-up, then cosine to min_lr_ratio * lr at the last step."""
    if step < optimizer["warmup_steps"]:
        return optimizer["lr"] * (step + 1) / optimizer["warmup_steps"]
    floor = optimizer["lr"] * optimizer["min_lr_ratio"]
    progress = (step - optimizer["warmup_steps"]) / max(1, num_steps - 1 - optimizer["warmup_steps"])
    return floor + (optimizer["lr"] - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def decays(name, parameter):
    return parameter.dim() > 1 and not any(part in name for part in ("embed", "wte", "wpe"))


def train(config, weights, batches, dtype, optimizer, num_steps):
    """Losses of `num_steps` AdamW steps with PyTorch's own clipping and update, over the batches in turn."""
    def body():
        model = build(config, weights, dtype)
        groups = [{"params": [p for name, p in model.named_parameters() if decays(name, p) == decay],
                   "weight_decay": optimizer["weight_decay"] if decay else 0.0} for decay in (True, False)]
        adamw = torch.optim.AdamW(groups, lr=optimizer["lr"], betas=(optimizer["beta1"], optimizer["beta2"]), eps=optimizer["eps"])
        losses = []
        for step in range(num_steps):
            ids, targets = batches[step % len(batches)]
            for group in adamw.param_groups:
                group["lr"] = cosine_lr(optimizer, step, num_steps)
            loss = mean_loss(model(ids.long(), use_cache=False).logits, targets)
            adamw.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer["clip"])
            adamw.step()
            losses.append(loss.item())
        return losses
    if dtype != torch.float64:
        return body()
    with InDouble():
        return body()


def reordered(weights, batches, vocab_size, seed):
    """The same model and data with the tokens renamed, the MLP's units permuted and the sequences of each batch in another order: equal
    losses but for rounding, because every long sum runs in another order."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randperm(vocab_size, generator=generator)  # new id of each old one
    units = {}
    renamed = dict(weights)
    for name, w in weights.items():
        layer = name.split(".mlp.")[0]
        if ".mlp." in name and layer not in units:
            width = max(w.shape[0], w.shape[-1]) if "c_fc" in name else w.shape[0]
            units[layer] = torch.randperm(width, generator=generator)
        if any(part in name for part in ("embed_tokens", "lm_head", "wte")):
            renamed[name] = w[torch.argsort(tokens)]
        elif any(part in name for part in ("gate_proj", "up_proj", "mlp.c_proj.weight")):
            renamed[name] = w[units[layer]]
        elif "down_proj" in name or ".c_fc." in name:
            renamed[name] = w[..., units[layer]]
    moved = []
    for ids, targets in batches:
        order = torch.randperm(ids.shape[0], generator=generator)
        moved.append((tokens[ids.long()][order], torch.where(targets >= 0, tokens[targets.clamp(min=0).long()], targets.long())[order]))
    return renamed, moved


def errors(exact, x32, xbf16):
    """What a golden file says about one tensor: {||f32(exact) - exact||, ||f32 - exact||, ||bf16 - exact||}."""
    return torch.tensor([(exact.float().double() - exact).norm(), (x32 - exact).norm(), (xbf16 - exact).norm()], dtype=torch.float64)


def write_case(folder, config, seed, batches, gradients, optimizer=None, num_steps=0, weights_from=None):
    """Writes config.json, model.safetensors (bf16) and golden.safetensors: ids and targets [batches, B, L] i32; for the first batch
    "logits" and "gradient/NAME" f32 roundings of the f64 values, each with ".errors"; "losses" f64 [2, num_steps]: the f64 run,
    and at each step the largest distance from it among f32 runs in NUM_ORDERS orders of summation (one run's distance at one step is
    one draw of a random number, often 0).
    gradients(name, tensor): whether the gradient is kept. weights_from: a sibling folder with the same weights."""
    folder = pathlib.Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = make_weights(config, seed)
    if weights_from:
        (folder / "model.safetensors").symlink_to(f"../{weights_from}/model.safetensors")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    described = {key: value for key, value in config.to_dict().items() if key not in ("_name_or_path", "transformers_version")}
    described["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")

    ids, targets = batches[0]
    exact, r32, r16 = (run(config, weights, ids, targets, dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16))
    golden = {"ids": torch.stack([b[0] for b in batches]).int(), "targets": torch.stack([b[1] for b in batches]).int()}
    golden["logits"], golden["logits.errors"] = exact[0].float(), errors(exact[0], r32[0], r16[0])
    golden["loss"] = torch.tensor([exact[1], r32[1], r16[1]], dtype=torch.float64)
    for name in exact[2]:
        if gradients(name, exact[2][name]):
            golden["gradient/" + name] = exact[2][name].float().contiguous()
            golden["gradient/" + name + ".errors"] = errors(exact[2][name], r32[2][name], r16[2][name])
    if num_steps:
        runs = [train(config, weights, batches, torch.float64, optimizer, num_steps)]
        runs += [train(config, *reordered(weights, batches, config.vocab_size, order), torch.float32, optimizer, num_steps) for order in range(NUM_ORDERS)]
        runs = torch.tensor(runs, dtype=torch.float64)
        golden["losses"] = torch.stack([runs[0], (runs[1:] - runs[0]).abs().amax(0)])
    metadata = {key: repr(value) for key, value in (optimizer or {}).items()}
    save_file(golden, folder / "golden.safetensors", metadata=metadata)
    for file in folder.iterdir():
        file.chmod(0o644)
    return golden


def make_batches(seed, vocab_size, num_batches, batch_size, seq_len):
    """Random ids; the target is the next id, with some masked."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(num_batches):
        stream = torch.randint(0, vocab_size, (batch_size, seq_len + 1), generator=generator)
        targets = stream[:, 1:].clone()
        targets[torch.rand(targets.shape, generator=generator) < 0.1] = -1
        batches.append((stream[:, :-1].clone(), targets))
    return batches
