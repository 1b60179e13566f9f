"""Bounds of what one request makes the server do: each was a loop without one."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest

from prefix_store import strict_json, wording
from prefix_store.errors import InvalidArtifact
from prefix_store.formats import sidecars
from prefix_store.formats.tar import Archive
from server.api.http import deps
from server.api.routes import generate
from server.errors import TemplateMismatch
from server.generation import limits
from server.text import template
from server.text import tokenizer as tokenizers
from server.text.template import Part
from server.text.tokenizer import Tokenizer
from tests.corpus.raw_bytes import tar_of
from tests.server.fakes import push

MANY = 10_000
CHAT = "/v1/chat/completions"


def test_a_long_name_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "`prompt`" in wording.meant("promt", ["prompt"])

    monkeypatch.setattr(wording, "get_close_matches", None)
    assert wording.meant("x" * 65, ["prompt"]) == ""


def test_no_more_golden_prompts_are_read_than_one_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_read = 0
    parse = strict_json.parse

    def count(line: bytes) -> Any:
        nonlocal num_read
        num_read += 1
        return parse(line)

    monkeypatch.setattr(strict_json, "parse", count)
    lines = b'\n{"prompt": "x", "expect": "y"}\n' * MANY
    archive = Archive(tar_of("golden.jsonl", content=lines), frozenset(["golden.jsonl"]))

    with pytest.raises(InvalidArtifact, match="at most 16"):
        sidecars.read_golden(archive)
    assert num_read == 17


@pytest.mark.parametrize(
    "text",
    ["{a}" * 1001, "".join(f"{{a{i}}}" for i in range(66)), f"{{{'x' * 65}}}"],
    ids=["places", "names", "a name"],
)
def test_a_template_has_no_more_fields_than_a_request_fills(text: str) -> None:
    with pytest.raises(TemplateMismatch, match="at most"):
        template.parse(text)


async def test_what_a_template_repeats_is_measured_before_it_is_joined(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await http.put("/tasks/a", json={"template": "{a} " * 500})
    await push(http, "a")
    monkeypatch.setattr(tokenizers, "_ids", None)  # nothing is tokenised

    response = await http.post("/generate?task=a", json={"fields": {"a": "x" * 200}})

    assert (response.status_code, response.json()["code"]) == (422, "prompt_too_long")


def test_texts_are_joined_in_time_that_grows_with_their_size(tokenizer: Tokenizer) -> None:
    def joined_s(number: int) -> float:
        parts = [Part("x" * 500, trusted=False)] * number
        started_s = time.thread_time()
        assert tokenizer._cut(parts) == ["x" * 500 * number]
        return time.thread_time() - started_s

    once = min(joined_s(2000) for _ in range(3))
    assert min(joined_s(16_000) for _ in range(3)) < 32 * once + 0.01  # 8 times as much is linear


async def test_a_chat_has_a_bounded_number_of_parts(http: httpx.AsyncClient) -> None:
    part = {"type": "text", "text": ""}

    def chat(number: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": [part] * (number // 2)}] * 2
        return {"model": "tiny", "messages": messages, "max_tokens": 1}

    assert (await http.post(CHAT, json=chat(20))).status_code == 200
    response = await http.post(CHAT, json=chat(4098))
    assert response.status_code in (400, 413)


async def test_large_bodies_are_validated_on_a_thread_one_at_a_time(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deps, "_LARGE_JSON", 100)
    validated = deps._validated
    running: list[int] = []
    most = 0

    def spy(*args: Any) -> Any:
        nonlocal most
        assert threading.current_thread() is not threading.main_thread()
        running.append(1)
        most = max(most, len(running))
        time.sleep(0.01)
        try:
            return validated(*args)
        finally:
            running.pop()

    monkeypatch.setattr(deps, "_validated", spy)
    bodies = [{"prompt": "x", "stop": ["y" * 100], "max_tokens": 1}] * 3
    bodies += [{"prompt": "x", "max_tokens": -1, "stop": ["y" * 100]}] * 3
    answers = await asyncio.gather(*(http.post("/generate", json=body) for body in bodies))

    assert [answer.status_code for answer in answers] == [200] * 3 + [422] * 3
    assert "`max_tokens` must be at least 1" in answers[3].json()["detail"]
    assert answers[3].json()["errors"][0]["loc"] == ["body", "max_tokens"]
    assert most == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "x" * 50, "prompt_logprobs": 2, "max_tokens": 1}),
        ("/generate", {"prompt": "x", "logprobs": 2, "max_tokens": 50, "ignore_eos": True}),
        ("/generate", {"prompt": "x" * 20, "logprobs": 2, "rank": {"texts": ["a", "b" * 60]}}),
        (
            "/v1/completions",
            {"model": "tiny", "prompt": ["x" * 25] * 2, "echo": True, "logprobs": 2},
        ),
    ],
    ids=range(4),
)
async def test_an_answer_has_a_bounded_number_of_log_probabilities(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    assert (await http.post(path, json=body)).status_code == 200

    monkeypatch.setattr(limits, "MAX_SCORES", 140)
    refused = await http.post(path, json=body)

    assert refused.status_code in (400, 422)
    assert "log-probabilities, 140 are allowed" in refused.text


@pytest.mark.parametrize("is_stream", [False, True])
async def test_log_probabilities_are_written_on_a_thread(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    threads: list[threading.Thread] = []
    plain = generate.plain

    def spy(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return plain(*args)

    monkeypatch.setattr(generate, "plain", spy)
    body = {"prompt": "x" * 50, "prompt_logprobs": 2, "max_tokens": 1, "stream": is_stream}
    response = await http.post("/generate", json=body)

    assert response.status_code == 200
    assert threads
    assert threading.main_thread() not in threads
