#!/usr/bin/env python3
"""Idle connections, overload and random cancels against a server of its own on 127.0.0.1, for about a minute, standard library only.
usage: serve_abuse.py ORRERY MODEL. Prints resident memory, the answer beside the idle connections, how fast the overload was refused, and
what was left at the end."""
import http.client
import json
import random
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time

log = tempfile.TemporaryFile("w+")
server = subprocess.Popen([sys.argv[1], "serve", sys.argv[2], "--port", "0", "--max-model-len", "1024", "--max-queue", "16", "--max-num-seqs", "8", "--kv-memory", "256MiB"], stderr=log)
while True:
    log.seek(0)
    text = log.read()
    if "ready" in text:
        break
    assert server.poll() is None, text
    time.sleep(0.1)
port = int(re.search(r"listening http://[^:]*:(\d+)", text)[1])
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def rss_mib():
    return next(int(line.split()[1]) // 1024 for line in open(f"/proc/{server.pid}/status") if line.startswith("RssAnon"))


def post(body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    begin = time.time()
    connection.request("POST", "/v1/completions", json.dumps(body))
    response = connection.getresponse()
    response.read()
    return response.status, time.time() - begin


def cancels(seed, end):
    rng = random.Random(seed)
    while time.time() < end:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            data = json.dumps(dict(prompt="w " * rng.randint(1, 200), max_tokens=500, stream=rng.random() < 0.5, n=rng.choice([1, 1, 3]), ignore_eos=True)).encode()
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
            time.sleep(rng.random() * 0.3)


try:
    print("resident MiB at start", rss_mib())
    idle = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(min(10000, limit - 500))]
    print(len(idle), "idle connections, resident MiB", rss_mib(), "; an answer of 4 tokens beside them: status, seconds", post(dict(prompt="a", max_tokens=4)))
    for client in idle:
        client.close()
    results = []
    threads = [threading.Thread(target=lambda: results.append(post(dict(prompt="a", max_tokens=16, ignore_eos=True)))) for _ in range(240)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = sorted(seconds for status, seconds in results if status == 429)
    print("240 at once:", sum(s == 200 for s, _ in results), "answered,", len(refused), "refused, p50 and p99 ms", [round(1e3 * refused[int(len(refused) * q)], 1) for q in (0.5, 0.99)] if refused else None)
    for k in range(3):
        end = time.time() + 12
        threads = [threading.Thread(target=cancels, args=(k * 10 + i, end)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("12 s of random cancels, resident MiB", rss_mib())
    time.sleep(2)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    for line in connection.getresponse().read().decode().splitlines():
        if re.match(r"vllm:(num_requests|kv_cache|request_success)", line):
            print(line)
finally:
    server.terminate()
    print("exit status", server.wait(40))
