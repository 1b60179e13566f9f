"""What the server does when nobody asks: demo tasks at its start, then chores at intervals."""

from __future__ import annotations

import asyncio
import io
import logging
import tarfile
from collections.abc import Awaitable, Callable

import msgspec

from prefix_store import formats
from prefix_store.errors import PrefixStoreError, UnknownTask
from server.api.http.deps import Services
from server.demo.tasks import DEMO_TASKS, DemoTask

logger = logging.getLogger(__name__)

Chore = Callable[[Services], Awaitable[None]]

_GC_GRACE_S = 24 * 3600.0


async def seed(services: Services) -> None:
    """Make the demo tasks that do not exist, or were left without a version."""
    fitting = [demo for demo in DEMO_TASKS if demo.fits(services.engine.info.fingerprint)]
    for demo in fitting:
        try:
            task = await services.run_in_store(services.store.get_task, demo.name)
        except UnknownTask:
            task = await services.write(services.store.create_task, demo.name, demo.profile)
        if task.num_versions == 0:
            body, media_type = await services.run_in_store(_body, demo)
            await services.uploads.push(demo.name, body, media_type, activate=True)


def start(services: Services) -> list[asyncio.Task[None]]:
    """All of them, until they are cancelled."""
    return [
        asyncio.create_task(_regularly(services, chore, interval_s), name=chore.__name__)
        for chore, interval_s in _CHORES.items()
    ]


async def _regularly(services: Services, chore: Chore, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        await chore(services)


async def _look_at_blobs(services: Services) -> None:
    await services.run_in_store(services.store.refresh_health)


async def _collect_garbage(services: Services) -> None:
    try:
        await services.write(services.store.collect_garbage, _GC_GRACE_S)
    except PrefixStoreError:
        logger.exception("garbage collection failed; the next one is in an hour")


async def log_audit_head(services: Services) -> None:
    """Kept apart from the database, this line shows what was cut off or rewritten before it."""
    try:
        head = await services.run_in_store(services.audit.head)
    except PrefixStoreError:
        logger.exception("the end of the audit cannot be read")
    else:
        logger.info("audit head", extra={"seq": head.seq, "hash": head.hash})


_CHORES: dict[Chore, float] = {
    _look_at_blobs: 5.0,
    _collect_garbage: 3600.0,
    log_audit_head: 3600.0,
}


def _body(demo: DemoTask) -> tuple[bytes, str]:
    """An upload and its media type."""
    if demo.folder is not None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for file in sorted(demo.folder.iterdir()):
                tar.add(file, file.name)
        return archive.getvalue(), formats.TAR[0]
    if demo.messages is None:
        return msgspec.json.encode({"text": demo.text}), formats.JSON
    messages = [message.model_dump() for message in demo.messages]
    return msgspec.json.encode({"messages": messages}), formats.JSON
