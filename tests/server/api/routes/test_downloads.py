"""Downloads whose client leaves, or whose bytes change meanwhile."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from prefix_store import artifact
from prefix_store.errors import DigestMismatch
from server.api.http.deps import Services
from tests.server.api.http.leaving import Call
from tests.server.api.test_storage_faults import damage
from tests.server.fakes import ARTIFACT, make_prefix


def open_files(folder: Path) -> set[str]:
    """Open files of this process that hold blobs, or that have no name."""
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    found = {os.readlink(link) for link in links}
    return {n for n in found if n.startswith(str(folder)) and ("sha256" in n or "(deleted)" in n)}


@pytest.mark.parametrize("form", ["artifact", "tar", "peft"])
@pytest.mark.parametrize("num_sent", [0, 1])
async def test_a_client_that_stops_reading_and_leaves_leaves_no_file_open(
    app: FastAPI, http: httpx.AsyncClient, tmp_path: Path, form: str, num_sent: int
) -> None:
    await http.put("/tasks/x/prefix", content=artifact.dump(make_prefix()), headers=ARTIFACT)
    is_stuck, sent = asyncio.Event(), list[Message]()

    async def receive() -> Message:
        await is_stuck.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if len(sent) == num_sent:
            is_stuck.set()
            await asyncio.Event().wait()
        sent.append(message)

    call = Call("GET", f"/tasks/x/versions/1/prefix?format={form}")
    async with asyncio.timeout(30):
        await app(call.scope(), receive, send)
        while open_files(tmp_path):
            await asyncio.sleep(0.01)

    services: Services = app.state.services
    assert len(sent) == num_sent
    assert services.spool._budget._held == {}


@pytest.mark.parametrize("form", ["artifact", "tar"])
async def test_bytes_that_change_while_they_are_sent_are_not_sent_to_the_end(
    app: FastAPI, http: httpx.AsyncClient, tmp_path: Path, form: str
) -> None:
    body = artifact.dump(make_prefix(num_tokens=200))
    await http.put("/tasks/x/prefix", content=body, headers=ARTIFACT)
    services: Services = app.state.services
    manifest = await services.store.get_version("x", 1)
    opened = {"artifact": services.downloads.artifact, "tar": services.downloads.tar}[form]
    found = await opened(manifest)
    damage(tmp_path, manifest.digest)

    sent: list[bytes] = []

    async def send() -> None:
        async for piece in found.pieces():
            sent.append(piece)

    with pytest.raises(DigestMismatch, match="while they were sent"):
        await send()
    found.close()

    assert sum(map(len, sent)) < found.num_bytes - manifest.num_bytes // 2
