#!/usr/bin/env python3
"""The tests of the `openai` Python package, pointed at this server: what its generated client sends, and whether its strict models take our answers.
Also the client itself: streaming, tools, parsed structured output, async, retries on 429. By hand; needs the network for PyPI once.

  python3 -m venv VENV && VENV/bin/pip install openai pytest pytest-asyncio pytest-xdist respx httpx rich dirty-equals time-machine inline-snapshot nest_asyncio httpx-aiohttp
  VENV/bin/pip download --no-deps --no-binary openai openai && tar xzf openai-*.tar.gz
  VENV/bin/python scripts/openai_suite.py ORRERY SOURCE_DIR openai-*/            # SOURCE_DIR: of Orrery, whose documents a tiny model is trained on
"""
import asyncio
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "api"))
from harness import Server, train_tiny  # noqa: E402

PACKAGE = sys.argv[3]
# What of the suite a server like this one can pass. Left out: stored completions and responses (list, update, delete, create without input); requests
# for suffix, dimensions and a model that is not here, which are refused; embeddings validated strictly (the aiohttp client does), where the client asks for base64 and
# then expects a list.
SUITE = {"chat/test_completions.py": "create", "test_completions.py": "create and not with_all_params", "test_models.py": "list",
         "test_embeddings.py": "create and not with_all_params and not strict and not aiohttp"}


def client_checks(url):
    import openai
    from pydantic import BaseModel

    class Person(BaseModel):
        happy: bool
        age: int

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=8)
    hello = [{"role": "user", "content": "Hello"}]
    whole = client.chat.completions.create(model="tiny", messages=hello, max_tokens=8, temperature=0)
    pieces = client.chat.completions.create(model="tiny", messages=hello, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True})
    text = "".join(c.choices[0].delta.content or "" for c in pieces if c.choices)
    assert text == whole.choices[0].message.content, (text, whole)
    parsed = client.chat.completions.parse(model="tiny", messages=hello, response_format=Person, max_tokens=150, temperature=1, seed=4)
    assert isinstance(parsed.choices[0].message.parsed, Person)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": False}}}]
    call = client.chat.completions.create(model="tiny", messages=hello, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=100, temperature=1, seed=2)
    assert call.choices[0].message.tool_calls[0].function.name == "f"
    assert len(client.embeddings.create(model="tiny", input=["a", "b"]).data) == 2
    assert client.completions.create(model="tiny", prompt="a", max_tokens=4).usage.completion_tokens == 4
    with client.responses.stream(model="tiny", input="Hello", text_format=Person, max_output_tokens=200, temperature=1, extra_body={"seed": 4}) as stream:
        deltas = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
        assert final.output_text == deltas and isinstance(final.output_parsed, Person)
    for wrong, error in (({"temperature": 9}, openai.BadRequestError), ({"messages": []}, openai.BadRequestError)):
        try:
            client.chat.completions.create(**dict(dict(model="tiny", messages=hello), **wrong))
        except error:
            continue
        raise AssertionError(wrong)

    async def many():
        other = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=20)
        return await asyncio.gather(*(other.chat.completions.create(model="tiny", messages=hello, max_tokens=4, seed=i) for i in range(16)))
    assert len(asyncio.run(many())) == 16
    # A queue of one: most of these meet 429 first, wait as Retry-After says, and are answered.
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.completions.create(model="tiny", prompt="a", max_tokens=100, extra_body={"ignore_eos": True}))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6, len(answers)


with tempfile.TemporaryDirectory() as folder:
    model = train_tiny(folder)
    small = Server(model, "--max-num-seqs", "2", "--max-queue", "1")
    server = Server(model)
    try:
        url = f"http://127.0.0.1:{server.port}/v1"
        client_checks(f"http://127.0.0.1:{small.port}/v1")
        print("the client's own calls: passed", flush=True)
        codes = [subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-k", select, "--tb=line", f"tests/api_resources/{name}"],
                                cwd=PACKAGE, env=dict(os.environ, TEST_API_BASE_URL=url)).returncode for name, select in SUITE.items()]
    finally:
        server.stop()
        small.stop()
sys.exit(max(codes))
