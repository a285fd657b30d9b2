#!/usr/bin/env python3
"""Drives the real server over its socket, with the standard library only: what OpenAI clients send, expect and break on. A tiny model is
trained first so that there is one with a chat tokenizer. usage: api_test.py ORRERY SOURCE_DIR"""
import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from harness import HELLO, ORRERY, USED, Server, train_tiny

failures = []


def check(condition, what):
    if not condition:
        failures.append(what)
        print("FAILED:", what, file=sys.stderr)


def models_and_health(server):
    status, models = server.call("GET", "/v1/models")
    check(status == 200 and [m["id"] for m in models["data"]] == ["tiny"], "one model is listed")
    check(server.call("GET", "/v1/models/tiny")[0] == 200, "the model by name")
    status, body = server.call("GET", "/v1/models/unknown")
    check(status == 404 and body["error"]["type"] == "not_found_error", "an unknown model is 404")
    status, page, headers = server.call("GET", "/", raw=True)
    check(status == 200 and b"<!doctype html>" in page and b"http://" not in page and b"https://" not in page, "the page loads nothing from elsewhere")


def answers(server):
    body = dict(messages=HELLO, temperature=0, max_completion_tokens=12, model="tiny")
    first, second = server.post("/v1/chat/completions", **body)[1], server.post("/v1/chat/completions", **body)[1]
    check(first["choices"] == second["choices"], "greedy twice is the same")
    usage = first["usage"]
    check(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], "total = prompt + completion")
    one = server.post("/v1/chat/completions", messages=HELLO, temperature=0, max_completion_tokens=1, max_tokens=9)[1]
    check(one["usage"]["completion_tokens"] == 1 and one["choices"][0]["finish_reason"] == "length", "max_completion_tokens wins")
    parts = server.post("/v1/chat/completions", messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]}], temperature=0, max_completion_tokens=12)[1]
    check(parts["choices"] == first["choices"] and parts["usage"]["prompt_tokens"] == usage["prompt_tokens"], "parts are the string")
    zero = server.post("/v1/completions", prompt="abc", max_tokens=0, echo=True)[1]
    check(zero["choices"][0]["text"] == "abc" and zero["choices"][0]["finish_reason"] == "length", "no tokens and echo")


