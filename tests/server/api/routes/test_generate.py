from __future__ import annotations

import json

import httpx
import pytest

from server.errors import PrefixUnavailable, StepFailed
from server.text.tokenizer import Tokenizer
from tests.server.fakes import FakeEngine, expected_tokens, push


def events(text: str) -> list[tuple[str, dict[str, object]]]:
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_a_whole_answer_has_the_shape_of_the_contract(http: httpx.AsyncClient) -> None:
    manifest = await push(http, "x")

    response = await http.post("/generate?task=x", json={"prompt": "hi", "max_tokens": 5})

    answer = response.json()
    assert response.status_code == 200
    assert list(answer) == (
        [
            "id",
            "task",
            "version",
            "digest",
            "token_ids",
            "finish_reason",
            "usage",
            "timings",
            "text",
        ]
    )
    assert (answer["task"], answer["version"]) == ("x", 1)
    assert answer["digest"] == manifest["digest"]
    assert answer["token_ids"] is None
    assert answer["usage"] == {
        "prefix_tokens": 3,
        "prompt_tokens": 2,
        "cached_tokens": 0,
        "completion_tokens": 5,
    }
    assert set(answer["timings"]) == {"queue_ms", "first_token_ms", "total_ms"}
    assert response.headers["X-Task-Version"] == "1"
    assert response.headers["X-Prefix-Digest"] == manifest["digest"]


async def test_a_stream_is_the_whole_answer_in_pieces(http: httpx.AsyncClient) -> None:
    await push(http, "x")
    body = {"prompt": "hi", "max_tokens": 5, "return_token_ids": True}

    whole = (await http.post("/generate?task=x", json=body)).json()
    response = await http.post("/generate?task=x", json=body | {"stream": True})

    *tokens, (last, done) = events(response.text)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["X-Task-Version"] == "1"
    assert [name for name, _ in tokens] == ["token"] * 5
    assert "".join(str(data["text"]) for _, data in tokens) == whole["text"]
    assert last == "done"
    assert set(done) == set(whole) - {"text"}
    assert done["token_ids"] == whole["token_ids"]
    assert done["usage"] == whole["usage"]


