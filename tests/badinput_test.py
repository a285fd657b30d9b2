#!/usr/bin/env python3
"""Proves that bad input, a bad machine and a person's Ctrl-C each end with one clear message, the documented exit status, and
nothing lost: runs the real program on a tiny model. usage: badinput_test.py ORRERY SOURCE_DIR"""
import fcntl
import json
import os
import pathlib
import pty
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ORRERY, SOURCE = os.path.realpath(sys.argv[1]), os.path.realpath(sys.argv[2])
RUN_FILE = """
[model]
family = "llama"
hidden_size = 64
num_layers = 2
num_heads = 2
num_kv_heads = 1
intermediate_size = 128
vocab_size = 320
max_seq_len = 64
tie_embeddings = true
[data]
train = ["text.txt"]
val_fraction = 0.2
tokenizer = "train:bpe"
[train]
steps = 10
global_batch_size = 4
[optimizer]
lr = 1e-3
[checkpoint]
every_steps = 5
"""
failures = []
skipped = []


def fail(what, result=None):
    failures.append(what)
    print("FAILED:", what, file=sys.stderr)
    if result is not None:
        print(result.stdout[-800:], result.stderr[-1500:], sep="\n", file=sys.stderr)


def run(arguments, status=0, says=(), quiet=(), limits=None, user=None, **options):
    """One message: the words of `says` on standard error, none of `quiet`, and exit status `status`."""
    def prepare():
        if limits:
            limits()
        if user:
            os.setgid(user)
            os.setuid(user)
    command = [ORRERY] + [a if isinstance(a, bytes) else str(a) for a in arguments]
    result = subprocess.run(command, capture_output=True, timeout=60, preexec_fn=prepare, stdin=subprocess.DEVNULL, **options)
    result.stdout, result.stderr = result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace")
    name = " ".join(str(a) for a in arguments)
    if result.returncode != status:
        fail(f"{name}: ended with {result.returncode}, wanted {status}", result)
    for words in says:
        if words not in result.stderr:
            fail(f"{name}: standard error lacks: {words}", result)
    for words in quiet:
        if words in result.stderr + result.stdout:
            fail(f"{name}: says: {words}", result)
    return result


def train(folder, *settings, **options):
    arguments = ["train", "run.toml", "--set", f"checkpoint.dir={folder}"]
    for setting in settings:
        arguments += [setting] if setting.startswith("--") else ["--set", setting]
    return run(arguments, **options)


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def digest(folder):
    return run(["checkpoint", "hash", folder, "--state"]).stdout.strip()


def write_inputs():
    words = "the a hacker wrote code in lisp and then slept while its machine ran fast or slow".split()
    state = 1
    for k in range(8):
        text = []
        for _ in range(1500):
            state = (state * 1103515245 + 12345) % 2**31
            text.append(words[(state >> 16) % len(words)])
        pathlib.Path(f"text-{k}.txt").write_text(" ".join(text))
    pathlib.Path("run.toml").write_text(RUN_FILE.replace("text.txt", "text-*.txt"))


def wrong_settings():
    run(["train", "nowhere.toml"], 4, ["nowhere.toml", "No such file", "orrery examples"])
    for command in ("plan nowhere", "eval nowhere", "generate nowhere --prompt x", "chat nowhere", "convert nowhere out", "checkpoint list nowhere",
                    "checkpoint verify nowhere", "checkpoint hash nowhere", "data inspect nowhere", "data build nowhere -o out --tokenizer nowhere",
                    "data tokenizer nowhere -o out"):
        run(command.split(), 4, ["nowhere"])
    run(["train", "text-0.txt"], 2, ["text-0.txt:1:", "not TOML"])
    run(["train", "run.toml", "--thread", "1"], 2, ["did you mean `--threads`?"])
    train("x", "model.num_heads=5", status=2, says=["num_heads = 5 does not divide hidden_size = 64"])
    train("x", "train.global_batch_size=6", status=2, says=["not a multiple of train.lanes = 4", "use 4 or 8"])
    train("x", "train.dtype=fp8", status=2, says=["train.dtype", "use bf16 or f32"])
    train("x", "data.seq_len=128", status=2, says=["longer than model.max_seq_len = 64"])
    train("x", "data.train=nowhere.txt", status=4, says=['no file matches "nowhere.txt"'])
    train("x", "data.tokenizer=nowhere", status=4, says=["cannot open the tokenizer nowhere"])
    train("x", "budget.memory=1MiB", status=2, says=["no plan fits budget.memory = 1.0 MiB", "the least that would do is"])
    train("/proc/x", status=3, says=["cannot make the run's folder /proc/x", "choose another checkpoint.dir"])


