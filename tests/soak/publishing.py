"""Operations that change tasks: uploads, activations, splits, definitions, deletions."""

from __future__ import annotations

import hashlib
from random import Random
from uuid import UUID

from tests.soak.ledger import Violation
from tests.soak.session import Reply, Session
from tests.soak.world import (
    DEFINITIONS,
    LARGE_TEXT,
    MAX_VERSIONS,
    TASKS,
    TEMPORARY,
    TEXTS,
    Source,
    World,
    full,
    redefined,
    text_source,
    wrong_golden,
)

OVERTAKEN = {"409 activation_overtaken"}


def choose_source(world: World, random: Random, task: str) -> Source:
    """Choose what to upload. Only the first task gets the large prefix."""
    if task == TASKS[0] and random.random() < 0.25:
        return text_source(LARGE_TEXT, DEFINITIONS[0])
    kind = random.random()
    if kind < 0.15:
        return wrong_golden(random.choice(TEXTS), DEFINITIONS[0])
    version = world.any_version(random, task)
    if kind < 0.35 and version is not None and (task, version) not in world.golden:
        return redefined(version, random.choice(DEFINITIONS))
    if kind < 0.6:
        return text_source(random.choice(TEXTS), random.choice(DEFINITIONS))
    return random.choice(world.sources)


def allowed_for(world: World, source: Source, task: str, *, activate: bool) -> set[str]:
    """Return the outcomes that an upload may have."""
    if source.fails_golden and activate:
        return {"409 golden_prompt_failed"} | world.gone(task)
    allowed = {"200", "201"} | world.gone(task) | full(task)
    if source.name == "prefix_of":  # the version may have been deleted, with the task or alone
        allowed |= {"404 unknown_version"}
    return allowed | (OVERTAKEN if activate else set())


async def upload(session: Session, world: World, random: Random) -> str:
    """Upload a version: active, or not, or as a rehearsal, or twice with one key."""
    task = world.any_task(random)
    source = choose_source(world, random, task)
    how = random.choice(("put", "put", "activate", "store", "dry run", "twice"))
    activate = how in ("put", "activate")
    path = f"/tasks/{task}/prefix" if how == "put" else f"/tasks/{task}/versions"
    params = {"activate": "true"} if how == "activate" else {}
    params |= {"dry_run": "true"} if how == "dry run" else {}
    headers = {"Content-Type": source.media_type}
    if how == "twice":
        headers["Idempotency-Key"] = str(UUID(int=random.getrandbits(128)))
    allowed = allowed_for(world, source, task, activate=activate)
    parts = {"params": params, "headers": headers, "content": source.content}
    method = "PUT" if how == "put" else "POST"
    reply = await session.send(method, path, allowed, **parts)
    if how != "dry run":
        note(world, reply)
    if how == "twice" and reply.status == 201:
        again = await session.send(method, path, allowed | world.gone(task), **parts)
        if again.status == 201 and again.content != reply.content:
            raise Violation("an upload that was repeated with its key got another answer")
    return f"{reply.outcome} {source.name}"


def note(world: World, reply: Reply) -> None:
    """Record the version that an upload made."""
    if reply.status in (200, 201):
        world.record(reply.json())


async def activate(session: Session, world: World, random: Random) -> str:
    task = world.any_task(random)
    version = world.any_version(random, task)
    if version is None:
        return "no version"
    allowed = {"200"} | OVERTAKEN | world.gone(task, version) | full(task)
    allowed |= world.may_fail_golden(task, version)
    path = f"/tasks/{task}/activate"
    return (await session.send("POST", path, allowed, json={"version": version})).outcome


async def roll_back(session: Session, world: World, random: Random) -> str:
    task = world.any_task(random)
    allowed = {"200", "409 nothing_to_roll_back"} | OVERTAKEN | world.gone(task)
    return (await session.send("POST", f"/tasks/{task}/rollback", allowed)).outcome


