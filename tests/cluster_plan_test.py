#!/usr/bin/env python3
"""`orrery plan --cluster` and `orrery simulate --cluster` from files: every number of a plan is finite and its layout divides batch and
devices, clusters of several kinds of devices are planned, mixtures of experts are planned and simulated while training refuses them, and each contradictory or impossible wish ends with
status 2 and a message that says the way out."""
import json
import math
import pathlib
import subprocess
import sys
import tempfile

program = sys.argv[1]
MODEL = """
[model]
family = "llama"
hidden_size = 4096
num_layers = 32
num_heads = 32
num_kv_heads = 8
intermediate_size = 14336
vocab_size = 128256
max_seq_len = 4096
[data]
train = ["none.txt"]
tokenizer = "train:bpe"
[train]
steps = 1000
global_batch_size = 64
[optimizer]
lr = 1e-4
"""
EXPERTS = ["num_experts=16", "num_experts_per_tok=2", "moe_intermediate_size=4096", "first_k_dense_replace=1"]
CLUSTER = '[devices]\nkind = "H100"\ncount = 32\n[prices]\nper_device_hour = 2\n'


def run(*arguments):
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def sets(keys):
    return [word for key in keys for word in ("--set", key)]


def finite(value, path="plan"):
    if isinstance(value, float):
        assert math.isfinite(value), path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        finite(child, f"{path}.{key}")


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    run_file, cluster_file, prices_missing = str(folder / "run.toml"), str(folder / "cluster.toml"), str(folder / "no_prices.toml")
    pathlib.Path(run_file).write_text(MODEL)
    pathlib.Path(cluster_file).write_text(CLUSTER)
    pathlib.Path(prices_missing).write_text(CLUSTER.split("[prices]")[0])

    def plan(*arguments, cluster=cluster_file):
        return run("plan", run_file, "--cluster", cluster, *arguments)

    def plan_of(*arguments, cluster=cluster_file):
        result = plan("--json", *arguments, cluster=cluster)
        assert result.returncode == 0, result.stderr
        assert "nan" not in result.stdout.lower()
        report = json.loads(result.stdout)
        finite(report)
        for layout in report["finalists"]:
            size = {name: layout[f"{name}_parallel_size"] for name in ("tensor", "pipeline", "context", "data")}
            assert math.prod(size.values()) == layout["devices"], layout
            assert size["data"] * layout["micro_batch_size"] * layout["num_micro_batches"] == 64, layout
            assert layout["step_seconds_low"] < layout["step_seconds"] < layout["step_seconds_high"], layout
        return report

    dense = plan_of()
    mixture = plan_of(*sets(f"model.{key}" for key in EXPERTS))
    assert any(layout["expert_parallel_size"] > 1 for layout in mixture["finalists"]), "no layout shares the experts"
    for layout in mixture["finalists"]:
        assert 16 % layout["expert_parallel_size"] == 0 and layout["not_mapped"] == "a mixture of experts", layout
    assert any(layout["memory_map_bytes"] for layout in dense["finalists"])
    simulated = run("simulate", run_file, "--cluster", cluster_file, *sets(f"model.{key}" for key in EXPERTS))
    assert simulated.returncode == 0 and "step" in simulated.stdout, simulated.stderr

    def refused(result, *parts):
        assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
        for part in parts:
            assert part in result.stderr, (part, result.stderr)
        assert "nan" not in result.stdout.lower(), result.stdout

    # Devices of two kinds: every layout says what is where, and what it says adds up.
    mixed_file = str(folder / "mixed.toml")
    pathlib.Path(mixed_file).write_text('[[devices]]\nkind = "H100"\ncount = 16\n[[devices]]\nkind = "A100-40GB"\ncount = 16\n[prices]\nper_device_hour = 2\n')
    mixed = plan_of(cluster=mixed_file)
    staged = 0
    for layout in mixed["finalists"] + mixed["pareto"]:
        placement = layout["placement"]
        assert sum(part["devices"] for part in placement) == layout["devices"], layout
        assert all(part["memory_bytes"] <= part["capacity_bytes"] for part in placement), layout
        assert math.prod(axis["size"] for axis in layout["axes"]) == layout["devices"], layout
        assert all(1 <= axis["in_one_domain"] <= min(8, axis["size"]) for axis in layout["axes"]), layout
        if "layers" not in placement[0]:
            continue
        staged += 1
        ranks = [rank for part in placement for rank in range(part["pipeline_ranks"][0], part["pipeline_ranks"][1] + 1)]
        assert ranks == list(range(int(layout["pipeline_parallel_size"]))), layout
        assert sum(sum(part["layers"]) for part in placement) == 32, layout
    assert staged > 0
    fronts = [(point["run_seconds"], point["money"]) for point in mixed["pareto"]]
    assert len(fronts) >= 2 and fronts == sorted(fronts) and [m for _, m in fronts] == sorted((m for _, m in fronts), reverse=True), fronts
    faster = plan_of(cluster=cluster_file)  # as many H100
    assert faster["finalists"][0]["step_seconds"] < mixed["finalists"][0]["step_seconds"]
    slower_file = str(folder / "slower.toml")
    pathlib.Path(slower_file).write_text('[devices]\nkind = "A100-40GB"\ncount = 16\n')
    assert mixed["finalists"][0]["step_seconds"] < plan_of(cluster=slower_file)["finalists"][0]["step_seconds"]

    refused(run("train", run_file, *sets(f"model.{key}" for key in EXPERTS)), "model.num_experts = 16", "orrery plan --cluster")
    refused(plan("--set", "model.num_experts=16"), "num_experts_per_tok")
    refused(plan("--set", "model.num_experts_per_tok=2"), "without `model.num_experts`")
    refused(plan("--set", "model.num_experts=4", "--set", "model.num_experts_per_tok=5"), "above num_experts = 4")
    refused(plan("--set", "model.num_experts=4", "--set", "model.num_experts_per_tok=2", "--set", "model.first_k_dense_replace=32"), "leaves none")
    # What the run file gives is what is planned.
    given = plan_of(*sets(["parallel.tensor_parallel_size=2", "parallel.zero_stage=1", "train.micro_batch_size=2", "train.recompute=full"]))
    for layout in given["finalists"] + given["pareto"]:
        assert (layout["tensor_parallel_size"], layout["zero_stage"], layout["micro_batch_size"], layout["recompute"]) == (2, 1, 2, "full"), layout
    manual = plan_of(*sets(["parallel.layout=manual", "parallel.tensor_parallel_size=8", "parallel.pipeline_parallel_size=4"]))
    for layout in manual["finalists"]:
        assert [layout[f"{name}_parallel_size"] for name in ("tensor", "pipeline", "context", "data")] == [8, 4, 1, 1] and layout["schedule"] == "1f1b", layout
    assert "fixed     tensor_parallel_size = 4" in plan("--set", "parallel.tensor_parallel_size=4").stdout
    refused(plan("--set", "parallel.tensor_parallel_size=3"), "tensor_parallel_size = 3", "use one of 1, 2, 4, 8, 16, 32")
    refused(plan("--set", "parallel.pipeline_parallel_size=3"), "use 24 of the devices")
    refused(plan("--set", "parallel.schedule=2bw"), "use 1f1b, gpipe, interleaved, zb-h1 or zb-v")
    refused(plan("--set", "parallel.offload=['optimizer', 'activations']"), '"activations" is not among what a plan for a cluster weighs')
    refused(plan("--set", "parallel.stage_layers=['16','16']"), "leave it out")
    assert plan("--set", "train.dtype=fp8").returncode == 0, "devices elsewhere compute in fp8"
    refused(plan("--deadline", "1s"), "no layout meets a deadline of 1.0s: on 32 H100 the fastest layout takes", ", the cheapest layout takes", "the run needs more time or more devices, or fewer tokens")
    refused(plan("--budget", "1"), "no layout meets a budget of 1: on 32 H100 the fastest layout takes", ", the cheapest layout takes", "the run needs more money or cheaper devices, or fewer tokens")
    refused(plan("--budget", "1", "--deadline", "1s"), "no layout meets a deadline of 1.0s and a budget of 1:", "more time or more devices, and more money or cheaper devices, or fewer tokens")
    unpriced = plan("--deadline", "1s", cluster=prices_missing)
    refused(unpriced, "no layout meets a deadline of 1.0s: on 32 H100 the fastest layout takes")
    assert "cost" not in unpriced.stderr and "money" not in unpriced.stderr, unpriced.stderr
    enough = plan_of("--deadline", "1d", "--budget", "1000")
    assert all(layout["run_seconds"] <= 86400 and layout["money"] <= 1000 for layout in enough["finalists"]), "limits that are met are kept"
    # The run file's limits hold here too; a flag comes before them.
    refused(plan("--set", "budget.hours=0.001"), "no layout meets a deadline of 3.6s")
    refused(plan("--set", "budget.energy=0.001"), "no layout meets 0.001 kWh of energy", "the thriftiest layout takes")
    assert plan("--set", "budget.hours=0.001", "--deadline", "1d").returncode == 0
    # The optimizer on the host stays there: in every layout, in its memory, in what is said.
    for layout in plan_of("--set", "parallel.offload=['optimizer']")["finalists"]:
        assert layout["offload_optimizer"] and layout["host_bytes"] > 0 and layout["memory_map_bytes"], layout
    offloaded = plan("--set", "parallel.offload=['optimizer']", "--explain").stdout
    assert "fixed     the optimizer offloaded" in offloaded and "optimizer on the host on 32 devices" in offloaded and "optimizer 0 B" in offloaded, offloaded
    poor_host = str(folder / "poor_host.toml")
    pathlib.Path(poor_host).write_text(CLUSTER + "[tiers]\nhost_gib_per_device = 1\n")
    refused(plan("--set", "parallel.offload=['optimizer']", "--set", "parallel.zero_stage=0", "--set", "parallel.layout=manual", cluster=poor_host), "does not fit", "the optimizer offloaded")
    # budget.memory, where it is given; the default is a run's on a machine.
    for given, limit in (("30GiB", 30 * 2**30), ("25%", 20 * 2**30)):
        for layout in plan_of("--set", f"budget.memory={given}")["finalists"]:
            assert all(part["memory_bytes"] <= part["capacity_bytes"] == limit for part in layout["placement"]), layout
            assert layout["memory_map_bytes"] is None or layout["memory_map_bytes"] <= limit, layout
    assert "(budget.memory = 30.0 GiB) on the fullest H100" in plan("--set", "budget.memory=30GiB").stdout
    assert plan_of("--set", "budget.memory=100%") == plan_of(), "no more than a device has"
    eighty = plan_of("--set", "budget.memory=80%")["finalists"][0]["placement"][0]["capacity_bytes"]
    assert eighty == 64 * 2**30 < plan_of()["finalists"][0]["placement"][0]["capacity_bytes"], "80 % that is given is 80 % of a device"
    refused(plan("--set", "budget.memory=1GiB"), "does not fit", "budget.memory = 1.00 GiB", "raise budget.memory")
    # Context parallelism by ulysses: named, another price than ring's, bounded by the 8 kv heads.
    context = ["parallel.context_parallel_size=4", "parallel.tensor_parallel_size=2"]
    ring, ulysses = plan_of(*sets(context)), plan_of(*sets([*context, "parallel.context_method=ulysses"]))
    assert {layout["context_method"] for layout in ulysses["finalists"]} == {"ulysses"} and {layout["context_method"] for layout in ring["finalists"]} == {"ring"}
    assert ulysses["finalists"][0]["step_seconds"] != ring["finalists"][0]["step_seconds"]
    refused(plan(*sets(["parallel.context_parallel_size=8", "parallel.tensor_parallel_size=2", "parallel.context_method=ulysses"])), "heads", "use one of 2, 4, or context_method = \"ring\"")
    refused(plan("--budget", "100", cluster=prices_missing), "needs prices", "prices.per_device_hour")
    refused(plan("--objective", "cost", cluster=prices_missing), "needs prices")
    refused(plan("--objective", "speed"), "time, cost, energy or memory")
    refused(plan("--set", "model.hidden_size=65536", "--set", "model.num_layers=400", "--set", "model.num_heads=512", "--set", "model.num_kv_heads=512"), "does not fit", "would hold it")
    refused(plan(cluster=str(folder / "none.toml")), "none.toml")
    for found, text, part in (
        ("", "[links]\nnetwork_gbytes_per_second = 0\n", "network_gbytes_per_second"),
        ("", "[links]\nnetwork_gbytes_per_second = -5\n", "network_gbytes_per_second"),
        ("", "[links]\ndomain_gbytes_per_second = 1\n", "slower than the network"),
        ("", "[links]\nhost_gbytes_per_second = nan\n", "host_gbytes_per_second"),
        ("", "[weather]\nrain = 1\n", "weather"),
        ("count = 32", "count = 12", "multiple of devices.per_node"),
        ("count = 32", "count = 32\nmemory_gib = 0", "memory_gib"),
        ("H100", "Abacus", "Abacus"),
        ("H100", "H1000", "did you mean H100"),
        ("", '[[devices]]\nkind = "A100"\ncount = 8\n', "devices"),
        ("per_device_hour = 2", "pue = 0.5", "pue"),
    ):
        bad = folder / "bad.toml"
        bad.write_text(CLUSTER.replace(found, text) if found else CLUSTER + text)
        refused(plan(cluster=str(bad)), part, "bad.toml")
print("ok")
