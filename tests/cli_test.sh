#!/usr/bin/env bash
# Proves what the program says and with which status it ends: wrong options and commands, mistakes in a run file, standard output
# and error, full disks, completion; and that docs/run_toml.md and docs/cluster_toml.md are current. usage: cli_test.sh ORRERY SOURCE_DIR
set -uo pipefail
orrery=$(realpath "$1") source_dir=$(realpath "$2")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
export XDG_CACHE_HOME="$work/cache"
cd "$work"
failures=0
fail() { echo "FAILED: $1" >&2; failures=$((failures + 1)); }

# run STATUS args...: runs the program, leaves its output in out and err.
run() {
  local expected=$1; shift
  "$orrery" "$@" >out 2>err </dev/null
  local status=$?
  [ $status -eq "$expected" ] || { fail "orrery $* ended with $status, not $expected"; cat out err >&2; }
}
out_has() { grep -qF -- "$1" out || { fail "standard output lacks: $1"; head -20 out >&2; }; }
err_has() { grep -qF -- "$1" err || { fail "standard error lacks: $1"; head -20 err >&2; }; }
err_is_empty() { [ -s err ] && { fail "standard error is not empty"; cat err >&2; }; }
out_is_empty() { [ -s out ] && { fail "standard output is not empty"; cat out >&2; }; }