async def split(session: Session, world: World, random: Random) -> str:
    """Split the traffic between two versions, or end a split."""
    task = world.any_task(random)
    path, allowed = f"/tasks/{task}/traffic", {"200"} | OVERTAKEN | world.gone(task)
    if random.random() < 0.5:
        return (await session.send("DELETE", path, allowed)).outcome
    chosen = {world.any_version(random, task) for _ in range(2)} - {None}
    if not chosen:
        return "no version"
    weights = {str(version): random.randint(1, 9) for version in sorted(filter(None, chosen))}
    for version in filter(None, chosen):
        allowed |= world.gone(task, version) | world.may_fail_golden(task, version) | full(task)
    return (await session.send("PUT", path, allowed, json={"weights": weights})).outcome


async def redefine(session: Session, world: World, random: Random) -> str:
    """Change a profile: what is operational in place, or the definition, as a new version."""
    task = world.any_task(random)
    allowed = {"200", "409 traffic_split", "409 golden_prompt_failed"} | OVERTAKEN
    allowed |= world.gone(task) | full(task)
    change = random.choice(
        [
            {"description": f"Changed {random.randrange(100)}"},
            {"weight": random.choice((1, 2, 5)), "limits": {"max_concurrency": 6}},
            random.choice(DEFINITIONS),
        ]
    )
    return (await session.send("PATCH", f"/tasks/{task}", allowed, json=change)).outcome


async def delete(session: Session, world: World, random: Random) -> str:
    """Delete a version of a task that has many, or a task that is made to be deleted."""
    task = world.any_task(random)
    if task in TEMPORARY and random.random() < 0.3:
        return await _drop(session, world, task)
    if len(world.versions[task]) <= MAX_VERSIONS:
        return "few versions"
    version = random.choice(world.versions[task])
    world.deleting.add((task, version))
    allowed = {"204", "409 version_active", "404 unknown_version"} | world.gone(task, version)
    reply = await session.send("DELETE", f"/tasks/{task}/versions/{version}", allowed)
    if reply.status == 204 and version in world.versions[task]:
        world.versions[task].remove(version)
    return reply.outcome


async def _drop(session: Session, world: World, task: str) -> str:
    reply = await session.send("DELETE", f"/tasks/{task}", {"204"} | world.gone(task))
    if reply.status == 204:
        world.versions[task].clear()
    return f"{reply.outcome} task"


async def download(session: Session, world: World, random: Random) -> str:
    task = world.any_task(random)
    version = world.any_version(random, task)
    if version is None:
        return "no version"
    path = f"/tasks/{task}/versions/{version}/prefix"
    params = {"format": random.choice(("artifact", "tar", "peft"))}
    reply = await session.send("GET", path, {"200"} | world.gone(task, version), params=params)
    if reply.status == 200 and params["format"] == "artifact":
        digest = f"sha256:{hashlib.sha256(reply.content).hexdigest()}"
        if not digest == reply.headers["x-prefix-digest"] == world.acknowledged[task, version]:
            raise Violation(f"the bytes of {task}@{version} have the digest {digest}")
    return reply.outcome


async def verify(session: Session, world: World, random: Random) -> str:
    task = world.any_task(random)
    version = world.any_version(random, task)
    if version is None:
        return "no version"
    path = f"/tasks/{task}/versions/{version}/verify"
    reply = await session.send("POST", path, {"200"} | world.gone(task, version))
    if reply.status != 200:
        return reply.outcome
    failed = [check["name"] for check in reply.json()["verification"] if not check["passed"]]
    may_fail = {"golden"} if (task, version) in world.golden else set()
    may_fail |= {"prefix_unavailable"} if full(task) else set()
    if not set(failed) <= may_fail | {"base_model_name", "definition"}:
        raise Violation(f"{task}@{version} fails {failed}")
    return f"200 {'failed' if failed else 'passed'}"
