"""Golden prompts take few places, and no longer than they must."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from server.engine.params import GOLDEN
from tests.server.fakes import INFO, FakeEngine, push

NEVER = 10_000.0
"""Seconds that a token takes that never comes."""


def golden(*expected: object) -> list[dict[str, object]]:
    return [{"prompt": f"p{i}", "expect": expect} for i, expect in enumerate(expected)]


@pytest.fixture
def engine(engine: FakeEngine) -> FakeEngine:
    """An engine with 16 places, whose completions are ABC."""
    engine.info_or_none = msgspec.structs.replace(INFO, max_num_seqs=16)
    engine.script = lambda *_: [33, 34, 35] * 50  # tokens of the alphabet from ! on
    return engine


async def turns(condition: Callable[[], bool]) -> None:
    """Let others run until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_all_uploads_together_take_a_quarter_of_the_places(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.delay_s, most = 0.001, 0
    submit = engine.submit

    def counted(*args: Any) -> Any:
        nonlocal most
        stream = submit(*args)
        most = max(most, engine.num_in_flight)
        return stream

    engine.submit = counted  # type: ignore[method-assign]
    bodies = [{"text": f"Hello {i}", "golden": golden(*[[33, 34]] * 8)} for i in range(5)]

    answers = await asyncio.gather(
        *(http.put(f"/tasks/x{i}/prefix", json=body) for i, body in enumerate(bodies))
    )

    assert [answer.status_code for answer in answers] == [201] * 5
    assert most == 4
    assert len(engine.submitted) == 40
    assert {share.queue for share in engine.shares} == {GOLDEN}


async def test_golden_prompts_are_not_heavier_than_requests_of_their_task(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for task, weight in (("light", 0.25), ("heavy", 8)):
        await http.put(f"/tasks/{task}", json={"weight": weight})
        body = {"text": "Hello", "golden": golden([33])}
        assert (await http.put(f"/tasks/{task}/prefix", json=body)).is_success

    assert [share.weight for share in engine.shares] == [0.25, 1.0]


@pytest.mark.parametrize("expect", [[33, 99] + [1] * 50, "Bx" + "x" * 50])
async def test_a_golden_prompt_ends_at_the_first_token_that_differs(
    http: httpx.AsyncClient, engine: FakeEngine, expect: object
) -> None:
    await http.put("/tasks/x", json={})

    answer = await http.put("/tasks/x/prefix", json={"text": "a", "golden": golden(expect)})

    assert answer.json()["code"] == "golden_prompt_failed"
    assert engine.num_tokens_made <= 3
    assert engine.num_in_flight == 0


async def test_a_text_is_generated_no_further_than_it_is_expected(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    expect = "BCD"

    answer = await http.put("/tasks/x/prefix", json={"text": "a", "golden": golden(expect)})

    assert answer.status_code == 201, answer.text
    assert engine.num_tokens_made <= len(expect) + 1


async def test_the_first_failure_ends_the_others_of_the_upload(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    # A place for each: which of them get the first places depends on the threads.
    engine.info_or_none = msgspec.structs.replace(INFO, max_num_seqs=64)
    engine.delay_s = 0.001
    right = [33, 34, 35] * 50
    body = {"text": "a", "golden": golden(*[right] * 2, [34], *[right] * 13)}

    answer = await http.put("/tasks/x/prefix", json=body)

    assert answer.json()["detail"].startswith("prompt 3 of the upload")
    assert engine.num_in_flight == 0
    assert engine.num_tokens_made < 15 * len(right) / 2


@pytest.mark.parametrize("deleted", ["/tasks/x", "/tasks/x/versions/1"])
@pytest.mark.parametrize("call", ["verify", "activate"])
async def test_checks_of_a_version_end_when_it_is_deleted(
    http: httpx.AsyncClient, engine: FakeEngine, deleted: str, call: str
) -> None:
    for seed in (1, 2):
        await push(http, "x", seed=seed)
    await http.patch("/tasks/x", json={"golden": golden([33])})
    engine.delay_s = NEVER
    path = "/tasks/x/versions/1/verify" if call == "verify" else "/tasks/x/activate"
    checked = asyncio.create_task(http.post(path, json={"version": 1}))
    await turns(lambda: engine.num_in_flight == 1)

    await http.delete(deleted)

    async with asyncio.timeout(30):
        answer = await checked
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_version")
    assert engine.num_in_flight == 0
