"""Demo-task seeding at startup, and periodic maintenance."""

from __future__ import annotations

import asyncio
import io
import logging
import tarfile
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from prefix_store import formats
from prefix_store.errors import PrefixStoreError, StorageFailure, UnknownTask
from server.api.http.deps import Services
from server.demo.tasks import DEMO_TASKS, DemoTask

logger = logging.getLogger(__name__)

Job = Callable[[Services], Awaitable[None]]

_GC_GRACE_S = 24 * 3600.0
_FIRST_S = 60.0
"""Maximum time until a job first runs: a server that often restarts collects its garbage, too."""


async def seed_demo_tasks(services: Services) -> None:
    """Create the demo tasks that do not exist or have no version."""
    fitting = [demo for demo in DEMO_TASKS if demo.fits(services.engine.info.fingerprint)]
    for demo in fitting:
        try:
            task = await services.store.get_task(demo.name)
        except UnknownTask:
            task = await services.store.create_task(demo.name, demo.profile)
        if task.num_versions == 0:
            body, media_type = await services.run_in_thread(_body, demo)
            await services.uploads.push(demo.name, body, media_type, activate=True)


def start(services: Services) -> list[asyncio.Task[None]]:
    """Start all maintenance tasks; they run until they are cancelled."""
    return [
        asyncio.create_task(_run_periodically(services, job, interval_s), name=job.__name__)
        for job, interval_s in _INTERVALS_S.items()
    ]


async def _run_periodically(services: Services, job: Job, interval_s: float) -> None:
    wait_s = min(interval_s, _FIRST_S)
    while True:
        await asyncio.sleep(wait_s)
        wait_s = interval_s
        try:
            await job(services)
        except Exception:  # a bug: one failure must not end the job for good
            logger.exception("%s failed; the next run is in %g s", job.__name__, interval_s)


async def _refresh_blob_health(services: Services) -> None:
    await services.store.refresh_health()


async def update_series(services: Services) -> None:
    """Start series of versions that became active, and end those of what was deleted."""
    store, metrics, limit = services.store, services.metrics, services.settings.max_task_labels
    with suppress(StorageFailure):  # an outage has metrics of its own
        for serving in await store.activated_since(metrics.last_activation, limit):
            metrics.expect(serving.task, serving.versions, urgent=serving.is_split)
            metrics.last_activation = serving.seq
        tasks, versions = set(metrics.tasks), set(metrics.versions.labels)
        alive = await store.alive(tasks | {task for task, _ in versions})
        metrics.end(
            tasks - alive.keys(),
            {(task, number) for task, number in versions if int(number) not in alive.get(task, ())},
        )


async def _check_splits(services: Services) -> None:
    with suppress(StorageFailure):  # the next check is in seconds
        await services.split_guard.check()


async def _collect_garbage(services: Services) -> None:
    try:
        await services.store.collect_garbage(_GC_GRACE_S)
    except PrefixStoreError:
        logger.exception("garbage collection failed; the next one is in an hour")


async def log_audit_head(services: Services) -> None:
    """Log the end of the audit chain, which later reveals rows cut off or rewritten before it."""
    try:
        head = await services.store.audit_head()
    except PrefixStoreError:
        logger.exception("cannot read the end of the audit log")
    else:
        logger.info("audit head", extra={"seq": head.seq, "hash": head.hash})


_INTERVALS_S: dict[Job, float] = {
    _refresh_blob_health: 5.0,
    update_series: 2.0,
    _check_splits: 5.0,
    _collect_garbage: 3600.0,
    log_audit_head: 3600.0,
}


def _body(demo: DemoTask) -> tuple[bytes, str]:
    """Return a demo task's upload body and its media type."""
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
