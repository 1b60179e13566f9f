"""Operations that generate: whole and streamed, of tasks, of versions, of the base model."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import httpx

from tests.soak.asks import ASKS, GENERATE, Ask
from tests.soak.ledger import Target, Violation
from tests.soak.session import UNAVAILABLE, Reply, Session, target_of
from tests.soak.world import World, full


def choose_target(world: World, random: Random) -> tuple[str | None, int | None]:
    """Choose a task, or a version of one, or the base model."""
    if random.random() < 0.08:
        return None, None
    task = world.any_task(random)
    return task, world.any_version(random, task) if random.random() < 0.3 else None


def request_of(
    session: Session, world: World, ask: Ask, task: str | None, version: int | None, **more: Any
) -> httpx.Request:
    body = ask.json(task, version, world.model) | more
    return session.request("POST", ask.path, params=ask.params(task, version), json=body)


def allowed_for(world: World, task: str | None, version: int | None) -> set[str]:
    """Return the outcomes that a request for this target may have."""
    return {"200"} | world.gone(task, version) | (full(task) if task is not None else set())


async def ask_whole(session: Session, world: World, random: Random) -> str:
    ask = random.choice(ASKS)
    task, version = choose_target(world, random)
    begun_s = time.monotonic()
    response = await session.http.send(request_of(session, world, ask, task, version))
    reply = Reply(response.status_code, response.headers, response.content)
    session.check(ask.name, reply, allowed_for(world, task, version), begun_s)
    if reply.status == 200:
        session.ledger.answered(reply.target(task), ask.name, ask.answer(reply.json()))
    return reply.outcome


async def ask_streamed(session: Session, world: World, random: Random) -> str:
    ask = random.choice(ASKS)
    task, version = choose_target(world, random)
    begun_s = time.monotonic()
    request = request_of(session, world, ask, task, version, stream=True)
    response = await session.http.send(request, stream=True)
    try:
        if response.status_code != 200:
            content = await response.aread()
            reply = Reply(response.status_code, response.headers, content)
            session.check(ask.name, reply, allowed_for(world, task, version), begun_s)
            return reply.outcome
        events = [event async for event in session.events(response)]
    finally:
        await response.aclose()
    error = error_of(ask, events)
    if error is not None:
        return _check_error(session, ask, error, begun_s, task)
    target = target_of(task, response.headers)
    session.ledger.answered(target, ask.name, ask.streamed(events))
    return "200"


async def follow(
    session: Session, response: httpx.Response, ask: Ask, task: str | None, num_events: int
) -> Target:
    """Read some events of a stream, and record the tokens that came."""
    token_ids: list[int] = []
    async for event, data in session.events(response):
        if event == "token":
            token_ids += data["token_ids"] or []
        num_events -= 1
        if num_events <= 0:
            break
    target = target_of(task, response.headers)
    if ask.path == GENERATE:
        session.ledger.cut_off.append((target, ask.name, token_ids))
    return target


def error_of(ask: Ask, events: list[tuple[str, Any]]) -> str | None:
    """Return the code of the error that a stream ended with, if it did."""
    if not events:
        raise Violation(f"{ask.name}: a stream without events")
    event, data = events[-1]
    if ask.path == GENERATE:
        if event not in ("done", "error"):
            raise Violation(f"{ask.name}: a stream ends with {event}")
        return str(data["code"]) if event == "error" else None
    return str(data["error"]["code"]) if "error" in data else None


def _check_error(session: Session, ask: Ask, code: str, begun_s: float, task: str | None) -> str:
    outcome = f"503 {code}"
    if outcome == UNAVAILABLE:
        session.check_outage(ask.name, begun_s)
    elif task is None or outcome not in full(task):
        raise Violation(f"{ask.name}: a stream ended with {code}")
    return f"{outcome} in a stream"
