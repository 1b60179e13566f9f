from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.errors import StepFailed
from server.tokenizer import Tokenizer
from tests.server.fakes import FakeEngine, push


def chunks(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_models_are_the_base_model_and_every_task_that_answers(
    http: httpx.AsyncClient,
) -> None:
    await http.put("/tasks/empty", json={})
    await push(http, "x")

    listed = (await http.get("/v1/models")).json()

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tiny", "x"]


@pytest.mark.parametrize(("model", "version"), [("x", 2), ("x@1", 1), ("x@2", 2), ("tiny", None)])
async def test_a_model_is_a_task_a_version_of_it_or_the_base_model(
    http: httpx.AsyncClient, model: str, version: int | None
) -> None:
    await push(http, "x", seed=1)
    await push(http, "x", seed=2)

    response = await http.post(
        "/v1/completions", json={"model": model, "prompt": "hi", "max_tokens": 4}
    )

    answer = response.json()
    assert response.headers.get("X-Task-Version") == (str(version) if version else None)
    assert (answer["object"], answer["model"]) == ("text_completion", model)
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 4,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    (choice,) = answer["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert len(choice["text"]) == 4


@pytest.mark.parametrize("model", ["nope", "x@9", "x@0", "x@", "x@99999999999", "../x", "X", ""])
async def test_an_unknown_model_is_a_404_in_openais_shape(
    http: httpx.AsyncClient, model: str
) -> None:
    await push(http, "x")

    response = await http.post("/v1/completions", json={"model": model, "prompt": "hi"})

    error = response.json()["error"]
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/json"
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] in ("unknown_task", "unknown_version")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", ["ab"]),
        ([1, 2], [[1, 2]]),
        (["ab", "c"], ["ab", "c"]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
async def test_prompts_are_text_or_token_ids_one_or_several(
    http: httpx.AsyncClient,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    prompt: object,
    prompts: list[str | list[int]],
) -> None:
    response = await http.post("/v1/completions", json={"model": "tiny", "prompt": prompt})

    ids = [tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
    assert [token_ids for _, token_ids, _ in engine.submitted] == ids
    assert [c["index"] for c in response.json()["choices"]] == list(range(len(prompts)))


@pytest.mark.parametrize("prompt", ["hi", ["hi", "ho", "hu"]])
async def test_a_stream_of_completions_is_the_whole_answer_in_chunks(
    http: httpx.AsyncClient, prompt: object
) -> None:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 5}
    options = {"stream": True, "stream_options": {"include_usage": True}}

    whole = (await http.post("/v1/completions", json=body)).json()
    *pieces, last = chunks((await http.post("/v1/completions", json=body | options)).text)

    for choice in whole["choices"]:
        mine = [p["choices"][0] for p in pieces if p["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        assert [piece["finish_reason"] for piece in mine] == [None] * 4 + ["length"]
    assert all(piece["usage"] is None for piece in pieces)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


async def test_a_stream_without_usage_does_not_mention_it(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "hi", "stream": True}

    pieces = chunks((await http.post("/v1/completions", json=body)).text)

    assert all("usage" not in piece for piece in pieces)


async def test_chat_answers_whole_and_in_chunks(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    messages = [
        {"role": "developer", "content": "Be odd."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    body = {"model": "tiny", "messages": messages, "max_completion_tokens": 3}

    whole = (await http.post("/v1/chat/completions", json=body)).json()
    first, *pieces = chunks(
        (await http.post("/v1/chat/completions", json=body | {"stream": True})).text
    )

    (choice,) = whole["choices"]
    said = tokenizer.decode(engine.submitted[0][1])
    assert said == "system\nBe odd.\nuser\na\nb\nassistant\n"
    assert (whole["object"], first["object"]) == ("chat.completion", "chat.completion.chunk")
    assert choice["message"]["role"] == "assistant"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [piece["choices"][0]["delta"]["content"] for piece in pieces]
    assert "".join(deltas) == choice["message"]["content"]
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"


async def test_fields_we_do_not_know_are_ignored(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    known = {"model": "tiny", "prompt": "hi", "temperature": 0.5, "top_k": -1, "ignore_eos": True}
    others = {"user": "me", "repetition_penalty": 1.1, "min_p": 0.1, "logprobs": None, "n": 1}

    response = await http.post("/v1/completions", json=known | others)

    sampling = engine.submitted[0][2]
    assert response.status_code == 200
    assert (sampling.temperature, sampling.top_k, sampling.ignore_eos) == (0.5, 0, True)


@pytest.mark.parametrize(
    "field",
    [
        {"echo": True},
        {"logprobs": 1},
        {"n": 2},
        {"best_of": 2},
        {"suffix": "x"},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"logit_bias": {"1": 1.0}},
        {"stop": ["x"] * 17},
    ],
)
async def test_what_would_silently_be_something_else_is_refused(
    http: httpx.AsyncClient, field: dict[str, object]
) -> None:
    body = {"model": "tiny", "prompt": "hi"} | field

    response = await http.post("/v1/completions", json=body)

    assert response.status_code == 422
    assert next(iter(field)) in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "field",
    [
        {"logprobs": True},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": []},
        {"messages": [{"role": "user", "content": "refuse me"}]},
    ],
)
async def test_chat_takes_text_only(http: httpx.AsyncClient, field: dict[str, object]) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]} | field

    response = await http.post("/v1/chat/completions", json=body)

    assert response.status_code == 422
    assert set(response.json()) == {"error"}


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
    engine.num_reused = 1
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
    assert refused.status_code == 422