def streams(server):
    for extra in ({}, {"n": 2, "temperature": 1, "seed": 3}, {"logprobs": True, "top_logprobs": 2}, {"stop": ["e", "a t"]}):
        body = dict(dict(messages=HELLO, temperature=0, max_tokens=16, ignore_eos=True), **extra)
        whole = server.post("/v1/chat/completions", **body)[1]
        events, raw = server.stream("/v1/chat/completions", **body)
        check(raw.endswith(b"data: [DONE]\n\n") and all(re.fullmatch(rb"data: [^\n]*", e) for e in raw.split(b"\n\n")[:-1]), f"framing {extra}")
        for choice in whole["choices"]:
            mine = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
            check(mine[0]["delta"] == {"role": "assistant", "content": ""}, f"role first {extra}")
            check("".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"], f"stream = whole {extra}")
            check(mine[-1]["finish_reason"] == choice["finish_reason"] and all(c["finish_reason"] is None for c in mine[:-1]), f"finish_reason {extra}")
            if "logprobs" in extra:
                entries = [t for c in mine if c["logprobs"] for t in c["logprobs"]["content"]]
                check(entries == choice["logprobs"]["content"], "streamed log-probabilities are the whole's")
        check(events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"], f"usage last {extra}")
        check(len({e["id"] for e in events}) == 1, "one id")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(2):
        connection.request("POST", "/v1/chat/completions", json.dumps(dict(messages=HELLO, max_tokens=2, stream=True, ignore_eos=True)))
        response = connection.getresponse()
        text = response.read()
        check(response.status == 200 and b'"choices":[]' not in text, "no usage event unasked; the connection is used again")
        USED["completion"] += 2
        USED["prompt"] += server.call("POST", "/tokenize", {"messages": HELLO})[1]["count"]
        USED["requests"] += 1
    connection.close()


def stop_strings(server):
    body = dict(prompt="The", temperature=0, max_tokens=40, ignore_eos=True)
    text = server.post("/v1/completions", **body)[1]["choices"][0]["text"]
    for stop in (text[5:8], [text[9:12], "never there"], text[3:4]):
        if not stop or not stop[0]:
            continue
        choice = server.post("/v1/completions", stop=stop, **body)[1]["choices"][0]
        marks = [stop] if isinstance(stop, str) else stop
        check(choice["finish_reason"] == "stop" and text.startswith(choice["text"]) and not any(m in choice["text"] for m in marks), f"stop {stop!r}")


def logprobs(server):
    choice = server.post("/v1/chat/completions", messages=HELLO, temperature=0, max_tokens=6, logprobs=True, top_logprobs=20, ignore_eos=True)[1]["choices"][0]
    for entry in choice["logprobs"]["content"]:
        check(len(entry["top_logprobs"]) == 20 and entry["logprob"] == entry["top_logprobs"][0]["logprob"], "the greedy token is the first of 20")
        check(sum(2.718281828459045 ** t["logprob"] for t in entry["top_logprobs"]) <= 1.0001, "probabilities sum to at most 1")
    # Of the older form: the token is among the most likely, as one more where it is none of them; offsets are in characters.
    text = server.post("/v1/completions", prompt="Größe €", echo=True, temperature=2, seed=1, max_tokens=8, logprobs=1, ignore_eos=True)[1]["choices"][0]
    table = text["logprobs"]
    for token, value, top in list(zip(table["tokens"], table["token_logprobs"], table["top_logprobs"]))[1:]:
        # Parts of characters are written alike, so one may stand for another.
        check("\ufffd" in token or (top.get(token) == value and 1 <= len(top) <= 2), f"{token!r} in {top}")
    answered = len(server.post("/v1/completions", prompt="Größe €", max_tokens=0, echo=True)[1]["choices"][0]["text"])
    check(answered == 7 and answered in table["text_offset"], f"the answer begins at character 7: {table['text_offset']}")
    none = server.post("/v1/chat/completions", messages=HELLO, temperature=0, max_tokens=2, logprobs=True, ignore_eos=True)[1]["choices"][0]
    check(all(e["top_logprobs"] == [] for e in none["logprobs"]["content"]), "top_logprobs 0")
    check(server.post("/v1/chat/completions", messages=HELLO, top_logprobs=3)[0] == 400, "top_logprobs without logprobs")


def seeds(server):
    body = dict(prompt="One day", temperature=1.0, max_tokens=24, seed=-7, ignore_eos=True)
    alone = server.post("/v1/completions", **body)[1]["choices"][0]["text"]
    three = [c["text"] for c in server.post("/v1/completions", n=3, **body)[1]["choices"]]
    check(len(set(three)) == 3 and three[0] == alone, "n = 3: three answers, the first is the seed's own")
    busy = []

    def other(i):
        busy.append(server.call("POST", "/v1/completions", dict(prompt="x" * (i + 1), max_tokens=32, temperature=1, ignore_eos=True))[1])
    threads = [threading.Thread(target=other, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    check(server.post("/v1/completions", **body)[1]["choices"][0]["text"] == alone, "the same text among 32 others")
    for thread in threads:
        thread.join()
    for answer in busy:
        USED["prompt"] += answer["usage"]["prompt_tokens"]
        USED["completion"] += answer["usage"]["completion_tokens"]
        USED["requests"] += 1


def limits(server):
    for stream in (False, True):
        status, body = server.call("POST", "/v1/completions", dict(prompt="word " * 600, max_tokens=4, stream=stream))
        check(status == 400 and body["error"]["code"] == "context_length_exceeded" and "256" in body["error"]["message"], "context overflow")
    exact = server.post("/v1/completions", prompt=[[5] * 255], max_tokens=1)
    check(exact[0] == 200 and exact[1]["usage"]["prompt_tokens"] == 255, "a prompt at the limit")


def bad_input(server):
    good = dict(messages=HELLO, max_tokens=1)
    numbers = ["temperature", "top_p", "top_k", "min_p", "n", "max_tokens", "max_completion_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "top_logprobs", "min_tokens", "priority", "best_of"]
    for name in numbers:
        for value in (-1, 0, 2**31, 2**63, 1e308, "1", "hot", [], {}, True):
            status, body = server.call("POST", "/v1/chat/completions", dict(good, **{name: value}))
            check(status == 200 or 400 <= status < 500 and body["error"]["message"], f"{name} = {value!r}: {status}")
            check(status == 400 or not isinstance(value, (str, list, dict)), f"{name} = {value!r} is taken")
        for text in ("NaN", "1e999", "-Infinity"):
            status, _ = server.call("POST", "/v1/chat/completions", ('{"messages":[{"role":"user","content":"a"}],"%s":%s}' % (name, text)).encode())
            check(status == 400, f"{name} = {text}: {status}")
    for what, body in {
        "malformed": b'{"messages": [', "not an object": b"[]", "empty": b"", "missing messages": b"{}", "no messages": b'{"messages":[]}',
        "role": b'{"messages":[{"role":"foo","content":"a"}]}', "depth": b'{"a":' * 100000, "depth in a list": b"[" * 100000,
        "invalid UTF-8": b'{"messages":[{"role":"user","content":"\xff\xfe"}]}', "image": b'{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}',
        "tool_choice without tools": b'{"messages":[{"role":"user","content":"a"}],"tool_choice":"required"}',
        "empty stop": b'{"messages":[{"role":"user","content":"a"}],"stop":""}',
        "bias": b'{"messages":[{"role":"user","content":"a"}],"logit_bias":{"foo":1}}',
    }.items():
        status, answer = server.call("POST", "/v1/chat/completions", body)
        check(status == 400 and answer["error"]["type"] == "invalid_request_error", f"{what}: {status}")
    check(server.call("POST", "/v1/chat/completions", dict(good, temperature=2.5))[0] == 400, "temperature 2.5")
    for name, value in (("continue_final_message", True), ("truncate_prompt_tokens", 5), ("dry_multiplier", 0.8), ("functions", [{"name": "f"}]), ("structured_outputs", {"structural_tag": "x"})):
        status, answer = server.call("POST", "/v1/chat/completions", dict(good, **{name: value}))
        check(status == 400 and answer["error"]["code"] == "unsupported_parameter" and answer["error"]["param"] in (name, "structural_tag"), f"{name} is refused, not dropped: {status}")
    check(server.call("POST", "/v1/chat/completions", dict(good, functions=[{"name": "f"}], function_call="none", continue_final_message=False, dry_multiplier=0))[0] == 200, "what asks for nothing is taken")
    # An object with very many members costs the parser the square of their number.
    begin = time.time()
    status, answer = server.call("POST", "/v1/chat/completions", b'{"messages":[{"role":"user","content":"a",' + b",".join(b'"%x":1' % i for i in range(400000)) + b"}]}")
    check(status == 400 and "members" in answer["error"]["message"] and time.time() - begin < 5, f"400,000 members: {status} after {time.time() - begin:.1f} s")
    check(server.call("POST", "/v1/completions", dict(prompt=[100000], max_tokens=1))[0] == 400, "a token id outside the vocabulary")
    check(server.call("POST", "/v1/completions", dict(prompt=[-1], max_tokens=1))[0] == 400, "a negative token id")
    check(server.call("GET", "/v1/nothing")[0] == 404 and server.call("GET", "/v1/chat/completions")[0] == 405, "unknown route, wrong method")
    check(server.call("GET", "/v1/models/..%2f..%2fetc%2fpasswd")[0] == 404 and server.call("GET", "/../../etc/passwd")[0] == 404, "no path leads out")
    check(server.call("POST", "/v1/completions", b"x" * (9 << 20))[0] == 413, "a body above the limit")
    check(server.call("GET", "/health", headers={"X-Long": "y" * 70000})[0] == 431, "a header above the limit")
    for raw in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(raw)
            check(client.recv(100).startswith(b"HTTP/1.1 400"), f"{raw[:20]!r}")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741824\r\n\r\n")
        check(client.recv(100).startswith(b"HTTP/1.1 413"), "1 GiB is refused before it is sent")
    check(server.call("GET", "/health")[0] == 200, "still alive")


def receive(client, count, end=b""):
    """What comes until there are `count` answers of JSON and the end is reached; what is there when nothing more comes."""
    data = b""
    try:
        while data.count(b"HTTP/1.1 ") < count or not data.endswith(end):
            piece = client.recv(65536)
            if not piece:
                break
            data += piece
    except TimeoutError:
        pass
    return data


def connections(server):
    """One connection and what may follow on it: an answer ends where the client expects it, and the next request is seen, however early it came."""
    body = json.dumps(dict(prompt="a", max_tokens=2)).encode()
    post = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(post * 3)
        check(receive(client, 3, b"}").count(b"HTTP/1.1 200") == 3, "three requests in one write")
        client.sendall(b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\nHEAD /nothing HTTP/1.1\r\nHost: a\r\n\r\nGET http://a/version HTTP/1.1\r\nHost: a\r\n\r\n")
        parts = receive(client, 3, b"}").split(b"\r\n\r\n")
        check([p[:12] for p in parts[:3]] == [b"HTTP/1.1 200", b"HTTP/1.1 404", b"HTTP/1.1 200"] and b"Content-Length: 15" in parts[0] and parts[3] == b'{"version":"orrery"}', f"HEAD has no body; a whole URL is a path: {parts}")
    # As clients do: the next request goes out with the last byte of the answer before it.
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        for i in range(300):
            connection.request("GET", "/metrics" if i % 2 else "/v1/models")
            connection.getresponse().read()
    except (TimeoutError, http.client.HTTPException) as error:
        check(False, f"request {i} of a connection: {error!r}")
    connection.close()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        old = json.dumps(dict(prompt="a", max_tokens=2, stream=True)).encode()
        client.sendall(b"POST /v1/completions HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n" % len(old) + old)
        data = b""
        try:
            while piece := client.recv(65536):
                data += piece
        except TimeoutError:
            check(False, "a stream over HTTP/1.0 has no end")
        check(data.endswith(b"data: [DONE]\n\n") and b"Connection: close" in data, "a stream over HTTP/1.0")
    origin = {"Origin": "http://page.example"}
    for method, path, data in (("OPTIONS", "/v1/completions", None), ("GET", "/v1/models", None), ("POST", "/v1/completions", body), ("POST", "/v1/completions", b"{}"), ("POST", "/v1/completions", body[:-1] + b',"stream":true}')):
        headers = server.call(method, path, data, origin, raw=True)[2]
        check(headers["Access-Control-Allow-Origin"] == origin["Origin"] and headers["Vary"] == "Origin", f"{method} {path}: a page elsewhere may read the answer")
    check(server.call("GET", "/v1/models", raw=True)[2]["Access-Control-Allow-Origin"] is None, "no origin, no header")
    status, answer = server.call("POST", "/v1/completions", b"\x1f\x8b\x08", {"Content-Encoding": "gzip"})
    check(status == 415 and "gzip" in answer["error"]["message"], f"a compressed body: {status}")


def disconnects(server):
    check(server.settles(), "quiet before")
    for body in (dict(prompt="a", max_tokens=240, n=1), dict(prompt="a", max_tokens=240, n=4), dict(prompt="a b c " * 40, max_tokens=60), dict(prompt="a", max_tokens=240, stream=True)):
        clients = []
        for _ in range(12):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            data = json.dumps(dict(body, ignore_eos=True)).encode()
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
            clients.append(client)
        time.sleep(0.05)
        for client in clients:
            client.close()
        check(server.settles(), f"cache and queue are empty after the clients left: {body}")


def tokens_and_embeddings(server):
    ids = server.call("POST", "/tokenize", {"prompt": "Hello there"})[1]
    check(ids["count"] == len(ids["tokens"]) and server.call("POST", "/detokenize", {"tokens": ids["tokens"]})[1]["prompt"] == "Hello there", "there and back")
    check(server.call("POST", "/tokenize", {"content": "Hello there"})[1]["tokens"] == ids["tokens"], "llama.cpp's spelling")
    # A whole prompt may hold special tokens; a chat's message is a text that only looks like one.
    eos = server.call("GET", "/tokenizer_info")[1]["eos_token"]
    one = server.call("POST", "/tokenize", {"prompt": eos, "add_special_tokens": False})[1]["tokens"]
    check(len(one) == 1 and server.call("POST", "/detokenize", {"tokens": one})[1]["prompt"] == eos, f"{eos} is one token: {one}")
    body = dict(prompt="a" + eos, max_tokens=0, echo=True)
    check([server.post("/v1/completions", skip_special_tokens=skip, **body)[1]["choices"][0]["text"] for skip in (True, False)] == ["a", "a" + eos], "skip_special_tokens")
    plain, chat = ([len(server.call("POST", "/tokenize", {"messages": [{"role": "user", "content": text}]})[1]["tokens"]) for text in ("a", "a" + eos)])
    check(chat > plain + 1, "a message cannot end its turn")
    listed = server.call("POST", "/v1/embeddings", {"input": ["Hello", "there"]})[1]["data"]
    check(len(listed) == 2 and abs(sum(x * x for x in listed[0]["embedding"]) - 1) < 1e-4, "embeddings of length 1")
    import base64, struct
    packed = base64.b64decode(server.call("POST", "/v1/embeddings", {"input": "Hello", "encoding_format": "base64"})[1]["data"][0]["embedding"])
    check(struct.unpack(f"<{len(packed) // 4}f", packed) == tuple(struct.unpack("<f", struct.pack("<f", x))[0] for x in listed[0]["embedding"]), "base64 is the same numbers")


def structured(server):
    schema = {"type": "object", "properties": {"name": {"enum": ["ann", "bob"]}, "ages": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}}, "required": ["name", "ages"], "additionalProperties": False}
    for seed in range(4):
        body = dict(messages=HELLO, temperature=1, seed=seed, max_tokens=120, response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": schema, "strict": True}})
        choice = server.post("/v1/chat/completions", **body)[1]["choices"][0]
        if choice["finish_reason"] == "stop":
            value = json.loads(choice["message"]["content"])
            check(set(value) == {"name", "ages"} and value["name"] in ("ann", "bob") and 1 <= len(value["ages"]) <= 2, f"schema: {value}")
    text = server.post("/v1/completions", prompt="x", temperature=1, seed=1, max_tokens=40, structured_outputs={"regex": "[ab]{3}-[0-9]{2}"})[1]["choices"][0]
    check(re.fullmatch("[ab]{3}-[0-9]{2}", text["text"]) and text["finish_reason"] == "stop", f"regex: {text}")
    check(server.post("/v1/completions", prompt="x", max_tokens=20, guided_choice=["left", "right"])[1]["choices"][0]["text"] in ("left", "right"), "choice")
    for bad in ({"structured_outputs": {"regex": "(a"}}, {"guided_regex": "a{0,1000000000}"}, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, {"grammar": "root ::= missing"}, {"response_format": {"type": "xml"}}):
        status, body = server.call("POST", "/v1/completions", dict(prompt="x", max_tokens=4, **bad))
        check(status == 400 and body["error"]["message"], f"{bad}: {status}")
    # In the schema's order, not the alphabet's; all of it required, so that a seed cannot leave any out.
    ordered = {"type": "object", "properties": {name: {"type": "boolean"} for name in "zam"}, "required": ["a", "m", "z"], "additionalProperties": False}
    for form in ({"response_format": {"type": "json_schema", "json_schema": {"schema": ordered}}}, {"response_format": {"type": "json_object", "schema": ordered}}, {"structured_outputs": {"json": ordered}}):
        choice = server.post("/v1/chat/completions", messages=HELLO, temperature=1, seed=1, max_tokens=220, **form)[1]["choices"][0]
        check(re.findall('"([zam])"', choice["message"]["content"])[:3] == ["z", "a", "m"], f"members in the schema's order: {choice}")
    named = {"type": "function", "function": {"name": "f"}}
    for function, shape in ((dict(named["function"], parameters=ordered), r'\{\s*"z".*"a".*"m".*\}'), (named["function"], r"\{\s*\}")):
        choice = server.post("/v1/chat/completions", messages=HELLO, temperature=1, seed=1, max_tokens=220, tools=[{"type": "function", "function": function}], tool_choice=named)[1]["choices"][0]
        check(choice["finish_reason"] == "length" or re.fullmatch(shape, choice["message"]["tool_calls"][0]["function"]["arguments"], re.S), f"arguments in order, and none where no parameters are: {choice}")
    answer = server.call("POST", "/v1/responses", dict(input="Hello", temperature=1, seed=1, max_output_tokens=220, text={"format": {"type": "json_schema", "name": "p", "schema": ordered}}))[1]
    USED["prompt"] += answer["usage"]["input_tokens"]
    USED["completion"] += answer["usage"]["output_tokens"]
    USED["requests"] += 1
    check(re.findall('"([zam])"', answer["output"][0]["content"][0]["text"])[:3] == ["z", "a", "m"], f"/v1/responses too: {answer}")
    check(server.post("/v1/completions", prompt="x", guided_regex="ab", min_tokens=20, max_tokens=40)[1]["choices"][0]["text"] == "ab", "min_tokens cannot make a grammar longer")
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"hot": {"type": "boolean"}}, "required": ["hot"], "additionalProperties": False}}}]
    for choice, reason in (("required", "tool_calls"), ({"type": "function", "function": {"name": "weather"}}, "stop")):
        body = dict(messages=HELLO, temperature=1, seed=2, max_tokens=120, tools=tools, tool_choice=choice, parallel_tool_calls=False)
        whole = server.post("/v1/chat/completions", **body)[1]["choices"][0]
        check(whole["finish_reason"] == reason and whole["message"]["content"] is None, f"tool_choice {choice}: {whole}")
        call = (whole["message"].get("tool_calls") or [{"function": {"name": "", "arguments": "{}"}}])[0]["function"]
        check(call["name"] == "weather" and set(json.loads(call["arguments"])) == {"hot"}, f"arguments: {call}")
        events, _ = server.stream("/v1/chat/completions", **body)
        pieces = [t for e in events for c in e["choices"] for t in c["delta"].get("tool_calls", [])]
        check(pieces and pieces[0]["function"]["name"] == "weather" and "".join(p["function"]["arguments"] for p in pieces) == call["arguments"] and all("id" not in p for p in pieces[1:]), f"streamed call: {pieces}")
    for seed in range(40):  # whether a seed makes two calls depends on the processor's arithmetic
        events, _ = server.stream("/v1/chat/completions", messages=HELLO, temperature=1, seed=seed, max_tokens=200, tools=tools, tool_choice="required")
        pieces = [t for e in events for c in e["choices"] for t in c["delta"].get("tool_calls", [])]
        indices = [p["index"] for p in pieces]
        check(indices == sorted(indices) and set(indices) == set(range(max(indices) + 1)), f"parallel calls come in order: {indices}")
        if max(indices) == 0:
            continue
        first = "".join(p["function"]["arguments"] for p in pieces if p["index"] == 0)
        check(set(json.loads(first)) == {"hot"} and len({p["id"] for p in pieces if "id" in p}) == max(indices) + 1, f"parallel calls: {pieces}")
        break
    else:
        check(False, "no seed gave parallel calls")
    cut = server.post("/v1/chat/completions", messages=HELLO, tools=tools, tool_choice="required", max_tokens=2)[1]["choices"][0]
    check(cut["finish_reason"] == "length", "a call cut short ends with length")
    for choice in ("none", "auto"):
        check(server.post("/v1/chat/completions", messages=HELLO, tools=tools, tool_choice=choice, max_tokens=4)[0] == 200, f"tool_choice {choice}")
    check(server.call("POST", "/v1/chat/completions", dict(messages=HELLO, tools=tools, tool_choice={"type": "function", "function": {"name": "x"}}))[0] == 400, "a tool that is not there")


def quantized(model, folder):
    """The cost of quantizing is measured on the model's own text, and is that of the bits; the file is served."""
    costs = {}
    for kind in ("q8_0", "q4_0"):
        out = subprocess.run([ORRERY, "quantize", model, f"{folder}/{kind}.gguf", "--to", kind, "--check", "--tokens", "600", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        check(out.returncode == 0, f"quantize --to {kind}")
        costs[kind] = json.loads(out.stdout)["check"]
    check(0 <= costs["q8_0"]["divergence"] < costs["q4_0"]["divergence"] < 0.1, f"divergence of both types: {costs}")
    check(costs["q8_0"]["same_top"] > 0.95, f"first choices of Q8_0: {costs}")
    server = Server(f"{folder}/q4_0.gguf")
    check(server.post("/v1/completions", prompt="The", max_tokens=4)[0] == 200, "a quantized file is served")
    check(server.stop() == 0, "the server of a quantized file ends")


def wrong_flags(model):
    """What cannot be listened on or computed with is said before a request comes, naming the flag that was given."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        for flags, status, words in ((["--host", "nowhere.invalid"], 3, ["nowhere.invalid", "--host"]), (["--port", str(other.getsockname()[1])], 3, ["in use", "--port"]),
                                     (["--tls-cert", "/dev/null", "--tls-key", "/dev/null"], 3, ["--tls-cert /dev/null", "PEM"]), (["--max-model-len", "100000"], 2, ["--max-model-len 100000", "at most 256"]),
                                     (["--threads", "-3"], 2, ["--threads", "found -3"]), (["--kv-memory", "1KiB"], 2, ["--kv-memory 1KiB"])):
            ran = subprocess.run([ORRERY, "serve", model, *flags, *([] if "--port" in flags else ["--port", "0"])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=60)
            check(ran.returncode == status and all(word in ran.stderr for word in words), f"{flags}: {ran.returncode} {ran.stderr}")
    ran = subprocess.run([ORRERY, "bench", "serve", "--url", "http://127.0.0.1:9"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    check(ran.returncode == 3 and "(Connection refused)" in ran.stderr, f"bench serve where nobody is: {ran.stderr}")
    server = Server(model, "--host", "localhost")
    check(server.call("GET", "/health")[0] == 200 and server.stop() == 0, "a host by name")


def no_chat(model, folder):
    """A model that was not trained on chats says so instead of answering what its tokenizer makes of ChatML's marks."""
    plain = folder / "plain"
    subprocess.run([ORRERY, "convert", model, str(plain)], check=True, capture_output=True, timeout=60)
    for path in plain.glob("*.json"):
        path.write_text(path.read_text().replace("<|im_start|>", "<|other|>"))
    config = plain / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}))
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    server = Server(str(plain))
    for path, body in (("/v1/chat/completions", dict(messages=HELLO)), ("/tokenize", dict(messages=HELLO)), ("/v1/responses", dict(input="Hello"))):
        status, answer = server.call("POST", path, body)
        check(status == 400 and "not trained to chat" in answer["error"]["message"] and "/v1/completions" in answer["error"]["message"], f"{path} of a model without a template: {status} {answer}")
    check(server.call("POST", "/v1/completions", dict(prompt="a", max_tokens=2))[0] == 200, "it goes on with a text")
    check(server.stop() == 0, "the server of a model without a template ends")


