"""What the tests of the HTTP API share: a tiny model that is trained on the spot, and a server on it that is driven over its socket."""
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

ORRERY, SOURCE = os.path.realpath(sys.argv[1]), os.path.realpath(sys.argv[2])
RUN = """
[model]
family = "llama"
hidden_size = 64
num_layers = 2
num_heads = 4
num_kv_heads = 2
intermediate_size = 128
vocab_size = 512
max_seq_len = 256
[data]
train = ["SOURCE/*.md"]
val_fraction = 0.1
tokenizer = "train:bpe"
[train]
steps = 5
global_batch_size = 4
[optimizer]
lr = 1e-3
"""
USED = {"prompt": 0, "completion": 0, "requests": 0}  # what the answers to post() and stream() said
HELLO = [{"role": "user", "content": "Hello there"}]


def train_tiny(folder):
    """A model with a chat tokenizer and a context of 256, in folder/tiny."""
    folder = pathlib.Path(folder)
    (folder / "run.toml").write_text(RUN.replace("SOURCE", SOURCE))
    model = str(folder / "tiny")
    subprocess.run([ORRERY, "train", "run.toml", "--set", f"checkpoint.dir={model}"], cwd=folder, check=True, capture_output=True, timeout=120)
    return model


class Server:
    def __init__(self, model, *options, wait=True, scheme="http"):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([ORRERY, "serve", model, "--port", "0", "--threads", "2", *options], stderr=self.log, stdin=subprocess.DEVNULL)
        end = time.time() + 60
        while not (found := re.search(scheme + r"://[\w.]+:(\d+)", self.text())):
            assert self.process.poll() is None and time.time() < end, self.text()
            time.sleep(0.02)
        self.port = int(found[1])
        while wait and self.call("GET", "/health")[0] != 200:
            assert self.process.poll() is None and time.time() < end, self.text()
            time.sleep(0.05)

    def text(self):
        self.log.seek(0)
        return self.log.read()

    def call(self, method, path, body=None, headers=None, raw=False):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        if raw:
            return response.status, text, response.headers
        try:
            return response.status, json.loads(text) if text else None
        except ValueError:
            return response.status, text.decode()

    def post(self, path, **body):
        status, answer = self.call("POST", path, body)
        if status == 200 and "usage" in answer and "embed" not in path:
            USED["prompt"] += answer["usage"]["prompt_tokens"]
            USED["completion"] += answer["usage"]["completion_tokens"]
            USED["requests"] += len(answer["choices"])
        return status, answer

    def stream(self, path, **body):
        """All events of a stream, and the raw bytes."""
        status, raw, headers = self.call("POST", path, dict(body, stream=True, stream_options={"include_usage": True}), raw=True)
        assert status == 200 and headers["Content-Type"] == "text/event-stream", raw
        events = [json.loads(e[6:]) for e in raw.decode().split("\n\n")[:-2]]
        USED["prompt"] += events[-1]["usage"]["prompt_tokens"]
        USED["completion"] += events[-1]["usage"]["completion_tokens"]
        USED["requests"] += body.get("n", 1)
        return events, raw

    def metric(self, name):
        total = 0.0
        for line in self.call("GET", "/metrics")[1].splitlines():
            if line.startswith(name + "{") or line.startswith(name + " "):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def settles(self, seconds=5):
        end = time.time() + seconds
        while time.time() < end:
            if self.metric("vllm:num_requests_running") == 0 and self.metric("vllm:kv_cache_usage_perc") == 0 and self.metric("vllm:num_requests_waiting") == 0:
                return True
            time.sleep(0.02)
        return False

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)