async def test_the_usage_says_what_was_found_computed(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.num_cached_tokens = 16
    body = {"prompt": "x" * 20, "max_tokens": 3}

    whole = (await http.post("/generate", json=body)).json()
    streamed = events((await http.post("/generate", json=body | {"stream": True})).text)

    assert whole["usage"]["cached_tokens"] == 16
    assert streamed[-1][1]["usage"] == whole["usage"]


@pytest.mark.parametrize(("sent", "priority"), [({}, 0), ({"priority": -3}, -3)])
async def test_a_priority_reaches_the_engine(
    http: httpx.AsyncClient, engine: FakeEngine, sent: dict[str, int], priority: int
) -> None:
    await http.post("/generate", json={"prompt": "hi"} | sent)

    assert engine.shares[-1].priority == priority


async def test_no_task_means_the_base_model(http: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    response = await http.post("/generate", json={"prompt": "hi", "max_tokens": 3})

    prompt = tokenizer.encode("hi")
    assert response.json()["text"] == tokenizer.decode(expected_tokens(None, prompt, 3))
    assert response.json()["task"] is None
    assert "X-Task-Version" not in response.headers


async def test_a_request_may_pin_a_version(http: httpx.AsyncClient) -> None:
    first = await push(http, "x", seed=1)
    await push(http, "x", seed=2)

    pinned = await http.post("/generate?task=x&version=1", json={"prompt": "hi"})
    active = await http.post("/generate?task=x", json={"prompt": "hi"})

    assert (pinned.json()["version"], pinned.json()["digest"]) == (1, first["digest"])
    assert active.json()["version"] == 2


async def test_a_stop_string_across_tokens_cuts_stream_and_whole_alike(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    engine.script = lambda prefix, token_ids: tokenizer.encode("ab\nQ:cd")
    body = {"prompt": "hi", "max_tokens": 7, "stop": ["\nQ:"]}

    whole = (await http.post("/generate", json=body)).json()
    stream = events((await http.post("/generate", json=body | {"stream": True})).text)

    assert (whole["text"], whole["finish_reason"]) == ("ab", "stop")
    assert "".join(str(data["text"]) for name, data in stream if name == "token") == "ab"
    assert stream[-1][1]["finish_reason"] == "stop"


async def test_a_character_of_several_tokens_is_one_event(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    engine.script = lambda prefix, token_ids: tokenizer.encode("a👍é")
    body = {"prompt": "hi", "max_tokens": 7, "stream": True}

    stream = events((await http.post("/generate", json=body)).text)

    assert [data["text"] for name, data in stream if name == "token"] == ["a", "👍", "é"]


async def test_a_first_token_that_ends_the_sequence_is_an_empty_text(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = lambda prefix, token_ids: []

    answer = (await http.post("/generate", json={"prompt": "hi"})).json()

    assert (answer["text"], answer["finish_reason"]) == ("", "stop")
    assert answer["timings"]["first_token_ms"] is None


async def test_messages_and_fields_reach_the_prompt(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    await http.put("/tasks/x", json={"template": "{a}-{prompt}"})
    await push(http, "x")

    await http.post("/generate?task=x", json={"prompt": "p", "fields": {"a": "A"}})
    await http.post("/generate", json={"messages": [{"role": "user", "content": "yo"}]})

    template, chat = (tokenizer.decode(token_ids) for _, token_ids, _ in engine.submitted)
    assert template == "A-p"
    assert chat == "system\nBe kind.\nuser\nyo\nassistant\n"


async def test_an_error_before_the_first_byte_is_a_problem_also_when_streaming(
    http: httpx.AsyncClient,
) -> None:
    response = await http.post("/generate?task=nope", json={"prompt": "hi", "stream": True})

    problem = response.json()
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    assert problem["code"] == "unknown_task"
    assert problem["request_id"] == response.headers["X-Request-Id"]


async def test_an_error_after_the_first_byte_is_an_event(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_after = (1, StepFailed("the step failed"))
    body = {"prompt": "hi", "stream": True, "max_tokens": 5}

    response = await http.post("/generate", json=body)

    (first, _), (last, problem) = events(response.text)
    assert response.status_code == 200
    assert (first, last) == ("token", "error")
    assert (problem["status"], problem["code"]) == (500, "step_failed")
    assert problem["request_id"] == response.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("error", "status"), [(StepFailed("x"), 500), (PrefixUnavailable("x"), 503)]
)
async def test_a_failure_of_the_engine_is_a_problem_of_a_whole_answer(
    http: httpx.AsyncClient, engine: FakeEngine, error: StepFailed, status: int
) -> None:
    engine.fail_after = (0, error)

    response = await http.post("/generate", json={"prompt": "hi"})

    assert (response.status_code, response.json()["code"]) == (status, error.code)


async def test_a_full_queue_is_a_429_that_says_when_to_come_back(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {"model": "tiny", "prompt": ["a"] * 9}

    response = await http.post("/v1/completions", json=body)

    assert response.status_code == 429
    assert response.headers["Retry-After"] == "1"
    assert engine.num_in_flight == 0


async def test_without_an_engine_it_is_a_503_that_says_when_to_come_back(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.is_dead = True

    response = await http.post("/generate", json={"prompt": "hi"})

    assert (response.status_code, response.json()["code"]) == (503, "engine_unavailable")
    assert response.headers["Retry-After"] == "5"


async def test_a_request_id_comes_back_only_if_it_is_harmless(http: httpx.AsyncClient) -> None:
    kept = await http.get("/info", headers={"X-Request-Id": "my.id-1"})
    replaced = [
        await http.get("/info", headers={"X-Request-Id": given})
        for given in (b"a b", b"x" * 65, b"\xe9", b"a\tb", b"a;b")
    ]

    assert kept.headers["X-Request-Id"] == "my.id-1"
    for response in replaced:
        assert len(response.headers["X-Request-Id"]) == 32