def counters(server):
    check(server.metric("vllm:prompt_tokens_total") == USED["prompt"], f"prompt tokens: {server.metric('vllm:prompt_tokens_total')} counted, {USED['prompt']} seen")
    check(server.metric("vllm:generation_tokens_total") == USED["completion"], f"generated tokens: {server.metric('vllm:generation_tokens_total')} counted, {USED['completion']} seen")
    check(server.metric("vllm:request_success_total") == USED["requests"] == server.metric("vllm:e2e_request_latency_seconds_count"), "one count a choice")


def queue_keys_and_drain(model, folder):
    keys = folder / "keys"
    keys.write_text("secret-1\nsecret-2\n")
    server = Server(model, "--max-num-seqs", "1", "--max-queue", "2", "--api-key-file", str(keys), "--strict-model-name", wait=True)
    auth = {"Authorization": "Bearer secret-2"}
    for route in ("/v1/models", "/metrics", "/v1/completions", "/tokenize", "/nothing"):
        status, body = server.call("GET", route)
        check(status == 401 and body["error"]["type"] == "authentication_error", f"{route} needs a key")
    check(server.call("GET", "/v1/models", headers={"Authorization": "Bearer secret-3"})[0] == 401 and server.call("GET", "/v1/models", headers={"X-Api-Key": "secret-1"})[0] == 200, "keys")
    check(server.call("POST", "/v1/completions", dict(prompt="a", model="gpt-x"), auth)[0] == 404, "strict model name")
    results = []

    def ask():
        results.append(server.call("POST", "/v1/completions", dict(prompt="a", max_tokens=200, ignore_eos=True), auth, raw=True))
    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [r for r in results if r[0] == 429]
    check(refused and all(int(r[2]["Retry-After"]) >= 1 and json.loads(r[1])["error"]["message"] for r in refused), "a full queue is 429 with Retry-After")
    check(len(refused) + sum(r[0] == 200 for r in results) == 16, "the others are answered")
    results.clear()
    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    thread.join()
    check(results[0][0] == 200, "SIGTERM: what runs is finished")
    check(server.process.wait(40) == 0, "SIGTERM: exit status 0")


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model = train_tiny(folder)
        server = Server(model, "--max-num-seqs", "8", "--speculate", "3")
        for part in (models_and_health, answers, streams, stop_strings, logprobs, seeds, structured):
            part(server)
        limits(server)
        counters(server)
        for part in (bad_input, connections, disconnects, tokens_and_embeddings):
            part(server)
        check(server.process.poll() is None, "the server is alive")
        check(server.stop() == 0, "exit status")
        queue_keys_and_drain(model, folder)
        quantized(model, folder)
        wrong_flags(model)
        no_chat(model, folder)
    print(f"{len(failures)} failed")
    sys.exit(bool(failures))


main()
