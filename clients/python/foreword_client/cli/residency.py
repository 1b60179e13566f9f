"""`foreword warm`, `pin`, `unpin` and `evict`"""

from __future__ import annotations

import typer

from foreword_client import types
from foreword_client.cli import arguments, output


def warm(
    ctx: typer.Context,
    task: arguments.Task,
    version: arguments.Version,
    as_json: arguments.AsJson = False,
) -> None:
    """Load a version's prefix before the first request for it."""
    with arguments.connect(ctx) as client:
        _show(client.warm(task, version), "is loaded", as_json=as_json)


def pin(
    ctx: typer.Context,
    task: arguments.Task,
    version: arguments.Version,
    as_json: arguments.AsJson = False,
) -> None:
    """Keep a version's prefix on the device, across restarts too."""
    with arguments.connect(ctx) as client:
        _show(client.pin(task, version), "is pinned to the device", as_json=as_json)


def unpin(
    ctx: typer.Context,
    task: arguments.Task,
    version: arguments.Version,
    as_json: arguments.AsJson = False,
) -> None:
    """Allow a version's prefix to be evicted again."""
    with arguments.connect(ctx) as client:
        _show(client.unpin(task, version), "may be evicted", as_json=as_json)


def evict(
    ctx: typer.Context,
    task: arguments.Task,
    version: arguments.Version,
    as_json: arguments.AsJson = False,
) -> None:
    """Evict a version's prefix from memory. The next request loads it again."""
    with arguments.connect(ctx) as client:
        _show(client.evict(task, version), "is evicted", as_json=as_json)


def _show(found: types.Residency, now: str, *, as_json: bool) -> None:
    if as_json:
        output.show_json(found)
    else:
        output.say(f"{found.task}: v{found.version} {now}")
