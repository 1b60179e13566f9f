"""Sampling parameters at every generating route: they reach the engine, or are refused."""

from __future__ import annotations

import httpx
import pytest

from server.text.tokenizer import Tokenizer
from tests.server.fakes import INFO, FakeEngine, push


async def test_penalties_biases_and_lengths_reach_the_engine(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    fields = {
        "presence_penalty": 0.5, "frequency_penalty": -0.25, "repetition_penalty": 1.5,
        "min_tokens": 2, "logit_bias": {"7": -100, "9": 0.5}, "min_p": 0.25,
        "stop_token_ids": [7, 9],
    }  # fmt: skip
    prompt = {"max_tokens": 3, "prompt": "hi"}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}

    answers = [
        await http.post("/v1/completions", json={"model": "tiny"} | prompt | fields),
        await http.post("/v1/chat/completions", json=chat | {"max_tokens": 3} | fields),
        await http.post("/generate", json=prompt | fields),
    ]

    assert [answer.status_code for answer in answers] == [200] * 3
    for _, _, sampling in engine.submitted:
        assert sampling.logit_bias == ((7, -100.0), (9, 0.5))
        assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.25)
        assert (sampling.repetition_penalty, sampling.min_tokens) == (1.5, 2)
        assert (sampling.min_p, sampling.stop_token_ids) == (0.25, (7, 9))


async def test_a_stop_token_ends_the_text_and_is_not_part_of_it(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    [*start, dot] = tokenizer.encode("abc.")
    engine.script = lambda prefix, token_ids: [*start, dot]
    asked = {"max_tokens": 9, "stop_token_ids": [dot]}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    await push(http, "x")
    defaults = {"defaults": {"stop_token_ids": [dot], "min_p": 0.5}}
    assert (await http.patch("/tasks/x", json=defaults)).status_code == 200

    own = (await http.post("/generate", json={"prompt": "hi", **asked})).json()
    by_task = (await http.post("/generate?task=x", json={"prompt": "hi", "max_tokens": 9})).json()
    free = {"prompt": "hi", "max_tokens": 9, "stop_token_ids": []}
    freed = (await http.post("/generate?task=x", json=free)).json()
    completion = await http.post("/v1/completions", json={"model": "tiny", "prompt": "hi", **asked})
    message = await http.post("/v1/chat/completions", json=chat | asked)

    assert own["usage"]["completion_tokens"] == len(start) + 1
    for answer in (own, by_task):
        assert (answer["text"], answer["finish_reason"]) == ("abc", "stop")
    assert engine.submitted[1][2].min_p == 0.5
    assert freed["text"] == "abc."
    assert completion.json()["choices"][0]["text"] == "abc"
    assert message.json()["choices"][0]["message"]["content"] == "abc"


@pytest.mark.parametrize(
    "fields",
    [
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": [True]},
        {"stop_token_ids": 7},
        {"stop_token_ids": [7] * 65},
        {"stop_token_ids": [INFO.vocab_size]},
    ],
)
async def test_min_p_and_stop_tokens_out_of_bounds_are_refused(
    http: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, object]
) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    await push(http, "x")

    answers = [
        await http.post("/generate", json={"prompt": "hi"} | fields),
        await http.post("/v1/completions", json={"model": "tiny", "prompt": "hi"} | fields),
        await http.post("/v1/chat/completions", json=chat | fields),
    ]

    assert [answer.status_code for answer in answers] == [422, 400, 400]
    assert engine.submitted == []
    if fields != {"stop_token_ids": [INFO.vocab_size]}:
        default = await http.patch("/tasks/x", json={"defaults": fields})
        assert default.status_code == 422