run 0 --help; out_has "Exit status"; out_has "examples"; err_is_empty
run 0 --version; out_has "orrery "
run 2; err_has "needs a command"; out_is_empty
run 2 exmaples; err_has 'unknown command `exmaples` for `orrery`: did you mean `examples`?'; out_is_empty
run 2 examples --jsno; err_has 'unknown option `--jsno`'
run 2 probe --jsno; err_has 'did you mean `--json`?'; err_has "see: orrery probe --help"
"$orrery" doctor >out 2>err; [ $? -eq 0 ] || fail "orrery doctor on this machine"; out_has "disk"; out_has "memory"
mkdir -p cache/orrery; echo '{"version": 2, "cpu_model": "another"}' >cache/orrery/probe.json; run 0 probe; err_has "no probe of this version"; out_has "links"; out_has "gemm"; out_has "packages: "; out_has "memory nodes: 0 ("
# What was measured beside other work is measured again; else it is kept. (This machine may be busy, so what the probe saw is overwritten.)
beside_other_work() { sed -i "s/\"core_share\": .*/\"core_share\": $1,/" cache/orrery/probe.json; }
beside_other_work 0.5; run 0 probe; err_has "were measured beside other work; measuring again"; err_has "wrote "
beside_other_work 0.99; run 0 probe --json; err_has "rates from"; python3 -c 'import json; p=json.load(open("out")); assert p["packages"] >= 1 and p["memory_nodes"][0]["bytes"] > 0' || fail "probe --json"
# What was measured elsewhere is not used, and what differs is named.
sed -i 's/"cpu_model": ".*"/"cpu_model": "Abacus 9"/' cache/orrery/probe.json
run 0 doctor; out_has "the one that is kept is not used: processor: Abacus 9 where it was measured"; out_has "fix: orrery probe"
run 0 probe; err_has "probe.json is not used: processor: Abacus 9 where it was measured"; err_has "measuring again"
beside_other_work 0.99; run 0 probe --json; err_has "rates from"
run 0 doctor --json; python3 -c 'import json; assert all(f["severity"] == "good" or f["found"] for f in json.load(open("out")))' || fail "doctor --json"
run 3 doctor --dir nowhere; out_has "cannot be looked at"
run 2 plan; err_has "a run file"; err_has "orrery examples"
# A cluster that cannot be: each message names what was wanted.
cat >big.toml <<'END'
[model]
family = "llama"
hidden_size = 4096
num_layers = 32
num_heads = 32
vocab_size = 32000
max_seq_len = 4096
[data]
train = ["x"]
tokenizer = "x"
[train]
tokens = "1T"
global_batch_size = 64
[optimizer]
lr = 1e-4
END
cluster=$source_dir/examples/clusters/h100x1024.toml
sed 's/network_gbytes_per_second = 50/network_gbytes_per_second = 0/' "$cluster" >zero.toml; run 2 plan big.toml --cluster zero.toml; err_has "at least 1e-09"
sed 's/count = 1024/count = 1025/' "$cluster" >odd.toml; run 2 plan big.toml --cluster odd.toml; err_has "not a multiple of devices.per_node"
sed 's/network_gbytes_per_second = 50/domain_gbytes_per_second = 1/' "$cluster" >slow.toml; run 2 plan big.toml --cluster slow.toml; err_has "slower than the network"
sed -e 's/count = 1024/count = 1/' -e 's/host_gib_per_device = 256/host_gib_per_device = 1/' "$cluster" >one.toml; run 2 plan big.toml --cluster one.toml; err_has "would hold"
run 2 plan big.toml --cluster "$cluster" --deadline 1s; err_has "the fastest layout takes"
run 2 plan big.toml --cluster "$cluster" --budget 1; err_has "the cheapest layout takes"
run 2 plan big.toml --cluster "$cluster" --lose-nodes 128; err_has "none of 1024 devices is left"
run 2 simulate big.toml --cluster "$cluster" --straggler nan; err_has "--straggler of at least 1"
run 2 simulate big.toml --cluster "$cluster" --link-factor 0; err_has "--link-factor above 0"
# What was given as a flag is named as a flag, not as the run file's key.
run 2 simulate big.toml --cluster "$cluster" --schedule zbv; err_has 'error: --schedule "zbv": wanted one of gpipe, 1f1b'
run 2 simulate big.toml --cluster "$cluster" --schedule 2bw; err_has "its steps run into each other"; err_has "orrery plan schedule 2bw"
run 2 simulate big.toml --cluster "$cluster" --schedule dualpipe-v --set parallel.pipeline_parallel_size=32; err_has '--schedule "dualpipe-v" needs at least 2 x the layout'"'"'s pp = 32 micro-batches'
run 2 simulate big.toml --cluster "$cluster" --straggler 2 --straggler-rank 99999; err_has "--straggler-rank 99999: the layout has ranks 0 to 1023"
run 2 plan schedule zbv; err_has 'error: plan schedule "zbv": wanted one of gpipe, 1f1b'
run 2 plan schedule dualpipe-v --ranks 4 --micro-batches 7; err_has 'plan schedule "dualpipe-v" needs at least 2 x --ranks 4 micro-batches, not 7; use "zb-v"'
run 2 plan schedule interleaved --ranks 4 --micro-batches 8 --group 3; err_has "error: --group = 3 with plan schedule"; err_has "at least --ranks 4"
run 4 plan schedule --file nowhere.txt; err_has "--file nowhere.txt: cannot be read"
run 4 plan big.toml --schedule-file nowhere.txt; err_has "--schedule-file nowhere.txt: no such file"
run 2 plan big.toml --cluster "$cluster" --set parallel.schedule=zbv; err_has "parallel.schedule"
run 0 plan big.toml --cluster "$cluster" --html page.html --json; grep -q "http" page.html && fail "the page names an address"; grep -qiE "nan|inf[^o]" out && fail "plan --json holds a value that is no number"
run 0 simulate big.toml --cluster "$cluster" --html page.html; grep -q "<svg" page.html || fail "simulate --html draws nothing"
sed 's/"H100"/"H1000"/' "$cluster" >thousand.toml; run 2 plan big.toml --cluster thousand.toml; err_has "thousand.toml:3:8"; err_has "did you mean H100, "; err_has "docs/cluster_toml.md"
# Devices of several kinds: which ranks are where is said, and hosts are lost by kind.
mixed=$source_dir/examples/clusters/mixed-h100-a100.toml
run 0 plan big.toml --cluster "$mixed" --explain --html page.html; out_has "64 H100 + 64 A100"; out_has "devices   "; out_has "stages on several kinds of devices"; out_has "replicas on several kinds of devices"; out_has "where ranks lie"
grep -q "A100" page.html || fail "plan --html names no A100"
run 2 plan big.toml --cluster "$mixed" --lose-nodes 2; err_has "say which hosts, such as H100:2"
run 2 plan big.toml --cluster "$mixed" --lose-nodes B200:2; err_has "the cluster has 64 H100 + 64 A100"
run 0 plan big.toml --cluster "$mixed" --lose-nodes a100:8; out_has "devices   64 H100"
run 0 simulate big.toml --cluster "$mixed" --straggler 1.5 --fail-rate 0.1 --link-factor 0.5; out_has "devices   "; out_has "what if   rank 0 takes 1.5 times as long"; out_has "goodput"
run 0 plan big.toml --cluster "$source_dir/examples/clusters/mixed-h200-a100-40gb.toml"; out_has "16 H200 + 16 A100-40GB"

