#!/usr/bin/env bash
# From raw text to a trained model in about five minutes on two cores, after packages and build: prose, a tokenizer, token shards,
# the plan, training that is killed in the middle and goes on by itself, evaluation, text, a Hugging Face folder.
# usage: scripts/demo.sh [FOLDER]     everything that is made lands in FOLDER (default: demo)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-demo}
say() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }

say "packages and build"
bash scripts/install_packages.sh
cmake --preset release >/dev/null
cmake --build --preset release --target orrery
orrery=build/release/orrery

say "text: Debian's jargon-text"
bash scripts/fetch_corpus.sh "$folder/corpus"
[ -f "$folder/llama-11m.toml" ] && rm -rf "$folder/run" "$folder/hf" "$folder/model.gguf"  # of an earlier demo in this folder
"$orrery" examples llama-11m | sed "s|corpus/|$folder/corpus/|" >"$folder/llama-11m.toml"
settings=(--set "checkpoint.dir=$folder/run")

say "this machine"
"$orrery" probe

say "the plan"
"$orrery" plan "$folder/llama-11m.toml" "${settings[@]}" | tee "$folder/plan.txt"
# By the plan's time of a step: as many steps as this machine does in four minutes, 1,000 at most; 400 are the least that read as English.
steps=$(awk '$1 == "time" && $2 > 0 { steps = int(230 / $2 / 50) * 50 } END { print (!steps || steps > 1000 ? 1000 : steps < 400 ? 400 : steps) }' "$folder/plan.txt")
settings+=(--set "train.steps=$steps" --set "train.eval_every=$((steps / 2))" --set "checkpoint.every_steps=$((steps / 5))")
echo "this machine's share: $steps steps" >&2

say "training, killed with SIGKILL in the middle"
"$orrery" train "$folder/llama-11m.toml" "${settings[@]}" &
trainer=$!
# The kill comes once a checkpoint exists and training has gone on past it.
for _ in $(seq 1 1200); do
  kill -0 "$trainer" 2>/dev/null || break
  ls -d "$folder"/run/step-* >/dev/null 2>&1 && [ "$(wc -l <"$folder/run/metrics.jsonl")" -ge $((steps * 3 / 10)) ] && break
  sleep 0.2
done
kill -9 "$trainer" 2>/dev/null && echo "killed process $trainer with SIGKILL" >&2 || true
wait "$trainer" 2>/dev/null || true

say "the same command again: it finds the newest checkpoint that verifies and goes on"
"$orrery" train "$folder/llama-11m.toml" "${settings[@]}"

say "checkpoints"
"$orrery" checkpoint list "$folder/run"
"$orrery" checkpoint hash "$folder/run" --state

say "held-out text"
"$orrery" eval "$folder/run"

say "text"
"$orrery" generate "$folder/run" --prompt "The hacker" --max-tokens 120 --temperature 0.8 --top-k 50 --seed 1

say "a Hugging Face folder and a GGUF file"
"$orrery" convert "$folder/run" "$folder/hf" --to hf
"$orrery" convert "$folder/run" "$folder/model.gguf" --to gguf

say "next"
cat <<EOF
  $orrery serve $folder/model.gguf          # and a page at http://127.0.0.1:8080/
  $orrery generate $folder/model.gguf --prompt "A bug is"
  $orrery train $folder/llama-11m.toml --set checkpoint.dir=$folder/run --set train.steps=4000 --fresh
EOF
