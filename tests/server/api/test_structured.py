"""What answers have to be, as the routes take it: forms, refusals."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import httpx
import pytest

from server.api.http.deps import Services
from server.engine.params import SamplingParams
from server.generation import grammar_check, grammar_process
from server.generation.constraint import Constraint
from server.generation.grammar_check import reason
from tests.server.fakes import FakeEngine, push

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
MESSAGES = [{"role": "user", "content": "hi"}]
IS_SCHEMA = Constraint(json_schema=SCHEMA).grammar()
IS_OBJECT = Constraint(json_schema={"type": "object"}).grammar()
IS_LETTER = Constraint(regex="[a-z]").grammar()
IS_YES = Constraint(choice=("yes", "no")).grammar()


def last(engine: FakeEngine) -> SamplingParams:
    return engine.submitted[-1][2]


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        ({"response_format": FORMAT}, IS_SCHEMA),
        ({"response_format": {"type": "json_object"}}, IS_OBJECT),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, IS_SCHEMA),
        ({"response_format": {"type": "json_object", "schema": {}}}, IS_OBJECT),
        ({"response_format": FORMAT | {"type": "json_object"}}, IS_SCHEMA),
        ({"response_format": {"type": "json_object", "schema": None}}, IS_OBJECT),
        ({"response_format": {"type": "text"}}, None),
        ({"regex": "[a-z]"}, IS_LETTER),
        ({"choice": ["yes", "no"]}, IS_YES),
        ({}, None),
    ],
)
async def test_the_native_route_hands_the_grammar_on(
    http: httpx.AsyncClient, engine: FakeEngine, form: dict[str, Any], grammar: str | None
) -> None:
    response = await http.post("/generate", json={"prompt": "hi", "max_tokens": 2} | form)

    assert response.status_code == 200, response.text
    assert last(engine).grammar == grammar


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        ({"response_format": FORMAT}, IS_SCHEMA),
        ({"response_format": {"type": "json_object"}}, IS_OBJECT),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, IS_SCHEMA),
        ({"response_format": FORMAT | {"type": "json_object"}}, IS_SCHEMA),
        ({"structured_outputs": {"json": SCHEMA}}, IS_SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, IS_SCHEMA),
        ({"structured_outputs": {"json_object": True}}, IS_OBJECT),
        ({"structured_outputs": {"regex": "[a-z]", "json": None}}, IS_LETTER),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, IS_YES),
        ({"guided_json": SCHEMA}, IS_SCHEMA),
        ({"guided_regex": "[a-z]"}, IS_LETTER),
        ({"guided_choice": ["yes", "no"]}, IS_YES),
        ({"response_format": {"type": "text"}, "guided_choice": ["yes", "no"]}, IS_YES),
    ],
)
async def test_openais_routes_take_openais_way_and_vllms(
    http: httpx.AsyncClient,
    engine: FakeEngine,
    route: str,
    form: dict[str, Any],
    grammar: str | None,
) -> None:
    asked = {"prompt": "hi"} if route == "completions" else {"messages": MESSAGES}
    body = {"model": "tiny", "max_tokens": 2, "n": 2} | asked | form

    response = await http.post(f"/v1/{route}", json=body)

    assert response.status_code == 200, response.text
    assert last(engine).grammar == grammar


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "text", "schema": SCHEMA}},
        {"response_format": {"type": "json_object", "schema": "{}"}},
        {"response_format": {"type": "json_object", "schemas": SCHEMA}},
        {"response_format": FORMAT | {"schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "regex": "a"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 7}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        {"regex": "("},
        {"regex": r"(a)\1"},
        {"regex": r"[^\s\S]"},
        {"choice": [f"{i}" + "é" * 1000 for i in range(12)]},
        {"regex": ""},
        {"choice": []},
        {"choice": ["a", "a"]},
        {"rank": {"texts": ["a", "a"]}},
        {"rank": {"texts": ["x" * 300]}},
        {"choice": ["a"], "regex": "b"},
        {"response_format": FORMAT, "rank": {"texts": ["a"]}},
        {"regex": "[a-z]+", "min_tokens": 2},
        {"rank": {"texts": ["a"], "by": "luck"}},
    ],
    ids=lambda form: json.dumps(form)[:40],
)
async def test_what_cannot_be_is_refused_and_nothing_is_run(
    http: httpx.AsyncClient, engine: FakeEngine, form: dict[str, Any]
) -> None:
    response = await http.post("/generate", json={"prompt": "hi", "stream": True} | form)

    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert not engine.submitted


async def test_the_reason_names_what_is_wrong_and_not_what_was_sent(
    http: httpx.AsyncClient,
) -> None:
    schema = {"type": "array", "items": {"const": "secret"}, "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    keyword = await http.post("/generate", json={"prompt": "hi", "response_format": form})
    regex = await http.post("/generate", json={"prompt": "hi", "regex": "secret("})

    assert keyword.json()["code"] == regex.json()["code"] == "invalid_grammar"
    assert "uniqueItems" in keyword.json()["detail"]
    assert "unclosed group" in regex.json()["detail"]
    assert "secret" not in keyword.text + regex.text


@pytest.mark.parametrize(
    "said",
    [
        'at 1(8): invalid regex "secret$b" (in regex): lookarounds not supported',
        "Resource 'http://secret/z' is not present in a registry and retrieving it failed",
        "can't determine if patternProperty regexes /secret/ and /b/ are disjoint",
        "Unable to determine if regex is empty:  (And (SearchRegex /secret/))",
        "<secret>",
    ],
)
def test_a_reason_quotes_nothing(said: str) -> None:
    assert "secret" not in reason(said)
    assert len(reason(said)) > 10


EXPONENTIAL: dict[str, Any] = {
    "allOf": [{"type": "string", "pattern": f"^.*a{i}.*$"} for i in range(400)]
}
"""Its compile would take longer than the universe exists."""


def hostile_request() -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"schema": EXPONENTIAL}}
    return {"prompt": "hi", "response_format": form}


async def test_a_hostile_schema_costs_a_422_and_keeps_nobody_waiting(
    http: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_process, "MAX_COMPILE_S", 0.5)
    monkeypatch.setattr(grammar_check, "COMPILE_TIMEOUT_S", 60)
    hostile = [asyncio.create_task(http.post("/generate", json=hostile_request())) for _ in "12"]
    while not services.definitions.grammars._running:
        assert not any(task.done() for task in hostile)
        await asyncio.sleep(0.005)

    body = {"prompt": "hi", "max_tokens": 1}
    others = [(await http.post("/generate", json=body)).status_code for _ in range(5)]
    others.append((await http.post("/generate", json=body | {"regex": "a"})).status_code)
    answers = [await task for task in hostile]

    assert others == [200] * 6
    assert [answer.status_code for answer in answers] == [422, 422]
    assert "longer than 0.5 s to compile" in answers[0].json()["detail"]


async def test_a_busy_machine_is_not_the_fault_of_a_grammar(
    http: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process uses no processor time, like one that others leave none to."""
    await http.post("/generate", json={"prompt": "hi", "regex": "a"})
    [process] = services.definitions.grammars._processes
    monkeypatch.setattr(grammar_check, "COMPILE_TIMEOUT_S", 0.1)
    process._process.send_signal(signal.SIGSTOP)
    try:
        busy = await http.post("/generate", json={"prompt": "hi", "regex": "b"})
    finally:
        process._process.send_signal(signal.SIGCONT)
    monkeypatch.setattr(grammar_check, "COMPILE_TIMEOUT_S", 60)
    again = await http.post("/generate", json={"prompt": "hi", "regex": "b"})

    assert (busy.status_code, busy.headers["Retry-After"]) == (429, "1")
    assert again.status_code == 200


