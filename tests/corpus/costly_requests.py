"""Requests that would cost a server without bounds most: as large, deep, repeated as they may be.

Found by hand and by `tests/server/test_worst_cases.py`. Each has its right statuses, and where it
may cost more than any other request, a bound of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from prefix_store import artifact
from tests.corpus.bounds import ANY, Bound
from tests.corpus.raw_bytes import SAFETENSORS, TAR, Raw, post, request, tar_of
from tests.server.api.test_structured import EXPONENTIAL
from tests.server.fakes import make_prefix

MANY = 990_000
"""Items of a list that fill a body."""
LONG = 3_900_000
"""Characters that fill a body."""
CONTEXT = 8192


_LARGE_ANSWER = Bound(turns=200, threads=1000)
BOUNDS = {
    "log-probabilities": _LARGE_ANSWER,
    "log-probabilities streamed": _LARGE_ANSWER,
    "an echo": _LARGE_ANSWER,
    "an echo streamed": _LARGE_ANSWER,
}
"""Of a hundred thousand log-probabilities and more."""


def setup() -> list[Raw]:
    """Requests that make the task `t`, whose template repeats a field."""
    profile = json.dumps({"template": "{a}x" * 1000}).encode()
    prefix = artifact.dump(make_prefix())
    return [
        Raw("profile", post("/tasks/t", profile, method="PUT"), frozenset({201})),
        Raw(
            "prefix",
            post("/tasks/t/versions?activate=true", prefix, kind=SAFETENSORS),
            frozenset({201}),
        ),
    ]


def costly() -> list[tuple[Raw, Bound]]:
    """All of them, the same every time."""
    return [
        (
            Raw(f"{family.__name__.strip('_')}: {name}", data, frozenset(allowed)),
            BOUNDS.get(name, ANY),
        )
        for family in (_lists, _texts, _names, _forms, _answers, _uploads, _heads)
        for name, data, allowed in family()
    ]


Cases = Iterator[tuple[str, bytes, set[int]]]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def _generate(body: dict[str, Any], path: str = "/generate") -> bytes:
    named = {"model": "tiny"} if path.startswith("/v1/") else {}
    return post(path, json.dumps(named | body, separators=(",", ":")).encode())


def _lists() -> Cases:
    """Lists that fill a body."""
    for item in ("0", "-1"):
        listed = f"[{','.join([item] * MANY)}]".encode()
        for path in ("/generate", TEXT):
            yield (
                f"{path} {item}",
                post(path, b'{"model":"tiny","prompt":%b}' % listed),
                {422, 400},
            )
        for field in ("stop", "stop_token_ids", "logit_bias", "fields", "rank"):
            raw = post("/generate", b'{"prompt":"x","%b":%b}' % (field.encode(), listed))
            yield f"{field} {item}", raw, {422, 400}
    almost = b"[" + b"0," * 999_998 + b"-1]"
    yield "the last one wrong", post("/generate", b'{"prompt":%b}' % almost), {422}
    yield "as many as are read", _generate({"prompt": [0] * 999_999}), {422}
    yield "more than are read", _generate({"prompt": [0] * 2_000_000}), {422}
    lists = {"prompt": [[1] * 15_000] * 64}
    yield "lists of ids", _generate(lists, TEXT), {400}
    part, chat = {"type": "text", "text": "x"}, [{"role": "user", "content": "x"}]
    for number in (4000, 19_000):
        messages = [{"role": "user", "content": [part] * number}]
        yield (
            f"{number} parts",
            _generate({"messages": messages, "max_tokens": 1}, CHAT),
            {200, 400},
        )
    spread = [{"role": "user", "content": [part] * 19}] * 1000
    yield "parts of 1000 messages", _generate({"messages": spread}, CHAT), {400}
    yield (
        "ones as parts",
        post(
            CHAT,
            b'{"model":"tiny","messages":[{"role":"user","content":[%b]}]}' % (b"1," * MANY + b"1"),
        ),
        {400},
    )
    extra = {f"x{i}": None for i in range(2000)}
    yield "unknown fields", _generate({"prompt": "x"} | extra), {422}
    many = [chat[0] | extra] * 40
    yield "unknown fields of messages", _generate({"messages": many}, CHAT), {200, 400}
    weights = {str(i): 1 for i in range(1, 2000)}
    yield "weights", _put("/tasks/t/traffic", {"weights": weights}), {422}
    yield (
        "golden",
        _put("/tasks/u", {"golden": [{"prompt": "x", "expect": [1]}] * 20_000}),
        {422},
    )
    yield (
        "tasks of a key",
        post(
            "/keys",
            json.dumps({"name": "x", "scopes": ["read"], "tasks": ["*a" * 31] * 20_000}).encode(),
        ),
        {403, 422},
    )


def _put(path: str, body: dict[str, Any]) -> bytes:
    return post(path, json.dumps(body).encode(), method="PUT")


def _texts() -> Cases:
    """Texts that fill a body, or the context."""
    for name, text in {
        "x": "x" * LONG, "spaces": " " * LONG, "special tokens": "<|im_end|>" * (LONG // 10),
        "escapes": "\ud83d\ude00" * (LONG // 14), "lines": "\n" * (LONG // 2),
    }.items():  # fmt: skip
        yield f"prompt of {name}", _generate({"prompt": text}), {422}
        yield (
            f"message of {name}",
            _generate({"messages": [{"role": "user", "content": text}]}),
            {422},
        )
        yield (
            f"field of {name}",
            _generate({"fields": {"a": text}}, "/generate?task=t"),
            {422},
        )
    ranked = {"prompt": "x" * 8000, "rank": {"texts": [f"{i}" for i in range(64)]}}
    yield "ranked", _generate(ranked), {200, 429}
    chat = {"messages": [{"role": "user", "content": "<|im_end|> x"}] * 250, "max_tokens": 1}
    yield "250 messages x 64 choices", _generate(chat | {"n": 64}, CHAT), {200, 400, 429}
    yield (
        "64 prompts",
        _generate({"prompt": ["x" * 8000] * 64, "max_tokens": 1}, TEXT),
        {200, 429},
    )
    yield "64 prompts too long", _generate({"prompt": ["x" * 60_000] * 64}, TEXT), {400}
    stops = {"stop": ["a" * 254 + f"{i:02}" for i in range(16)]}
    yield (
        "stop strings",
        _generate({"prompt": "x", "max_tokens": 2000, "ignore_eos": True} | stops),
        {200},
    )
    repeated = {"fields": {"a": "x" * 3_000_000}}
    yield "a field repeated", _generate(repeated, "/generate?task=t"), {422}


def _names() -> Cases:
    """Long names."""
    long = "x" * LONG
    yield "a field's", _generate({"prompt": "x", long: 1}), {422}
    for path in (CHAT, TEXT):
        yield (
            f"a field's {path}",
            _generate({"prompt": "x", "messages": [], long: 1}, path),
            {400},
        )
    yield "a profile's", _put("/tasks/u", {long: 1}), {422}
    yield (
        "a field's of a template",
        _put("/tasks/u", {"template": "{" + "x" * 90_000 + "}"}),
        {422},
    )
    yield "a template's fields", _put("/tasks/u", {"template": "{a}" * 33_000}), {422}
    yield "a short field repeated", _generate({"fields": {"a": "x" * 8}}, "/generate?task=t"), {422}
    distinct = "".join(f"{{a{i}}}" for i in range(9000))
    yield "different fields", _put("/tasks/u", {"template": distinct}), {422}
    yield "a traffic key", _generate({"prompt": "x", "traffic_key": long}), {422}
    yield "a model", _generate({"prompt": "x", "model": long}, TEXT), {400}


def _forms() -> Cases:
    """Answers in a form that is expensive to follow."""
    patterns = {f"^a{i}.*b{i}$": {"type": "integer"} for i in range(500)}
    multiples = [{"type": "integer", "multipleOf": 5000 + i} for i in range(100)]
    nested: dict[str, Any] = {"type": "object"}
    for _ in range(40):
        nested = {"anyOf": [nested, {"type": "string"}]}
    for name, schema in {
        "intersections": EXPONENTIAL,
        "pattern properties": {"patternProperties": patterns},
        "multiples": {"prefixItems": multiples},
        "anyOf of anyOf": nested,
        "properties": {"properties": {f"p{i}": {"type": "integer"} for i in range(900)}},
        "an enum": {"enum": [f"{i:06}" for i in range(6000)]},
    }.items():  # fmt: skip
        form = {"type": "json_schema", "json_schema": {"schema": schema}}
        body = {"prompt": "x", "response_format": form, "max_tokens": 1}
        yield name, _generate(body), {200, 422, 429}
    for name, regex in {
        "a repetition": "(a{1,1000}){1,1000}",
        "alternatives": "|".join(f".*{i}.*" for i in range(2000)),
        "a literal": "a" * 65_000, "letters": r"\p{L}{1,1000}",
    }.items():  # fmt: skip
        yield (
            name,
            _generate({"prompt": "x", "regex": regex, "max_tokens": 1}),
            {200, 422, 429},
        )
    choices = [f"{i:04}" + "x" * 50 for i in range(1000)]
    yield (
        "choices",
        _generate({"prompt": "x", "choice": choices, "max_tokens": 1}),
        {200, 422, 429},
    )


def _answers() -> Cases:
    """Answers that are as large as they may be."""
    scores = {"prompt_logprobs": 20, "logprobs": 20, "max_tokens": 8, "ignore_eos": True}
    longest = {"prompt": [5] * (CONTEXT - 8)} | scores
    yield "log-probabilities", _generate(longest), {200}
    yield "log-probabilities streamed", _generate(longest | {"stream": True}), {200}
    echo = {"prompt": [5] * (CONTEXT - 8), "logprobs": 20, "max_tokens": 8, "echo": True}
    yield "an echo", _generate(echo, TEXT), {200}
    yield "an echo streamed", _generate(echo | {"stream": True}, TEXT), {200}
    yield (
        "an echo of text",
        _generate({"prompt": [[5] * 8000] * 16, "max_tokens": 1, "echo": True}, TEXT),
        {200, 429},
    )
    yield "64 echoes", _generate(echo | {"prompt": [[5] * 8000] * 64}, TEXT), {400}
    chat = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 20}
    yield (
        "choices with log-probabilities",
        _generate(chat | {"n": 64, "max_tokens": 4000}, CHAT),
        {400},
    )
    yield "tasks", request("GET /tasks?limit=1000 HTTP/1.1"), {200}
    yield "an audit", request("GET /audit?limit=1000 HTTP/1.1"), {200, 401, 403}


def _uploads() -> Cases:
    """Uploads that are read for nothing."""
    path = "/tasks/t/versions"
    text = json.dumps({"text": "x" * 3_000_000}).encode()
    yield "a text", post(path, text), {422}
    messages = [{"role": "user", "content": "<|im_end|>"}] * 1000
    yield "messages", post(path, json.dumps({"messages": messages}).encode()), {422}
    yield "ones", post(path, b'{"messages":[%b1]}' % (b"1," * 2_000_000)), {422}
    for name, lines in {
        "golden": b'{"prompt":"x","expect":"y"}\n',
        "lines": b"\n",
        "ones": b"1\n",
    }.items():
        archive = tar_of("golden.jsonl", content=lines * ((8 << 20) // len(lines)))
        yield f"golden prompts: {name}", post(path, archive, kind=TAR), {422}
    yield "a tar of crumbs", post(path, tar_of(*[f"{i}" for i in range(5000)]), kind=TAR), {422}
    header = b'{"__metadata__":{%b"a":""}}' % b"".join(b'"%d":"",' % i for i in range(60_000))
    tensors = len(header).to_bytes(8, "little") + header
    yield "a header", post(path, tensors, kind=SAFETENSORS), {422}


def _heads() -> Cases:
    """Heads that are as large as they may be."""
    for name, query in {
        "a query": "a=1&" * 7000,
        "names": "&".join(f"a{i}" for i in range(4000)),
    }.items():
        yield name, request(f"GET /tasks?{query} HTTP/1.1"), {400, 422}
        yield (
            f"{name} of a prompt",
            post(f"{TEXT}?{query}", b'{"model":"tiny","prompt":"x","max_tokens":1}'),
            {200},
        )
    keys = f"Idempotency-Key: {'x' * 30_000}"
    yield "an idempotency key", post("/tasks/u", b"{}", keys, method="PUT"), {400, 422}
    matches = f"If-Match: {','.join(['0'] * 10_000)}"
    yield "preconditions", post("/tasks/t", b"{}", matches, method="PUT"), {400, 412, 422}
    yield (
        "a bearer",
        request("GET /tasks HTTP/1.1", f"Authorization: Bearer {'fwd_' * 7000}"),
        {200, 401},
    )
    yield "hosts", request("GET /livez HTTP/1.1", "Accept: " + "*/*," * 7000), {200}
