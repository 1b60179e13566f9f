"""Choices that are ranked instead of generated."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from server.api.http.deps import Services
from server.generation.constraint import Constraint
from tests.server.fakes import FakeEngine, push

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
MESSAGES = [{"role": "user", "content": "hi"}]
IS_SCHEMA = Constraint(json_schema=SCHEMA).grammar()
IS_OBJECT = Constraint(json_schema={"type": "object"}).grammar()
IS_LETTER = Constraint(regex="[a-z]").grammar()
IS_YES = Constraint(choice=("yes", "no")).grammar()


async def test_the_likeliest_choice_is_the_answer(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """The fake engine gives every token -0.5."""
    body = {"prompt": "hi", "choices": ["positive", "bad", "neutral"]}
    answer = (await http.post("/generate", json=body)).json()

    scores = {choice["text"]: choice for choice in answer["choices"]}
    assert answer["text"] == "bad"
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 3
    assert [*scores] == body["choices"]
    assert (scores["positive"]["logprob"], scores["positive"]["num_tokens"]) == (-4.0, 8)
    assert sum(score["probability"] for score in scores.values()) == pytest.approx(1)
    assert [len(ids) for _, ids, _ in engine.submitted] == [10, 5, 9]
    assert {s.first_scored for _, _, s in engine.submitted} == {2}
    mean = (await http.post("/generate", json=body | {"rank_by": "mean"})).json()
    assert [choice["probability"] for choice in mean["choices"]] == pytest.approx([1 / 3] * 3)


async def test_choices_stream_and_may_come_from_the_profile(http: httpx.AsyncClient) -> None:
    await push(http, "x")
    await http.patch("/tasks/x", json={"defaults": {"choices": ["yes", "no"]}, "chat": True})

    streamed = await http.post("/generate?task=x", json={"prompt": "hi", "stream": True})
    chat = await http.post("/v1/chat/completions", json={"model": "x", "messages": MESSAGES})
    completion = await http.post("/v1/completions", json={"model": "x", "prompt": "hi"})
    own = await http.post("/generate?task=x", json={"prompt": "hi", "choices": ["maybe", "so"]})

    events = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
    token, done = (json.loads(event) for event in events)
    assert token["text"] == "no"
    assert [choice["text"] for choice in done["choices"]] == ["yes", "no"]
    [answer] = chat.json()["choices"]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("no", "stop")
    assert [score["text"] for score in answer["scores"]] == ["yes", "no"]
    assert completion.json()["choices"][0]["text"] == "no"
    assert own.json()["text"] == "so"


async def test_logprobs_are_those_of_the_choice(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "hi", "choices": ["abc", "de"], "logprobs": 2}
    answer = (await http.post("/v1/completions", json=body)).json()

    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["d", "e"]
    assert logprobs["token_logprobs"] == [-0.5, -0.5]


async def test_a_reader_that_leaves_ends_all_of_them(
    services: Services, engine: FakeEngine
) -> None:
    from server.generation.prompt import GenerateParams

    engine.delay_s = 5.0
    asked = GenerateParams(prompt="hi", constraint=Constraint(choices=("a", "b")))
    completion = await services.router.admit(None, None, asked)
    reading = asyncio.create_task(completion.collect())
    while not engine.submitted:
        await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)

    assert engine.num_cancelled == 1
    assert len(engine.submitted) == 1
