#!/usr/bin/env python3
"""lm-evaluation-harness (its `local-completions`) against `orrery serve`, on tasks of our own, because this must work without the network:
multiple choice by log-likelihood, perplexity of texts by rolling log-likelihood, and generation until a stop string. For the tiny model
its accuracy must be that of `orrery eval --multiple-choice` on the same questions. By hand; needs PyPI once.

  python3 -m venv VENV && VENV/bin/pip install "lm-eval[api]" transformers
  VENV/bin/python scripts/lm_eval_suite.py ORRERY SOURCE_DIR [MODEL]      # MODEL: a .gguf or folder with a tokenizer; default: a tiny one, trained on the spot
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "api"))
from harness import ORRERY, Server, train_tiny  # noqa: E402

QUESTIONS = [
    ("The opposite of hot is", ["cold", "loud", "green", "seven"], 0), ("Two and two make", ["nine", "four", "a river", "yesterday"], 1),
    ("Fish live in", ["the sky", "books", "water", "fire"], 2), ("At night the sky is", ["dark", "square", "edible", "wooden"], 0),
    ("The capital of France is", ["London", "Madrid", "Rome", "Paris"], 3), ("Cows give", ["iron", "milk", "glass", "songs"], 1),
    ("Ice is frozen", ["sand", "air", "water", "light"], 2), ("You read a", ["book", "soup", "cloud", "shoe"], 0),
    ("A week has seven", ["years", "days", "metres", "wheels"], 1), ("Birds can", ["fly", "rust", "evaporate", "compile"], 0),
    ("The sun rises in the", ["pocket", "spoon", "west", "east"], 3), ("Snow is", ["white", "hot", "loud", "square"], 0),
]
TEXTS = ["The cat sat on the mat and looked out of the window, where rain was falling on the garden.",
         "To build the program, install the packages first; then configure it, compile it, and run the tests."]
TASKS = {
    "orrery_choice": "output_type: multiple_choice\ndoc_to_text: \"{{context}}\"\ndoc_to_choice: \"{{choices}}\"\ndoc_to_target: \"{{answer}}\"\nmetric_list:\n  - metric: acc\n",
    "orrery_texts": "output_type: loglikelihood_rolling\ndoc_to_text: \"\"\ndoc_to_target: \"{{text}}\"\nmetric_list:\n  - metric: word_perplexity\n  - metric: byte_perplexity\n",
    "orrery_until": "output_type: generate_until\ndoc_to_text: \"{{context}}\"\ndoc_to_target: \"{{choices[answer]}}\"\ngeneration_kwargs:\n  until: [\".\", \"\\n\"]\n  max_gen_toks: 12\n"
                    "  do_sample: false\nmetric_list:\n  - metric: exact_match\n",
}


def write_tasks(folder):
    def lines(name, rows):
        path = folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    choices = lines("choices.jsonl", [dict(context=c, choices=[" " + x for x in options], answer=answer) for c, options, answer in QUESTIONS])
    texts = lines("texts.jsonl", [dict(text=text) for text in TEXTS])
    for name, body in TASKS.items():
        data = texts if name == "orrery_texts" else choices
        (folder / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\ntarget_delimiter: \"\"\n{body}")
    return choices


def harness(server, tokenizer, folder):
    arguments = f"model=m,base_url=http://127.0.0.1:{server.port}/v1/completions,num_concurrent=4,max_retries=2,tokenizer_backend=huggingface,tokenizer={tokenizer},max_length=256"
    return subprocess.run([sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments, "--tasks", ",".join(TASKS), "--include_path", str(folder), "--output_path",
                           str(folder / "out"), "--log_samples", "--batch_size", "1"], capture_output=True, text=True, env=dict(os.environ, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OPENAI_API_KEY="none"))


def main():
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        model = sys.argv[3] if len(sys.argv) > 3 else train_tiny(folder)
        tokenizer = folder / "exported"
        subprocess.run([ORRERY, "convert", model, str(tokenizer), "--to", "hf"], check=True, capture_output=True)
        choices = write_tasks(folder)
        server = Server(model)
        try:
            done = harness(server, tokenizer, folder)
        finally:
            status = server.stop()
        assert done.returncode == 0, (done.stderr or "")[-3000:]
        assert status == 0, server.text()
        results = json.loads(next((folder / "out").rglob("results_*.json")).read_text())["results"]
        samples = [json.loads(line) for line in next((folder / "out").rglob("samples_orrery_choice*.jsonl")).read_text().splitlines()]
        theirs = {s["doc"]["context"]: max(range(4), key=lambda i: float(s["filtered_resps"][i][0])) for s in samples}
        generated = next((folder / "out").rglob("samples_orrery_until*.jsonl")).read_text().splitlines()
        assert len(theirs) == len(QUESTIONS) and len(generated) == len(QUESTIONS)
        ours = json.loads(subprocess.run([ORRERY, "eval", model, "--multiple-choice", str(choices), "--json"], check=True, capture_output=True, text=True).stdout)
        print(json.dumps(dict(harness=results["orrery_choice"]["acc,none"], orrery_eval=ours["acc"], byte_perplexity=results["orrery_texts"]["byte_perplexity,none"])))
        correct = sum(theirs[c] == answer for c, _, answer in QUESTIONS) / len(QUESTIONS)
        # The server multiplies quantized weights by activations of 8 bits, eval decodes them first: there a near-tie may fall either way.
        assert len(sys.argv) > 3 or abs(correct - ours["acc"]) < 1e-9, (correct, ours)
        print(f"ok: {len(QUESTIONS)} questions, {len(TEXTS)} texts and {len(generated)} generations through lm-evaluation-harness; accuracy {correct:.3f}, by orrery eval {ours['acc']:.3f}")


main()
