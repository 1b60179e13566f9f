"""What OpenAI's routes share: fields that are taken or refused, and the shape of errors."""

from __future__ import annotations

import httpx
import pytest

from server.errors import StepFailed
from tests.server.api.routes.openai_chunks import chunks
from tests.server.fakes import FakeEngine


async def test_fields_that_ask_for_nothing_else_are_taken(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    known = {"model": "tiny", "prompt": "hi", "temperature": 0.5, "top_k": -1, "ignore_eos": True}
    others = {
        "user": "me", "metadata": {"a": "b"}, "store": False, "suffix": "", "n": 1,
        "logprobs": None, "tools": [], "tool_choice": "auto", "x": None,
        "skip_special_tokens": True, "best_of": 1, "repetition_penalty": 1, "service_tier": "auto",
    }  # fmt: skip

    response = await http.post("/v1/completions", json=known | others)

    sampling = engine.submitted[0][2]
    assert response.status_code == 200, response.text
    assert (sampling.temperature, sampling.top_k, sampling.ignore_eos) == (0.5, 0, True)
    assert (sampling.logprobs, sampling.repetition_penalty) == (None, 1.0)


@pytest.mark.parametrize(
    "field",
    [
        {"best_of": 2},
        {"suffix": "x"},
        {"reasoning_effort": "high"},
        {"guided_grammar": "x"},
        {"temprature": 0.5},
        {"max_tokens": 0},
        {"stream_options": {"include_usage": True}},
        {"logprobs": 21},
        {"presence_penalty": 2.5},
        {"repetition_penalty": 0},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"1": 101}},
        {"n": 65},
        {"prompt_logprobs": 1},
    ],
)
async def test_what_would_silently_be_something_else_is_refused(
    http: httpx.AsyncClient, engine: FakeEngine, field: dict[str, object]
) -> None:
    body = {"model": "tiny", "prompt": "hi"} | field

    response = await http.post("/v1/completions", json=body)

    error = response.json()["error"]
    [name] = field
    assert response.status_code == 400
    assert (error["param"], error["type"]) == (name, "invalid_request_error")
    assert name in error["message"]
    assert not engine.submitted


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"stop": ["x"] * 17}, "16 stop strings"),
        ({"prompt": ["a"] * 9, "n": 8}, "64 choices"),
        ({"logit_bias": {"260": 1}}, "vocabulary of 260"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5"),
        ({"prompt": [260]}, "vocabulary of 260"),
    ],
)
async def test_what_does_not_fit_together_is_refused(
    http: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, object], told: str
) -> None:
    response = await http.post("/v1/completions", json={"model": "tiny", "prompt": "hi"} | fields)

    assert response.status_code == 400
    assert told in response.json()["error"]["message"]
    assert not engine.submitted


async def test_a_prompt_that_is_too_long_has_openais_code(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "x" * 300}

    response = await http.post("/v1/completions", json=body)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nope", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("POST", "/v1/completions", 400, "malformed_request"),
    ],
)
async def test_every_error_below_v1_has_openais_shape(
    http: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    headers = {"Content-Type": "application/json"}

    response = await http.request(method, path, content=b"{", headers=headers)

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}


async def test_who_is_one_too_many_gets_openais_429(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {"model": "tiny", "prompt": "hi", "n": 9}  # 4 may run and 4 wait

    response = await http.post("/v1/completions", json=body)

    error = response.json()["error"]
    assert (response.status_code, response.headers["Retry-After"]) == (429, "1")
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert not engine.submitted


async def test_an_error_in_a_stream_is_a_chunk_of_its_own(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_after = (1, StepFailed("the step failed"))
    body = {"model": "tiny", "prompt": ["a", "b"], "stream": True}

    pieces = chunks((await http.post("/v1/completions", json=body)).text)

    assert pieces[-1]["error"]["code"] == "step_failed"
    assert engine.num_in_flight == 0


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
async def test_priority_and_cached_tokens_are_as_elsewhere(
    http: httpx.AsyncClient, engine: FakeEngine, route: str
) -> None:
    engine.num_cached_tokens = 1
    prompt = (
        {"prompt": ["hi", "ho"]}
        if route == "completions"
        else {"messages": [{"role": "user", "content": "hi"}]}
    )
    body = {"model": "tiny", "max_tokens": 2, "priority": 7} | prompt

    usage = (await http.post(f"/v1/{route}", json=body)).json()["usage"]
    refused = await http.post(f"/v1/{route}", json=body | {"priority": 1001})

    num_requests = len(engine.shares)
    assert usage["prompt_tokens_details"] == {"cached_tokens": num_requests}
    assert {share.priority for share in engine.shares} == {7}
    assert refused.status_code == 400