async def test_a_compile_ends_with_the_last_client_that_waits_for_it(
    http: httpx.AsyncClient, services: Services
) -> None:
    grammars = services.definitions.grammars
    waiting = [asyncio.create_task(http.post("/generate", json=hostile_request())) for _ in "12"]
    while not (begun := [one for one in grammars._running.values() if one.process is not None]):
        await asyncio.sleep(0.005)
    [compiling] = begun

    waiting[0].cancel()
    await asyncio.wait({waiting[0]})
    is_left_running = not compiling.future.done()
    waiting[1].cancel()
    await asyncio.wait({waiting[1]})
    assert await asyncio.to_thread(compiling.future.result, 10) is None

    assert is_left_running
    assert compiling.process is not None
    assert compiling.process._process.returncode == -signal.SIGKILL


async def test_what_was_found_is_remembered(
    http: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = {"prompt": "hi", "regex": "[a-z]"}, {"prompt": "hi", "regex": "("}
    before = [(await http.post("/generate", json=body)).status_code for body in (good, bad)]
    monkeypatch.setattr(services.definitions.grammars, "_begin", None)
    after = [(await http.post("/generate", json=body)).status_code for body in (good, bad)]

    assert before == after == [200, 422]


async def test_without_the_package_it_is_said_so(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    forms: list[dict[str, Any]] = [{"response_format": FORMAT}, {"regex": "a"}, {"choice": ["a"]}]

    for form in forms:
        response = await http.post("/generate", json={"prompt": "hi"} | form)
        assert response.status_code == 422
        assert "llguidance" in response.json()["detail"]
    assert (await http.post("/generate", json={"prompt": "hi"})).status_code == 200


async def test_a_profile_says_what_its_answers_are(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await push(http, "x")
    for defaults in ({"regex": "("}, {"regex": "a", "choice": ["a"]}, {"rank": {"by": "luck"}}):
        response = await http.patch("/tasks/x", json={"defaults": defaults})
        assert response.status_code == 422, response.text
    set_ = await http.patch("/tasks/x", json={"defaults": {"response_format": FORMAT}})
    assert set_.status_code == 200

    grammars = []
    for form in ({}, {"regex": "[a-z]"}, {"response_format": {"type": "text"}}):
        await http.post("/generate?task=x", json={"prompt": "hi", "max_tokens": 2} | form)
        grammars.append(last(engine).grammar)

    assert grammars == [IS_SCHEMA, IS_LETTER, None]
