#!/usr/bin/env python3
"""The conformance checklist of an OpenAI-compatible server, item by item, each a test that can be run alone; then /v1/responses, best_of and TLS.
Standard library only. usage: conformance_test.py ORRERY SOURCE_DIR [unittest arguments, e.g. Checklist.test_07_split_characters]"""
import http.client
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from harness import HELLO, USED, Server, train_tiny

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"hot": {"type": "boolean"}}, "required": ["hot"], "additionalProperties": False}}}
FOLDER = tempfile.TemporaryDirectory()
MODEL = None


def setUpModule():
    global MODEL
    MODEL = train_tiny(FOLDER.name)


def tearDownModule():
    FOLDER.cleanup()


def post_raw(port, path, body):
    data = json.dumps(body).encode()
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    client.sendall(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(data)) + data)
    return client


class Checklist(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(MODEL, "--max-num-seqs", "8", "--speculate", "3")

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def ok(self, path, **body):
        status, answer = self.server.post(path, **body)
        self.assertEqual(status, 200, answer)
        return answer

    def test_01_health_and_models(self):
        loading = Server(MODEL, wait=False)  # its first answers may be 503, never another error
        seen = set()
        while 200 not in seen:
            seen.add(loading.call("GET", "/health")[0])
        self.assertLessEqual(seen, {200, 503})
        loading.stop()
        self.assertEqual([m["id"] for m in self.server.call("GET", "/v1/models")[1]["data"]], ["tiny"])
        status, body = self.server.call("GET", "/v1/models/unknown")
        self.assertEqual((status, body["error"]["type"]), (404, "not_found_error"))

    def test_02_greedy_twice_and_usage(self):
        first, second = (self.ok(CHAT, messages=HELLO, temperature=0, max_tokens=12) for _ in range(2))
        self.assertEqual(first["choices"], second["choices"])
        usage = first["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
        one = self.ok(CHAT, messages=HELLO, max_completion_tokens=1)
        self.assertEqual((one["usage"]["completion_tokens"], one["choices"][0]["finish_reason"]), (1, "length"))

    def test_02_members_are_in_the_order_that_people_expect(self):
        def in_order(answer, *names):
            self.assertEqual([name for name in answer if name in names], list(names))
        for path, kind, body in ((CHAT, "message", dict(messages=HELLO)), (TEXT, "text", dict(prompt="Hello"))):
            whole = self.ok(path, max_tokens=2, **body)
            in_order(whole, "id", "object", "created", "model", "choices", "usage")
            in_order(whole["choices"][0], "index", kind, "logprobs", "finish_reason")
            in_order(whole["usage"], "prompt_tokens", "completion_tokens", "total_tokens")
            for event in self.server.stream(path, max_tokens=2, **body)[0]:
                in_order(event, "id", "object", "created", "model", "choices", "usage")
                for choice in event["choices"]:
                    in_order(choice, "index", "delta" if path == CHAT else kind, "logprobs", "finish_reason")
        in_order(self.server.call("GET", "/v1/models")[1]["data"][0], "id", "object", "created", "owned_by")

    def test_03_content_parts(self):
        parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]}]
        whole, cut = (self.ok(CHAT, messages=m, temperature=0, max_tokens=8) for m in (HELLO, parts))
        self.assertEqual((whole["choices"], whole["usage"]["prompt_tokens"]), (cut["choices"], cut["usage"]["prompt_tokens"]))

    def test_04_stream_equals_whole(self):
        for extra in ({}, {"n": 2, "temperature": 1, "seed": 3}, {"logprobs": True, "top_logprobs": 2}, {"stop": ["e"]}, {"tools": [WEATHER], "tool_choice": "required", "temperature": 1, "seed": 2, "max_tokens": 60}):
            body = dict(dict(messages=HELLO, temperature=0, max_tokens=16, ignore_eos=True), **extra)
            whole, (events, _) = self.ok(CHAT, **body), self.server.stream(CHAT, **body)
            for choice in whole["choices"]:
                mine = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
                self.assertEqual("".join(c["delta"].get("content") or "" for c in mine), choice["message"]["content"] or "", extra)
                arguments = "".join(t["function"]["arguments"] for c in mine for t in c["delta"].get("tool_calls", []))
                self.assertEqual(arguments, "".join(t["function"]["arguments"] for t in choice["message"].get("tool_calls", [])))
                self.assertEqual(mine[-1]["finish_reason"], choice["finish_reason"])
            self.assertEqual(events[-1]["usage"]["completion_tokens"], whole["usage"]["completion_tokens"])

    def test_05_framing(self):
        # Each event in a read of its own: bytes are taken as they come, and every take is whole events.
        client = post_raw(self.server.port, CHAT, dict(messages=HELLO, max_tokens=12, stream=True, ignore_eos=True))
        data, takes = b"", []
        while not data.endswith(b"\r\n0\r\n\r\n"):  # a header alone may end in 0 too: the request's id
            takes.append(client.recv(65536))
            self.assertTrue(takes[-1], data)
            data += takes[-1]
        body = data.split(b"\r\n\r\n", 1)[1]
        chunks = re.findall(rb"(?s)([0-9a-f]+)\r\n(data: [^\n]*\n\n)\r\n", body)
        self.assertTrue(all(int(size, 16) == len(event) for size, event in chunks))
        self.assertEqual(chunks[-1][1], b"data: [DONE]\n\n")
        self.assertEqual(b"".join(b"%s\r\n%s\r\n" % c for c in chunks) + b"0\r\n\r\n", body)
        self.assertTrue(all(take.endswith(b"\r\n") for take in takes))
        client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertTrue(client.recv(100).startswith(b"HTTP/1.1 200"))
        client.close()

    def test_06_include_usage(self):
        events, _ = self.server.stream(CHAT, messages=HELLO, max_tokens=3)
        self.assertEqual(events[-1]["choices"], [])
        self.assertTrue(all(e["usage"] is None for e in events[:-1]))
        raw = self.server.call("POST", CHAT, dict(messages=HELLO, max_tokens=3, stream=True), raw=True)[1]
        self.assertTrue(all(json.loads(e[6:])["choices"] for e in raw.decode().split("\n\n")[:-2]))

    def test_07_split_characters(self):
        # A grammar makes the model say characters that its vocabulary spells byte by byte.
        text = "é👍🏽你é"
        body = dict(messages=HELLO, guided_choice=[text], logprobs=True, max_tokens=60)
        whole, (events, _) = self.ok(CHAT, **body)["choices"][0], self.server.stream(CHAT, **body)
        self.assertEqual(whole["message"]["content"], text)
        deltas = [c["delta"].get("content") or "" for e in events for c in e["choices"]]
        self.assertEqual("".join(deltas), text)
        self.assertFalse(any("\ufffd" in d for d in deltas))
        self.assertEqual(bytes(b for t in whole["logprobs"]["content"] for b in t["bytes"]), text.encode())
        self.assertGreater(len(whole["logprobs"]["content"]), len(text))

    def test_08_stop_strings(self):
        body = dict(prompt="The", temperature=0, max_tokens=40, ignore_eos=True)
        text = self.ok(TEXT, **body)["choices"][0]["text"]
        for stop in (text[4:5], [text[4:6], text[4:7]], [text[7:12], "never there"], text[3:9]):
            marks = [stop] if isinstance(stop, str) else stop
            choice = self.ok(TEXT, stop=stop, **body)["choices"][0]
            self.assertEqual(choice["finish_reason"], "stop")
            self.assertFalse(any(m in choice["text"] for m in marks))
            self.assertEqual(choice["text"], text[: min(text.find(m) for m in marks if m in text)])
            events, _ = self.server.stream(TEXT, stop=stop, **body)
            self.assertEqual("".join(c["text"] for e in events for c in e["choices"]), choice["text"])
        inside = self.ok(TEXT, prompt=text[:8] + "QQ", stop="QQ", temperature=0, max_tokens=4)
        self.assertGreaterEqual(inside["usage"]["completion_tokens"], 1)

    def test_09_logprobs(self):
        for top in (0, 1, 20):
            for entry in self.ok(CHAT, messages=HELLO, temperature=0, max_tokens=5, logprobs=True, top_logprobs=top, ignore_eos=True)["choices"][0]["logprobs"]["content"]:
                self.assertEqual(len(entry["top_logprobs"]), top)
                self.assertLessEqual(sum(2.718281828459045 ** t["logprob"] for t in entry["top_logprobs"]), 1 + 1e-4)
                if top:
                    self.assertEqual(entry["logprob"], entry["top_logprobs"][0]["logprob"])
        self.assertEqual(self.server.post(CHAT, messages=HELLO, logprobs=True, top_logprobs=21)[0], 400)

    def test_10_echo_logprobs(self):
        # The scorer is the decoding path: what a text's tokens were given when they were generated, greedily, one step a token.
        prompts = [[7 + i, 9, 30 + i] for i in range(8)]
        said = self.ok(TEXT, prompt=prompts, temperature=0, max_tokens=20, logprobs=1, ignore_eos=True, return_token_ids=True)
        texts = []
        for prompt, choice in zip(prompts, said["choices"]):
            self.assertEqual(len(choice["logprobs"]["tokens"]), 20)
            texts.append(prompt)
        scored = self.ok(TEXT, prompt=texts, temperature=0, max_tokens=20, logprobs=1, echo=True, ignore_eos=True)
        for prompt, choice, alone in zip(texts, scored["choices"], said["choices"]):
            logprobs = choice["logprobs"]
            self.assertEqual(len(logprobs["tokens"]), len(prompt) + 20)
            self.assertIsNone(logprobs["token_logprobs"][0])
            self.assertIsNone(logprobs["top_logprobs"][0])
            self.assertTrue(all(a <= b for a, b in zip(logprobs["text_offset"], logprobs["text_offset"][1:])))
            self.assertEqual(logprobs["token_logprobs"][len(prompt):], alone["logprobs"]["token_logprobs"])
            self.assertTrue(all(max(t.values()) >= l for t, l in zip(logprobs["top_logprobs"][1:], logprobs["token_logprobs"][1:])))
        # lm-eval's request: the generated text again, now as a prompt.
        ids = [self.server.call("POST", "/tokenize", {"prompt": c["text"], "add_special_tokens": False})[1]["tokens"] for c in scored["choices"]]
        again = self.ok(TEXT, prompt=ids, max_tokens=1, logprobs=1, echo=True, temperature=0)
        for prompt, choice in zip(ids, again["choices"]):
            self.assertEqual(len(choice["logprobs"]["tokens"]), len(prompt) + 1)
        nothing = self.ok(TEXT, prompt=ids[0], max_tokens=0, logprobs=1, echo=True)
        self.assertEqual(nothing["choices"][0]["logprobs"]["token_logprobs"], again["choices"][0]["logprobs"]["token_logprobs"][: len(ids[0])])
        self.assertEqual(nothing["usage"]["completion_tokens"], 0)

    def test_11_n_choices(self):
        body = dict(messages=HELLO, n=3, seed=5, temperature=1, max_tokens=12, ignore_eos=True)
        first, second = ([c["message"]["content"] for c in self.ok(CHAT, **body)["choices"]] for _ in range(2))
        self.assertEqual(first, second)
        self.assertEqual(len(set(first)), 3)
        events, _ = self.server.stream(CHAT, **body)
        for index in range(3):
            mine = [c for e in events for c in e["choices"] if c["index"] == index]
            self.assertEqual(sum("role" in c["delta"] for c in mine), 1)
            self.assertEqual(sum(c["finish_reason"] is not None for c in mine), 1)

    def test_12_seed_under_load(self):
        body = dict(prompt="One day", temperature=1.0, max_tokens=24, seed=-7, ignore_eos=True)
        alone = self.ok(TEXT, **body)["choices"][0]["text"]
        others = [threading.Thread(target=self.server.call, args=("POST", TEXT, dict(prompt="x" * (i + 1), max_tokens=32, temperature=1, ignore_eos=True))) for i in range(32)]
        for thread in others:
            thread.start()
        self.assertEqual(self.ok(TEXT, **body)["choices"][0]["text"], alone)
        for thread in others:
            thread.join()

    def test_13_tool_choice(self):
        for choice, reason in (("required", "tool_calls"), ({"type": "function", "function": {"name": "weather"}}, "stop")):
            message = self.ok(CHAT, messages=HELLO, temperature=1, seed=2, max_tokens=120, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False)["choices"][0]
            self.assertEqual(message["finish_reason"], reason)
            self.assertEqual(set(json.loads(message["message"]["tool_calls"][0]["function"]["arguments"])), {"hot"})
        most = 0
        for seed in range(40):  # whether a seed makes two calls depends on the processor's arithmetic
            if most > 1:
                break
            calls = self.ok(CHAT, messages=HELLO, temperature=1, seed=seed, max_tokens=220, tools=[WEATHER], tool_choice="required")["choices"][0]["message"]["tool_calls"]
            most = max(most, len(calls))
            self.assertEqual(len({c["id"] for c in calls}), len(calls))
        self.assertGreater(most, 1)
        for choice in ("none", "auto"):
            self.ok(CHAT, messages=HELLO, tools=[WEATHER], tool_choice=choice, max_tokens=4)
        self.assertEqual(self.ok(CHAT, messages=HELLO, tools=[WEATHER], tool_choice="required", max_tokens=2)["choices"][0]["finish_reason"], "length")
        self.assertEqual(self.server.post(CHAT, messages=HELLO, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "x"}})[0], 400)
        self.assertEqual(self.server.post(CHAT, messages=HELLO, tool_choice="required")[0], 400)

    def test_14_json_schema(self):
        schema = {"type": "object", "additionalProperties": False, "required": ["kind", "at", "tags", "code", "value"], "$defs": {"point": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["x"], "additionalProperties": False}},
                  "properties": {"kind": {"enum": ["a", "b"]}, "at": {"$ref": "#/$defs/point"}, "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, "code": {"type": "string", "pattern": "^[a-c]{2}$"}, "value": {"anyOf": [{"type": "null"}, {"type": "boolean"}]}}}
        finished = 0
        for seed in range(6):
            choice = self.ok(CHAT, messages=HELLO, temperature=1, seed=seed, max_tokens=200, response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": schema, "strict": True}})["choices"][0]
            if choice["finish_reason"] != "stop":
                continue
            finished += 1
            value = json.loads(choice["message"]["content"])
            self.assertEqual(set(value), set(schema["required"]))
            self.assertIn(value["kind"], ("a", "b"))
            self.assertIn(value["at"]["x"], range(10))
            self.assertIn(len(value["tags"]), (1, 2))
            self.assertRegex(value["code"], "^[a-c]{2}$")
            self.assertIn(value["value"], (None, True, False))
        self.assertGreater(finished, 0)
        status, body = self.server.post(CHAT, messages=HELLO, response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}}})
        self.assertEqual(status, 400)
        self.assertIn("dependentSchemas", body["error"]["message"])

    def test_15_context_overflow(self):
        for stream in (False, True):
            status, body = self.server.call("POST", TEXT, dict(prompt="word " * 600, max_tokens=4, stream=stream))
            self.assertEqual((status, body["error"]["type"], body["error"]["code"]), (400, "invalid_request_error", "context_length_exceeded"))
            self.assertEqual(len(re.findall(r"\d+", body["error"]["message"])), 3)
        self.assertEqual(self.ok(TEXT, prompt=[[5] * 255], max_tokens=1)["usage"]["prompt_tokens"], 255)

    def test_16_bad_requests(self):
        good = dict(messages=HELLO, max_tokens=1)
        for bad in ({"messages": None}, {"messages": []}, {"messages": [{"role": "foo", "content": "a"}]}, {"temperature": "hot"}, {"temperature": 1e308}, {"top_p": 0}, {"n": 0}, {"n": 10**9}, {"max_tokens": -1}):
            status, body = self.server.call("POST", CHAT, dict(good, **bad))
            self.assertEqual(status, 400, bad)
            self.assertTrue(body["error"]["message"])
        self.assertEqual(self.server.call("POST", CHAT, b'{"messages": [')[0], 400)
        self.assertEqual(self.server.call("GET", "/v1/nothing")[0], 404)
        self.assertEqual(self.server.call("GET", CHAT)[0], 405)
        self.assertEqual(self.server.call("GET", "/health")[0], 200)

    def test_17_disconnects(self):
        self.assertTrue(self.server.settles())
        for what, body in (("decode", dict(prompt="a", max_tokens=240, stream=True)), ("n = 4", dict(prompt="a", max_tokens=240, n=4)), ("prefill", dict(prompt="a b c " * 40, max_tokens=60)), ("not a stream", dict(prompt="a", max_tokens=240))):
            # 12 clients for 8 sequences: some are in the queue.
            clients = [post_raw(self.server.port, TEXT, dict(body, ignore_eos=True)) for _ in range(12)]
            time.sleep(0.05)
            for client in clients:
                client.close()
            self.assertTrue(self.server.settles(2), what)

    def test_18_full_queue(self):
        server = Server(MODEL, "--max-num-seqs", "1", "--max-queue", "2")
        results = []
        threads = [threading.Thread(target=lambda: results.append(server.call("POST", TEXT, dict(prompt="a", max_tokens=200, ignore_eos=True), raw=True))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [r for r in results if r[0] == 429]
        self.assertEqual(len(refused) + sum(r[0] == 200 for r in results), 16)
        self.assertTrue(refused and all(int(r[2]["Retry-After"]) >= 1 and json.loads(r[1])["error"]["type"] == "rate_limit_error" for r in refused))
        # Room for eight and a queue of one: a burst of eight meets no refusal.
        server.stop()
        server = Server(MODEL, "--max-num-seqs", "8", "--max-queue", "1")
        results.clear()
        threads = [threading.Thread(target=lambda: results.append(server.call("POST", TEXT, dict(prompt="a", max_tokens=8)))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([r[0] for r in results], [200] * 8)
        # A list that is longer than room and queue is answered all the same, in order, whatever is told; only a few of it are in the queue at a time.
        prompts = [[5 + i, 6, 7] for i in range(40)]
        body = dict(prompt=prompts, max_tokens=2, temperature=0, echo=True, logprobs=1, ignore_eos=True)
        status, answer = server.post(TEXT, **body)
        self.assertEqual((status, len(answer["choices"])), (200, 40), answer)
        for i in (0, 9, 10, 39):
            alone = server.post(TEXT, **dict(body, prompt=[prompts[i]]))[1]["choices"][0]
            self.assertEqual((answer["choices"][i]["text"], answer["choices"][i]["logprobs"]), (alone["text"], alone["logprobs"]))
        events, _ = server.stream(TEXT, **dict(body, n=2))
        self.assertEqual(sorted(c["index"] for e in events for c in e["choices"] if c["finish_reason"]), list(range(80)))
        status, answer = server.call("POST", "/v1/embeddings", {"input": prompts})
        self.assertEqual((status, len(answer["data"])), (200, 40))
        self.assertEqual(answer["data"][20]["embedding"], server.call("POST", "/v1/embeddings", {"input": prompts[20]})[1]["data"][0]["embedding"])
        # What was let in is finished while the server drains.
        # Choices of one token: whenever those with the engine have ended it is idle until more of them come.
        client = post_raw(server.port, TEXT, dict(prompt=prompts * 10, max_tokens=1, n=2, ignore_eos=True, stream=True))
        client.recv(1000)
        server.process.send_signal(signal.SIGTERM)
        answer = client.makefile("rb").read()
        self.assertNotIn(b'"error"', answer)
        self.assertIn(b"data: [DONE]", answer)
        self.assertEqual(server.process.wait(40), 0)

    def test_19_counters(self):
        server = Server(MODEL)
        before = dict(USED)
        for body in (dict(prompt="a b", max_tokens=5), dict(prompt="a", max_tokens=3, n=3), dict(prompt=["a", "b c"], max_tokens=2)):
            self.assertEqual(server.post(TEXT, **body)[0], 200)
        server.stream(CHAT, messages=HELLO, max_tokens=4)
        seen = {k: USED[k] - before[k] for k in USED}
        self.assertEqual(server.metric("vllm:prompt_tokens_total"), seen["prompt"])
        self.assertEqual(server.metric("vllm:generation_tokens_total"), seen["completion"])
        for name in ("vllm:request_success_total", "vllm:e2e_request_latency_seconds_count", "vllm:time_to_first_token_seconds_count"):
            self.assertEqual(server.metric(name), seen["requests"], name)
        # Of requests, not of choices: n of 1, 3, 1 and 1; at most 5, 3, 2 and 4 tokens, and the longest choice of each.
        for name, total in (("params_n", 6), ("params_max_tokens", 14)):
            self.assertEqual((server.metric(f"vllm:request_{name}_count"), server.metric(f"vllm:request_{name}_sum")), (4, total), name)
        self.assertEqual(server.metric("vllm:request_max_num_generation_tokens_count"), 4)
        self.assertGreater(server.metric("vllm:request_max_num_generation_tokens_sum"), 3)
        self.assertEqual(server.metric("vllm:gpu_prefix_cache_queries_total"), server.metric("vllm:prefix_cache_queries_total"))
        self.assertGreater(server.metric("vllm:gpu_prefix_cache_queries_total"), 0)
        server.stop()

    def test_20_sigterm(self):
        server = Server(MODEL)
        streams = [post_raw(server.port, TEXT, dict(prompt="a", max_tokens=240, n=8, stream=True, ignore_eos=True)) for _ in range(8)]
        for client in streams:
            client.recv(1000)
        server.process.send_signal(signal.SIGTERM)
        while "stopping" not in server.text():
            time.sleep(0.005)
        # While streams run on: not healthy, and nothing new.
        self.assertEqual(server.call("GET", "/health"), (503, {"status": "draining"}))
        self.assertEqual(server.call("POST", TEXT, dict(prompt="a", max_tokens=1))[0], 503)
        for client in streams:
            data = b""
            while not data.endswith(b"0\r\n\r\n"):
                piece = client.recv(65536)
                self.assertTrue(piece, data[-200:])
                data += piece
            self.assertIn(b"data: [DONE]\n\n", data)
        self.assertEqual(server.process.wait(40), 0)

    def test_20_what_is_cut_off(self):
        server = Server(MODEL, "--grace", "0", "--max-num-seqs", "1")
        body = dict(prompt="a", max_tokens=240, n=64, ignore_eos=True)
        stream = post_raw(server.port, TEXT, dict(body, stream=True))
        stream.recv(1000)
        # Behind the other 63 choices of the stream.
        plain = post_raw(server.port, TEXT, body)
        end = time.time() + 10
        while server.metric("vllm:num_requests_waiting") < 2:
            self.assertLess(time.time(), end)
        server.process.send_signal(signal.SIGTERM)
        self.assertIn(b'"error"', stream.makefile("rb").read())
        self.assertIn(b"HTTP/1.1 503", plain.makefile("rb").read())
        self.assertEqual(server.process.wait(40), 0)
        # The log says what the clients were told: nobody left.
        self.assertRegex(server.text(), r"completion 200")
        self.assertRegex(server.text(), r"completion 503")
        self.assertNotIn(" 499 ", server.text())

    def test_20_sigterm_while_loading(self):
        # It ends before it is ready, not after; a cache that takes a while to fill with zeros makes sure that a signal comes before that.
        for _ in range(20):
            server = Server(MODEL, "--max-num-seqs", "1024", wait=False)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(40), 0)
            if "ready" not in server.text():
                self.assertNotIn("stopping", server.text())
                return
        self.fail("every signal waited until the model was loaded")


class Beyond(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(MODEL)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def test_best_of(self):
        body = dict(prompt="One day", temperature=1, seed=3, max_tokens=8, ignore_eos=True, logprobs=0)
        mean = lambda c: sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"])
        every = self.server.post(TEXT, n=6, **body)[1]["choices"]
        best = self.server.post(TEXT, n=2, best_of=6, **body)[1]
        self.assertEqual([c["text"] for c in best["choices"]], [c["text"] for c in sorted(every, key=mean, reverse=True)[:2]])
        self.assertEqual(best["usage"]["completion_tokens"], 48)
        self.assertEqual(self.server.post(TEXT, n=2, best_of=6, stream=True, **body)[0], 400)

    def test_responses(self):
        body = dict(model="tiny", instructions="Be brief", input="Hello there", temperature=0, max_output_tokens=12)
        status, whole = self.server.call("POST", "/v1/responses", body)
        self.assertEqual(status, 200)
        chat = self.server.post(CHAT, messages=[{"role": "system", "content": "Be brief"}] + HELLO, temperature=0, max_tokens=12)[1]
        self.assertEqual(whole["output"][0]["content"][0]["text"], chat["choices"][0]["message"]["content"])
        self.assertEqual((whole["object"], whole["usage"]["input_tokens"]), ("response", chat["usage"]["prompt_tokens"]))
        self.assertEqual(whole["status"], "incomplete" if chat["choices"][0]["finish_reason"] == "length" else "completed")
        raw = self.server.call("POST", "/v1/responses", dict(body, stream=True), raw=True)[1].decode()
        events = [json.loads(e.split("\ndata: ", 1)[1]) for e in raw.split("\n\n")[:-1]]
        self.assertTrue(all(e.startswith(f"event: {json.loads(e.split(chr(10) + 'data: ', 1)[1])['type']}\n") for e in raw.split("\n\n")[:-1]))
        self.assertEqual([e["sequence_number"] for e in events], list(range(len(events))))
        self.assertEqual(events[0]["type"], "response.created")
        self.assertEqual("".join(e["delta"] for e in events if e["type"] == "response.output_text.delta"), whole["output"][0]["content"][0]["text"])
        self.assertEqual(events[-1]["response"]["usage"]["total_tokens"], whole["usage"]["total_tokens"])

    def test_responses_tools_and_errors(self):
        tool = {"type": "function", "name": "weather", "parameters": WEATHER["function"]["parameters"]}
        history = [{"role": "user", "content": [{"type": "input_text", "text": "Hot?"}]}, {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{\"hot\": true}"}, {"type": "function_call_output", "call_id": "c1", "output": "yes"}]
        status, whole = self.server.call("POST", "/v1/responses", dict(input=history, tools=[tool], tool_choice={"type": "function", "name": "weather"}, temperature=1, seed=2, max_output_tokens=120))
        self.assertEqual(status, 200, whole)
        self.assertEqual(set(json.loads(whole["output"][0]["arguments"])), {"hot"})
        for bad in ({}, {"input": 3}, {"input": [{"type": "computer_call"}]}, {"input": "a", "previous_response_id": "resp_1"}, {"input": "a", "tools": [{"type": "web_search"}]}, {"input": "a", "temperature": 9}, {"input": "a", "top_logprobs": 2}, {"input": "a", "include": ["message.output_text.logprobs"]}):
            status, body = self.server.call("POST", "/v1/responses", bad)
            self.assertEqual(status, 400, bad)
            self.assertTrue(body["error"]["message"])
            if "include" in bad or "top_logprobs" in bad:
                self.assertIn(body["error"]["param"], bad)
                self.assertIn("/v1/chat/completions", body["error"]["message"])

    @unittest.skipUnless(shutil.which("openssl"), "no openssl command to make a certificate with")
    def test_tls(self):
        key, certificate = FOLDER.name + "/key.pem", FOLDER.name + "/cert.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
        server = Server(MODEL, "--tls-cert", certificate, "--tls-key", key, wait=False, scheme="https")
        context = ssl.create_default_context(cafile=certificate)
        end, status = time.time() + 30, 0
        while status != 200 and time.time() < end:
            connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=context)
            connection.request("GET", "/health")
            status = connection.getresponse().status
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=context)
        connection.request("POST", CHAT, json.dumps(dict(messages=HELLO, max_tokens=4, stream=True)))
        self.assertTrue(connection.getresponse().read().endswith(b"data: [DONE]\n\n"))
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:  # no TLS: closed, and nobody else is hurt
            plain.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            plain.recv(100)
        self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], warnings="ignore")
