#!/usr/bin/env python3
"""Idle connections, overload and random cancels against a server of its own on 127.0.0.1; standard library only.
usage: serve_abuse.py ORRERY MODEL [--minutes M]

1. 10,000 idle connections: what they cost, and an answer beside them.
2. Overload, three rounds: `orrery bench serve` with more clients than the server runs sequences gives the peak; then requests arrive at ten times the rate
   that it completed. Printed: the share of the peak's tokens/s that is kept, and after how long the refusals came.
3. M minutes of random cancels (default 0.6): resident memory twelve times meanwhile, what runs, waits and is in the cache at the end."""
import argparse
import http.client
import json
import random
import re
import resource
import socket
import subprocess
import tempfile
import threading
import time

SEQUENCES, QUEUE, TOKENS = 8, 16, 64
parser = argparse.ArgumentParser()
parser.add_argument("orrery")
parser.add_argument("model")
parser.add_argument("--minutes", type=float, default=0.6)
args = parser.parse_args()

log = tempfile.TemporaryFile("w+")
server = subprocess.Popen([args.orrery, "serve", args.model, "--port", "0", "--max-model-len", "256", "--max-queue", str(QUEUE), "--max-num-seqs", str(SEQUENCES), "--kv-memory", "256MiB"], stderr=log)


def log_text():
    log.seek(0)
    return log.read()


while "ready" not in log_text():
    assert server.poll() is None, log_text()
    time.sleep(0.1)
port = int(re.search(r"listening http://[^:]*:(\d+)", log_text())[1])
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def resident_mib():
    return next(int(line.split()[1]) // 1024 for line in open(f"/proc/{server.pid}/status") if line.startswith("RssAnon"))


def answer_of(method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, json.dumps(body) if body else None)
    response = connection.getresponse()
    return response.status, response.read().decode()


def idle_connections():
    connections = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(min(10000, limit - 500))]
    begin = time.time()
    status, _ = answer_of("POST", "/v1/completions", dict(prompt="a", max_tokens=4))
    print(f"{len(connections)} idle connections: resident {resident_mib()} MiB; beside them an answer of 4 tokens, status {status}, {time.time() - begin:.2f} s", flush=True)
    for connection in connections:
        connection.close()


def load(*options):
    command = [args.orrery, "bench", "serve", "--url", f"http://127.0.0.1:{port}", "--prompt-words", "16", "--max-tokens", str(TOKENS), "--json", *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


def overload():
    load("--clients", str(SEQUENCES), "--requests", "24")
    kept, latencies = [], []
    for _ in range(3):
        peak = load("--clients", str(SEQUENCES + QUEUE // 2), "--requests", "100")
        rate = 10 * peak["requests_per_second"]
        over = load("--rate", f"{rate:.1f}", "--requests", f"{10 * rate:.0f}")
        latency = over["refusal_latency_ms"]
        kept.append(over["tokens_per_second"] / peak["tokens_per_second"])
        latencies.append(latency["p99"])
        print(f"peak {peak['tokens_per_second']:.0f} tokens/s, {peak['requests_per_second']:.1f} requests/s; {rate:.0f} requests/s for 10 s: {over['completed']} answered at {over['tokens_per_second']:.0f} tokens/s, {kept[-1]:.2f} of the peak; "
              f"failures {over['failures']}, refused after {latency['p50']:.1f} (p50), {latency['p90']:.1f} (p90), {latency['p99']:.1f} ms (p99)", flush=True)
    print(f"median of three rounds: {sorted(kept)[1]:.2f} of the peak kept, p99 of a refusal {sorted(latencies)[1]:.1f} ms", flush=True)


def cancel_until(end, seed, sent):
    rng = random.Random(seed)
    while time.time() < end:
        with socket.create_connection(("127.0.0.1", port), timeout=600) as client:
            data = json.dumps(dict(prompt="w " * rng.randint(1, 100), max_tokens=500, stream=rng.random() < 0.5, n=rng.choice([1, 1, 3]), ignore_eos=True)).encode()
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
            sent[seed] += 1
            time.sleep(rng.random() * 0.3)


def cancels():
    sent, resident, end = [0] * 8, [], time.time() + 60 * args.minutes
    threads = [threading.Thread(target=cancel_until, args=(end, k, sent)) for k in range(len(sent))]
    for thread in threads:
        thread.start()
    for _ in range(12):
        time.sleep(5 * args.minutes)
        resident.append(resident_mib())
    for thread in threads:
        thread.join()
    time.sleep(2)
    left = [line for line in answer_of("GET", "/metrics")[1].splitlines() if re.match(r"vllm:(num_requests_(running|waiting)|kv_cache_usage_perc)\b", line)]
    print(f"{args.minutes:g} minutes of random cancels, {sum(sent)} requests: resident MiB {resident}; then: {'; '.join(left)}", flush=True)


try:
    print("resident MiB at the start", resident_mib(), flush=True)
    idle_connections()
    overload()
    cancels()
finally:
    server.terminate()
    print("exit status", server.wait(40))