# A run's trace beside its plan, and the times it keeps for the next one.
for i in $(seq 400); do echo "line $i of a text of which a small model is trained for a few steps"; done >text.txt
cat >small.toml <<'END'
[model]
family = "llama"
hidden_size = 64
num_layers = 2
num_heads = 2
num_kv_heads = 1
intermediate_size = 128
vocab_size = 320
max_seq_len = 64
[data]
train = ["text.txt"]
tokenizer = "train:bpe"
[train]
steps = 6
global_batch_size = 4
[optimizer]
lr = 1e-3
[checkpoint]
dir = "small"
END
run 0 train small.toml
run 0 plan small.toml --set budget.price_per_hour=2 --set budget.hours=9; out_has "run       6 steps"; out_has " at 2 an hour"; out_has "energy    "
# What takes longer than it may is not started, and nothing of an earlier run is touched; a run that was begun goes on.
run 2 plan small.toml --set budget.hours=1e-6; err_has "budget.hours=1e-06 and the run is predicted to take"
run 2 train small.toml --fresh --set budget.hours=1e-6; err_has "raise budget.hours"; [ -d small/step-00000006 ] || fail "a refused run set the old one aside"
run 0 train small.toml --set budget.hours=1e-6; err_has "nothing to do"
run 0 plan compare small; for word in forward backward update step OPT calibration "steps timed"; do out_has "$word"; done
python3 - <<'END' || fail "plan compare does not print the trace"
import json
trace, text = json.load(open("small/trace.json")), open("out").read()
assert trace["steps"] >= 2 and trace["measured_seconds"] > 0 and trace["predicted_seconds"] > 0, trace
assert f"{1e3 * trace['measured_seconds']:.2f}" in text and f"{1e3 * trace['predicted_seconds']:.2f}" in text, text
for action in trace["actions"]:
    assert action["measured"] >= 0 and action["action"], action
assert sum(a["measured"] for a in trace["actions"]) < 2 * trace["measured_seconds"], trace
END
run 0 plan compare small --calibrate; err_has "kept "; err_has "op_times.json"
sed 's/"machine": "processor: /"machine": "processor: Abacus 9 beside /' small/trace.json >trace.json; mkdir elsewhere; mv trace.json elsewhere
run 0 plan compare elsewhere; out_has "Abacus 9"
run 2 plan compare elsewhere --calibrate; err_has "not of this machine: processor: Abacus 9 beside"
sed -i 's/cores: /cores: 77 and /' cache/orrery/op_times.json
run 0 plan small.toml; err_has "op_times.json is not used: cores: 77 and"; err_has "ops are timed again"
run 0 plan small.toml; grep -q "is not used" err && fail "times measured again are not kept"
run 2 plan compare nowhere; err_has "trace.json"
mkdir -p broken; echo '{"version": 1}' >broken/trace.json; run 4 plan compare broken; err_has "not a trace"
run 2 config; err_has '`orrery config` needs a command'
run 2 config shwo; err_has 'did you mean `show`?'
run 2 config show; err_has "file is required"
run 2 config show --st train.steps=3; err_has 'did you mean `--set`?'
run 2 completion tcsh; err_has "tcsh"
for command in examples config help completion probe doctor checkpoint convert quantize; do run 0 $command --help; out_has "orrery $command"; err_is_empty; done

# Every example is a valid run file, and its resolved value reads back to itself.
run 0 examples; out_has "llama-11m"
for name in $("$orrery" examples | cut -d' ' -f1); do
  run 0 examples "$name"; cp out "$name.toml"
  run 0 config show "$name.toml"; err_is_empty; cp out resolved.toml
  run 0 config show resolved.toml; cmp -s out resolved.toml || fail "$name does not read back to itself"
done
run 2 examples llama; err_has 'did you mean `llama-11m`?'

