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
    """Load a version's prefix before anyone asks for it."""
    with arguments.connect(ctx) as client:
        _show(client.warm(task, version), "is loaded", as_json=as_json)


def pin(
    ctx: typer.Context,
    task: arguments.Task,
    version: arguments.Version,
    as_json: arguments.AsJson = False,
) -> None:
    """Keep a version's prefix on the device, also after a restart."""
    with arguments.connect(ctx) as client:
        _show(client.pin(task, version), "stays on the device", as_json=as_json)


def unpin(
    ctx: typer.Context,
    task: arguments.Task,
    version: arguments.Version,
    as_json: arguments.AsJson = False,
) -> None:
    """Let a version's prefix be evicted again, when others need the room."""
    with arguments.connect(ctx) as client:
        _show(client.unpin(task, version), "may be evicted", as_json=as_json)


def evict(
    ctx: typer.Context,
    task: arguments.Task,
    version: arguments.Version,
    as_json: arguments.AsJson = False,
) -> None:
    """Drop a version's prefix from memory. The next request loads it again."""
    with arguments.connect(ctx) as client:
        _show(client.evict(task, version), "is out of memory", as_json=as_json)


def _show(found: types.Residency, now: str, *, as_json: bool) -> None:
    if as_json:
        output.show_json(found)
    else:
        output.say(f"{found.task}: v{found.version} {now}")
