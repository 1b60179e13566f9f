"""Checks after the load: nothing runs, nothing is held, nothing is lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import select

from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.database.schema import tasks, versions
from prefix_store.manifest import Manifest
from prefix_store.registry import definitions
from prefix_store.registry.registry import Registry
from tests.soak.ledger import Ledger
from tests.soak.session import Session
from tests.soak.world import DEFINITIONS, LARGE_TEXT, TASKS, World, text_source

QUIET_WITHIN_S = 30.0
_IDLE = ("waiting_requests", "running_requests", "prefixes_loading", "kv_pages_used")


async def gauges(session: Session) -> dict[str, float]:
    """Return every metric without labels."""
    text = (await session.send("GET", "/metrics", {"200"})).content.decode()
    lines = (line.split(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines if "{" not in name}


async def check_quiet(
    session: Session, ledger: Ledger, *, device_bytes: int, host_bytes: int, num_faults: int
) -> str:
    """Check that the engine holds nothing for requests that have ended, and no more than it may."""
    deadline_s = time.monotonic() + QUIET_WITHIN_S
    while True:
        found = await gauges(session)
        busy = {name: value for name in _IDLE if (value := found[f"foreword_engine_{name}"])}
        if not busy or time.monotonic() > deadline_s:
            break
        await asyncio.sleep(0.5)
    if busy:
        ledger.violate(f"the engine still holds {busy} {QUIET_WITHIN_S:.0f} s after the end")
    for where, budget in (("device", device_bytes), ("host", host_bytes)):
        held = found[f"foreword_engine_prefix_{where}_bytes"]
        if held > budget:
            ledger.violate(f"prefixes take {held:.0f} bytes on the {where}, of {budget}")
    if (restarts := found["foreword_engine_restarts_total"]) != num_faults:
        ledger.violate(f"the engine was replaced {restarts:.0f} times after {num_faults} faults")
    return "checked"


async def check_released(session: Session, world: World, ledger: Ledger) -> str:
    """Check that every prefix can be evicted once nothing is pinned, and the largest loaded."""
    for task, numbers in world.versions.items():
        listed = await session.send("GET", f"/tasks/{task}/versions", {"200"} | world.gone(task))
        numbers = [one["version"] for one in listed.json().get("versions", ())]
        for what in ("unpin", "evict"):
            for number in numbers:
                path = f"/tasks/{task}/versions/{number}/{what}"
                reply = await session.send("POST", path, {"200", "409 prefix_in_use"})
                # Another version that is still pinned may have the same prefix.
                if what == "evict" and reply.status != 200:
                    ledger.violate(f"the prefix of {task}@{number} is in use after the end")
    large = text_source(LARGE_TEXT, DEFINITIONS[0])
    headers = {"Content-Type": large.media_type}
    path = f"/tasks/{TASKS[0]}/prefix"
    await session.send("PUT", path, {"200"}, headers=headers, content=large.content)
    return "checked"


def check_store(store: Path, world: World, ledger: Ledger) -> list[Manifest]:
    """Check a stopped server's store; return all versions, deleted ones included."""
    registry = Registry(f"sqlite:///{store / 'registry.db'}")
    try:
        manifests = list(_manifests(registry))
        alive = registry.digests()
        known = {str(digest) for digest in registry.digests(deleted_within_s=10**8)}
    finally:
        registry.close()
    blobs = {str(digest) for digest in FileBlobStore(store / "blobs")}
    if extra := blobs - known:
        ledger.violate(f"{len(extra)} blobs belong to no version")
    if missing := {str(digest) for digest in alive} - blobs:
        ledger.violate(f"{len(missing)} blobs of versions are missing")
    if left := list((store / "blobs" / "tmp").glob("*")):
        ledger.violate(f"{len(left)} unfinished files are left in tmp")
    found = {(one.task, one.version): one.digest for one in manifests}
    for key, digest in world.acknowledged.items():
        if found.get(key) != digest:
            ledger.violate(f"version {key} was acknowledged as {digest}, and is {found.get(key)}")
    for command in (("doctor", "--port", "0"), ("audit", "verify")):
        _check_command(store, ledger, *command)
    return manifests


def _manifests(registry: Registry) -> Iterator[Manifest]:
    columns = (versions.c.manifest, versions.c.definition, tasks.c.profile)
    query = select(*columns).join(tasks, tasks.c.name == versions.c.task)
    with registry.database.read() as connection:
        yield from map(definitions.as_manifest, connection.execute(query))


def _check_command(store: Path, ledger: Ledger, *command: str) -> None:
    foreword = Path(sys.executable).with_name("foreword")
    run = [str(foreword), *command, "--store", str(store)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        ledger.violate(f"foreword {' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
