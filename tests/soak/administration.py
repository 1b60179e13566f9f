"""Operations beside generation: residency, keys, reading, bad requests."""

from __future__ import annotations

import time
from random import Random
from typing import Any

from tests.soak.ledger import Violation
from tests.soak.session import Session
from tests.soak.world import JSON, SAFETENSORS, TASKS, World, full

_NOT_READY = "503 None"
"""Outcome of a health check: its body has reasons instead of a code."""
_GENERATE = {"prompt": "Once upon a time", "max_tokens": 2}
_BAD: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("400 malformed_request", "POST", "/generate", {"content": b'{"prompt": "a', "headers": {
        "Content-Type": JSON}}),
    ("422 validation_failed", "POST", "/generate", {"json": {"prompt": [-1]}}),
    ("422 prompt_too_long", "POST", "/generate", {"json": {"prompt": [504] * 4000}}),
    ("422 invalid_grammar", "POST", "/generate", {"json": _GENERATE | {"regex": "(?=a)b"}}),
    ("404 unknown_task", "POST", "/generate?task=nobody", {"json": _GENERATE}),
    ("404 unknown_version", "POST", f"/generate?task={TASKS[1]}&version=999999",
     {"json": _GENERATE}),
    ("400 unsupported_parameter", "POST", "/v1/completions", {"json": {
        "model": TASKS[1], "prompt": "a", "suffix": "b"}}),
    ("422 invalid_artifact", "PUT", f"/tasks/{TASKS[1]}/prefix", {"content": b"\x08" * 64,
        "headers": {"Content-Type": SAFETENSORS}}),
    ("415 unsupported_media_type", "PUT", f"/tasks/{TASKS[1]}/prefix", {"content": b"a",
        "headers": {"Content-Type": "text/plain"}}),
)  # fmt: skip
_READS = (
    "/livez", "/readyz", "/metrics", "/info", "/tasks", "/audit", "/keys", "/v1/models",
    *(f"/tasks/{TASKS[1]}{part}" for part in ("", "/versions", "/traffic")),
)  # fmt: skip


async def read(session: Session, world: World, random: Random) -> str:
    path, begun_s = random.choice(_READS), time.monotonic()
    allowed = {"200", _NOT_READY} if path in ("/livez", "/readyz") else {"200"}
    reply = await session.send("GET", path, allowed)
    if reply.outcome == _NOT_READY:
        session.check_outage(path, begun_s)
    return reply.outcome


async def send_bad(session: Session, world: World, random: Random) -> str:
    """Send something that is refused."""
    expected, method, path, parts = random.choice(_BAD)
    return (await session.send(method, path, {expected}, **parts)).outcome


async def move(session: Session, world: World, random: Random) -> str:
    """Load, pin, unpin or evict a prefix."""
    task = world.any_task(random)
    version = world.any_version(random, task)
    what = random.choice(("warm", "pin", "unpin", "unpin", "evict"))
    if what == "unpin" and world.pinned:
        task, version = world.pinned.pop(random.randrange(len(world.pinned)))
    if version is None:
        return "no version"
    allowed = {"200"} | world.gone(task, version)
    allowed |= full(task) if what in ("warm", "pin") else set()
    allowed |= {"409 pin_refused"} if what == "pin" else set()
    allowed |= {"409 prefix_in_use"} if what == "evict" else set()
    reply = await session.send("POST", f"/tasks/{task}/versions/{version}/{what}", allowed)
    if what == "pin" and reply.status == 200:
        world.pinned.append((task, version))
    return f"{reply.outcome} {what}"


async def turn_key(session: Session, world: World, random: Random) -> str:
    """Create a key, use it, revoke it, and find it refused."""
    grant = {"name": "turned", "scopes": ["generate"], "tasks": [TASKS[1]], "max_concurrency": 1}
    created = (await session.send("POST", "/keys", {"201"}, json=grant)).json()
    own = Session(session.http, session.ledger, created["key"])
    params = {"task": TASKS[1]}
    await own.send("POST", "/generate", {"200"}, params=params, json=_GENERATE)
    await own.send("POST", "/generate", {"404 unknown_task"}, params={"task": TASKS[2]},
                   json=_GENERATE)  # fmt: skip
    await session.send("DELETE", f"/keys/{created['id']}", {"204"})
    refused = {"401 unauthenticated", "429 too_many_attempts"}
    reply = await own.send("POST", "/generate", refused, params=params, json=_GENERATE)
    if reply.status == 200:
        raise Violation("a revoked key was accepted")
    return reply.outcome
