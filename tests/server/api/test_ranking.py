"""The most likely of given texts as the answer, at every generating route."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from prefix_store.sampling import Rank
from server.api.http.deps import Services
from server.generation.constraint import Constraint
from server.generation.prompt import GenerateParams
from tests.server.fakes import FakeEngine, push

MESSAGES = [{"role": "user", "content": "hi"}]


async def test_the_most_likely_text_is_the_answer(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """The fake engine gives every token -0.5."""
    body = {"prompt": "hi", "rank": {"texts": ["positive", "bad", "neutral"]}}
    answer = (await http.post("/generate", json=body)).json()

    scores = {text["text"]: text for text in answer["ranking"]}
    assert answer["text"] == "bad"
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 3
    assert [*scores] == body["rank"]["texts"]
    assert (scores["positive"]["logprob"], scores["positive"]["num_tokens"]) == (-4.0, 8)
    assert sum(score["probability"] for score in scores.values()) == pytest.approx(1)
    assert [len(ids) for _, ids, _ in engine.submitted] == [10, 5, 9]
    assert {s.first_scored for _, _, s in engine.submitted} == {2}
    mean = (
        await http.post("/generate", json=body | {"rank": body["rank"] | {"by": "mean"}})
    ).json()
    assert [text["probability"] for text in mean["ranking"]] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("old", [{"choices": ["a", "b"]}, {"rank_by": "sum"}])
async def test_old_names_of_rank_are_refused_and_the_new_one_is_named(
    http: httpx.AsyncClient, engine: FakeEngine, old: dict[str, Any]
) -> None:
    own = await http.post("/generate", json={"prompt": "hi"} | old)
    openais = await http.post("/v1/completions", json={"model": "tiny", "prompt": "hi"} | old)

    assert (own.status_code, openais.status_code) == (422, 400)
    assert '"rank": {"texts"' in own.json()["detail"]
    assert '"rank": {"texts"' in openais.json()["error"]["message"]
    assert engine.submitted == []


@pytest.mark.parametrize("old", [{"choices": ["a", "b"]}, {"choices": None}, {"rank_by": "mean"}])
async def test_a_patch_with_the_old_names_of_rank_is_refused(
    http: httpx.AsyncClient, old: dict[str, object]
) -> None:
    profile = {"defaults": {"rank": {"texts": ["a", "b"]}}}
    before = (await http.put("/tasks/x", json=profile)).json()

    answer = await http.patch("/tasks/x", json={"defaults": old})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "`rank`" in answer.json()["detail"]
    assert (await http.get("/tasks/x")).json()["profile"] == before["profile"]


async def test_a_ranking_streams_and_may_come_from_the_profile(http: httpx.AsyncClient) -> None:
    await push(http, "x")
    await http.patch(
        "/tasks/x", json={"defaults": {"rank": {"texts": ["yes", "no"]}}, "chat": True}
    )

    streamed = await http.post("/generate?task=x", json={"prompt": "hi", "stream": True})
    chat = await http.post("/v1/chat/completions", json={"model": "x", "messages": MESSAGES})
    completion = await http.post("/v1/completions", json={"model": "x", "prompt": "hi"})
    own = await http.post(
        "/generate?task=x", json={"prompt": "hi", "rank": {"texts": ["maybe", "so"]}}
    )

    events = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
    token, done = (json.loads(event) for event in events)
    assert token["text"] == "no"
    assert [text["text"] for text in done["ranking"]] == ["yes", "no"]
    [answer] = chat.json()["choices"]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("no", "stop")
    assert [score["text"] for score in answer["ranking"]] == ["yes", "no"]
    assert completion.json()["choices"][0]["text"] == "no"
    assert own.json()["text"] == "so"


async def test_logprobs_are_those_of_the_chosen_text(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "hi", "rank": {"texts": ["abc", "de"]}, "logprobs": 2}
    answer = (await http.post("/v1/completions", json=body)).json()

    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["d", "e"]
    assert logprobs["token_logprobs"] == [-0.5, -0.5]


async def test_a_reader_that_leaves_ends_all_of_them(
    services: Services, engine: FakeEngine
) -> None:
    engine.delay_s = 5.0
    asked = GenerateParams(prompt="hi", constraint=Constraint(rank=Rank(texts=("a", "b"))))
    completion = await services.router.admit(None, None, asked)
    reading = asyncio.create_task(completion.collect())
    while not engine.submitted:
        await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)

    assert engine.num_cancelled == 1
    assert len(engine.submitted) == 1