# Mistakes in a run file (run_config_test.cpp has the full list).
sed 's/num_heads = 6/n_head = 6/' llama-11m.toml >bad.toml
run 2 config show bad.toml; out_is_empty
cat >expected <<'END'
error: bad.toml:6:1: unknown key `model.n_head`
  6 | n_head = 6
    | ^^^^^^ did you mean `num_heads`? (section [model], integer, at least 1, required without from)  see: orrery help num_heads
END
head -3 err | cmp -s - expected || { fail "the text of an unknown key"; diff expected err >&2; }
run 2 config show llama-11m.toml --set train.steps=many; err_has "not a whole number"
run 2 config show llama-11m.toml --set parallel.expert_parallel_size=2; err_has "which this version does not have"
run 0 config show llama-11m.toml --set train.steps=1k --set optimizer.lr=3e-4; out_has "steps = 1000"; out_has "lr = 0.0003"
run 4 config show nowhere.toml; err_has "No such file"; err_has "orrery examples"
run 2 config show .; err_has "it is a folder"
printf '[model\n' >broken.toml
run 2 config show broken.toml; err_has "broken.toml:1:"

# Help from the table.
run 0 help num_heads; out_has "query heads"
run 0 help n_layers; out_has "num_layers"
run 0 help optimizer; out_has "weight_decay"
run 0 help warm; out_has "warmup_steps"
run 2 help xyzzy; err_has 'nothing is called `xyzzy`'
run 0 config schema; python3 -c 'import json,sys; s=json.load(open("out")); assert s["properties"]["train"]["properties"]["dtype"]["enum"][0]=="bf16"' || fail "the schema is not JSON"
run 0 config docs; cmp -s out "$source_dir/docs/run_toml.md" || fail "docs/run_toml.md is not current: orrery config docs > docs/run_toml.md"
run 0 config cluster-docs; cmp -s out "$source_dir/docs/cluster_toml.md" || fail "docs/cluster_toml.md is not current: orrery config cluster-docs > docs/cluster_toml.md"

# A result that cannot be written is an error; a reader that went away ends quietly.
"$orrery" examples llama-11m >/dev/full 2>err; [ $? -eq 3 ] || fail "a full disk"; err_has "cannot write the result"
"$orrery" config docs 2>err | head -1 >/dev/null; err_is_empty

# Completion scripts are accepted by the shells that are here, and complete.
run 0 completion bash; bash -n out || fail "bash completion"
bash -c 'source ./out; COMP_WORDS=(orrery config s); COMP_CWORD=2; _orrery; printf "%s\n" "${COMPREPLY[@]}"' >words
grep -qx show words && grep -qx schema words || fail "bash completion of: orrery config s"
for shell in zsh fish; do run 0 completion $shell; command -v $shell >/dev/null && { $shell -n out || fail "$shell completion"; }; done

# Checkpoints that are not there.
run 4 checkpoint hash --as bf16 nowhere; err_has "nowhere"
run 2 convert nowhere out --to ggfu; err_has "ggfu"
run 4 convert nowhere out --to hf; err_has "nowhere"
run 4 checkpoint list nowhere; err_has "does not exist"
mkdir empty; run 4 checkpoint verify empty; err_has "the folder holds none"

# Quantizing: the file is there and reads as a model, the cost is told, nothing is overwritten.
cp "$source_dir/tests/golden/tiny_llama.gguf" .
run 0 quantize tiny_llama.gguf --to q4_0; out_has "tiny_llama-q4_0.gguf"; err_has "relative error"
run 2 quantize tiny_llama.gguf --to q4_0; err_has "it exists"
run 0 quantize tiny_llama.gguf --to q4_k_m small.gguf --json; out_has '"Q5_0"'; out_has "relative_error"
run 0 quantize small.gguf again.gguf --to int8; err_has "quantized already"
run 2 quantize tiny_llama.gguf --to q9_9; err_has "q4_k_m"
run 4 quantize tiny_llama.gguf x.gguf --to q8_0 --check --text nowhere.txt; err_has "nowhere.txt"; [ -e x.gguf ] && fail "quantized although the check could not be made"

[ $failures -eq 0 ] && echo ok
exit $((failures > 0))