def ranks_that_share_a_model():
    """What looks at a run afterwards, or before, does not need the ranks that train it."""
    for name, settings in (("pipeline", ["parallel.pipeline_parallel_size=2", "--ranks=2"]), ("tensor", ["parallel.tensor_parallel_size=2", "parallel.context_parallel_size=2", "--ranks=4"])):
        train(name, "model.num_kv_heads=2", "train.steps=2", *settings, says=["step 2/2"])
        run(["eval", name])
        run(["doctor", f"{name}/run.toml"], quiet=["--ranks"])
    run(["plan", "run.toml", "--set", "checkpoint.dir=x", "--set", "model.qk_norm=true", "--set", "model.mlp_bias=true"], 2, ["no Hugging Face architecture", "no mlp_bias (Qwen3)"])


def a_run():
    """Its newest checkpoint is damaged, its settings change, it is done: nothing is lost and every refusal leaves the folder as it was."""
    train("good", says=["step 10/10", "next:"])
    train("good", says=["nothing to do", "--accept-changes"])
    before, settings = digest("good"), pathlib.Path("good/run.toml").read_text()
    train("good", "train.steps=20", "optimizer.lr=5e-4", status=2,
          says=["  steps: 10 there, 20 here", "  lr: 0.001 there, 0.0005 here", "--accept-changes", "--fresh"])
    train("good", "--fresh", "budget.memory=1MiB", status=2, says=["no plan fits"])
    if digest("good") != before or pathlib.Path("good/run.toml").read_text() != settings:
        fail("a refused run changed the folder")
    shutil.copytree("good", "flipped")
    flip("flipped/step-00000010/model.safetensors", 9000)
    result = train("flipped", says=["skipped   flipped/step-00000010", "does not match its checksum", "resumed   flipped/step-00000005"])
    if "step 10/10" in result.stderr and digest("flipped") != before:
        fail("a run that went on from an older checkpoint ended with other bits")
    shutil.copytree("good", "lost")
    for step in (5, 10):
        flip(f"lost/step-000000{step:02}/state.safetensors", 9000)
    train("lost", status=4, says=["skipped   lost/step-00000010", "skipped   lost/step-00000005", "none verifies", "--fresh"])
    run(["checkpoint", "verify", "lost"], 4)
    run(["eval", "lost"], 4, ["none of its 2 checkpoints is whole"])
    train("lost", "--fresh", says=["step 10/10"])
    if digest("lost") != before or not os.path.exists("lost/old-1/step-00000010"):
        fail("--fresh: the same bits, with what was there set aside")


def longer_runs():
    """Where the learning rate does not depend on the number of steps a run may be made longer: the bits are those of a long run.
    A run may begin again from its own weights; its metrics may be lost, not its training."""
    constant = "optimizer.schedule=constant"
    train("longer", constant)
    train("longer", constant, says=["nothing to do", "raise train.steps"], quiet=["--accept-changes"])
    train("longer", constant, "train.steps=15", says=["resumed   longer/step-00000010", "step 15/15"])
    train("long", constant, "train.steps=15")
    if digest("longer") != digest("long"):
        fail("a run made longer: other bits than a long one")
    pathlib.Path("again.toml").write_text('[model]\nfrom = "longer"\n[data]\ntrain = ["text-*.txt"]\nseq_len = 64\n[train]\nsteps = 10\nglobal_batch_size = 4\n[optimizer]\nlr = 1e-3\n')
    run(["train", "again.toml", "--fresh", "--set", "checkpoint.dir=longer"], says=["step 10/10"])
    if not os.path.exists("longer/old-1/step-00000015") or digest("longer") == digest("good"):
        fail("--fresh from the run's own weights")
    os.makedirs("unwritten/metrics.jsonl")
    train("unwritten", says=["warning: ", "unwritten/metrics.jsonl", "training goes on", "step 10/10"])
    if digest("unwritten") != digest("good"):
        fail("without metrics: other bits")


def shards():
    # What a killed `data build` left goes with the next; what a living one holds stays.
    for name in ("built.tmp-1", "built.tmp-2"):
        os.mkdir(name)
    held = os.open("built.tmp-2", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    run(["data", "build", "text-0.txt", "-o", "built", "--tokenizer", "good/tokenizer"])
    os.close(held)
    if os.path.exists("built.tmp-1") or not os.path.exists("built.tmp-2"):
        fail("data build and the temporary folders of others")
    shard = "good/data/train-0/train-00000.orrtok"
    plan = ["plan", "run.toml", "--set", "checkpoint.dir=shards", "--set", "data.val_fraction=0"]
    tokenizer = ["--set", "data.tokenizer=good/tokenizer"]
    shutil.copy(shard, "cut.orrtok")
    os.truncate("cut.orrtok", os.path.getsize(shard) - 100)
    run(plan + tokenizer + ["--set", "data.train=cut.orrtok"], 4, ["cut.orrtok", "bytes"])
    shutil.copy(shard, "bits.orrtok")
    flip("bits.orrtok", 3000)
    run(["data", "inspect", "bits.orrtok", "--verify"], 4, ["bits.orrtok"])
    run(["train"] + plan[1:] + tokenizer + ["--set", "data.train=bits.orrtok"], 4, ["bits.orrtok"])
    run(plan + tokenizer + ["--set", f"data.train={shard}", "--set", "model.vocab_size=300"], 2, ["model.vocab_size = 300", "smaller than the tokenizer's"])
    # The shard's ids come from a larger vocabulary than this tokenizer and model have.
    run(["data", "tokenizer", "text-*.txt", "-o", "small", "--vocab-size", "270"])
    run(plan + ["--set", f"data.train={shard}", "--set", "data.tokenizer=small", "--set", "model.vocab_size=270"], 4, [shard, "270"])


def models():
    run(["generate", "good", "--prompt", "the a hacker wrote code", "--max-context", "4"], 2, ["the context holds 4", "raise --max-context"], quiet=["hacker"])
    run(["generate", "good", "--prompt", "the", "--max-context", "1000"], 2, ["at most 64"])
    run(["generate", "good", "--prompt", "the", "--max-context", "-3"], 2, ["wanted 0 or more, found -3"])
    run(["generate", "good", "--prompt", "the", "--max-tokens", "0"], 2, ["wanted a number above 0, found 0"])
    run(["generate", "good", "--prompt", "", "--max-tokens", "3"])
    run(["generate", "good", "--prompt", b"\xff\xfe\x80", "--max-tokens", "3"])
    run(["generate", "nowhere", "--prompt", "x"], 4, ["nowhere: no such file", "a .gguf file"])
    run(["generate", "text-0.txt", "--prompt", "x"], 4, ["not a GGUF file"])
    run(["convert", "good", "model.gguf"])
    run(["convert", "good", "model.gguf"], 2, ["it exists"])
    run(["eval", "model.gguf"], 2, ["name text with --data"])
    run(["eval", "model.gguf", "--data", "text-0.txt"])
    run(["eval", "model.gguf", "--data", "text-0.txt", "--seq-len", "65"], 2, ["wanted 2 to 64"])
    data = pathlib.Path("model.gguf").read_bytes()
    pathlib.Path("cut.gguf").write_bytes(data[:-5000])
    run(["eval", "cut.gguf", "--data", "text-0.txt"], 4, ["cut.gguf"])


def machine():
    """A full disk, a folder without permission, little memory, a second run in the folder, a reader that goes away."""
    # With a limit on file sizes a save fails as on a full disk; the state of 94 k parameters is larger, everything else smaller.
    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
    train("full", status=3, limits=small_files,
          says=["step 5 could not be saved", "step 10 could not be saved", "there is no checkpoint", "make room in full"])
    train("full", says=["step 10/10"])
    if digest("full") != digest("good"):
        fail("after a full disk: other bits")
    # More than any machine has: 1.2 TB.
    train("memory", "train.global_batch_size=4194304", "train.micro_batch_size=4194304", "budget.memory=10000GiB", status=3,
          says=["the plan needs an arena of", "available"])
    if os.geteuid() == 0:
        os.chmod(".", 0o755)
        run(["train", "run.toml", "--set", "checkpoint.dir=denied/run"], 3, ["cannot make the run's folder denied/run: Permission denied"], user=65534)
    else:
        skipped.append("a folder without permission (needs root)")
    holder = subprocess.Popen([ORRERY, "train", "run.toml", "--set", "checkpoint.dir=busy", "--set", "train.steps=100000"],
                              stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    while b"step " not in holder.stderr.readline():
        pass
    train("busy", status=2, says=["busy", str(holder.pid)])
    holder.kill()
    holder.wait()
    # head -1 goes away; the run goes on to its end.
    piped = subprocess.Popen([ORRERY, "train", "run.toml", "--set", "checkpoint.dir=piped", "--json"], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL)
    json.loads(piped.stdout.readline())
    piped.stdout.close()
    if piped.wait(60) != 0 or digest("piped") != digest("good"):
        fail("a run whose reader went away")


def on_terminal(folder, signals):
    """Trains in a pseudo-terminal, sends `signals` after the first steps; returns the exit status and what was on the screen."""
    pid, master = pty.fork()
    if pid == 0:
        os.execv(ORRERY, [ORRERY, "train", "run.toml", "--set", f"checkpoint.dir={folder}", "--set", "train.steps=100000",
                          "--set", "checkpoint.every_steps=1000000"])
    screen, sent, deadline = b"", 0, time.time() + 30
    while time.time() < deadline:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        if not chunk:
            break
        screen += chunk
        if b"loss " in screen and sent == 0:
            for _ in range(signals):
                os.write(master, b"\x03")
                sent += 1
                time.sleep(0.0 if signals == 1 else 0.001)
    _, status = os.waitpid(pid, 0)
    os.close(master)
    return os.waitstatus_to_exitcode(status), screen.decode(errors="replace")


def interrupts():
    try:
        for descriptor in pty.openpty():
            os.close(descriptor)
    except OSError as error:  # a bare chroot has no /dev/pts
        skipped.append(f"Ctrl-C in a terminal: no pseudo-terminal here ({error})")
        return
    status, screen = on_terminal("once", 1)
    if status != 130 or "stopping after this step" not in screen or "goes on from here" not in screen:
        fail(f"Ctrl-C once: status {status}, screen {screen[-800:]!r}")
    if "step-" not in run(["checkpoint", "verify", "once"]).stdout:
        fail("Ctrl-C once left no checkpoint")
    status, screen = on_terminal("twice", 2)
    if status != 130:
        fail(f"Ctrl-C twice: status {status}, screen {screen[-800:]!r}")


def large_model():
    """A model folder of 130 MB, all zeros, and a text of 16 MB: what is made of them takes long enough to be met half way."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        os.makedirs("large", exist_ok=True)
        shutil.copy(next(pathlib.Path("good").glob("step-*")) / name, "large")
    hidden, middle, vocabulary, layers = 1024, 4096, 320, 4
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden]}
    for layer in range(layers):
        for name, shape in {"input_layernorm": [hidden], "post_attention_layernorm": [hidden], **{f"self_attn.{k}_proj": [hidden, hidden] for k in "qkvo"},
                            "mlp.gate_proj": [middle, hidden], "mlp.up_proj": [middle, hidden], "mlp.down_proj": [hidden, middle]}.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open("large/model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": middle, "num_hidden_layers": layers,
              "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": vocabulary, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
              "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
    pathlib.Path("large/config.json").write_text(json.dumps(config))
    pathlib.Path("large.txt").write_text(pathlib.Path("text-0.txt").read_text() * 2000)


def interrupted_writes():
    """Ctrl-C while a command writes: status 130, one message that names the target, and nothing of it left. The process is stopped as soon as what it writes
    into is there, and gets the signal before it goes on, so it is met in the middle however fast it is; where it was at its end already, it is tried again."""
    large_model()
    commands = {"quantized.gguf": ["quantize", "large", "quantized.gguf", "--to", "q4_k_m"],
                "converted.gguf": ["convert", "large", "converted.gguf"],
                "converted": ["convert", "large", "converted", "--dtype", "f32"],
                "shards-of-large": ["data", "build", "large.txt", "-o", "shards-of-large", "-t", "large"]}
    for target, arguments in commands.items():
        def left():
            return [name for name in os.listdir(".") if name.startswith(target + ".")]
        for _ in range(20):
            process = subprocess.Popen([ORRERY, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
            while process.poll() is None and not left():
                time.sleep(0.0005)
            process.send_signal(signal.SIGSTOP)
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGCONT)
            _, says = process.communicate(timeout=60)
            if process.returncode != 0:
                break
            shutil.rmtree(target, ignore_errors=True)
            pathlib.Path(target).unlink(missing_ok=True)
        if process.returncode != 130 or f"error: interrupted; nothing was written at {target}\n" not in says:
            fail(f"Ctrl-C in {' '.join(arguments)}: status {process.returncode}, says {says!r}")
        if left() or os.path.exists(target):
            fail(f"Ctrl-C in {' '.join(arguments)} left {left() or target}")


def main():
    work = tempfile.mkdtemp(prefix="orrery-badinput-")
    os.environ["XDG_CACHE_HOME"] = work + "/cache"
    os.chdir(work)
    try:
        write_inputs()
        for part in (wrong_settings, ranks_that_share_a_model, a_run, longer_runs, shards, models, machine, interrupts, interrupted_writes):
            begin = time.time()
            try:
                part()
            except subprocess.TimeoutExpired as error:
                fail(f"{part.__name__}: {error}")
            print(f"{part.__name__}: {time.time() - begin:.1f} s")
    finally:
        os.chdir("/")
        shutil.rmtree(work, ignore_errors=True)
    for what in skipped:
        print("skipped:", what)
    print("ok" if not failures else f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
