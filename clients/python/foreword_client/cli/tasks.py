"""`foreword tasks`, `task`, `rollback`, `delete` and `info`"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, Literal

import typer

from foreword_client import types
from foreword_client.cli import arguments, definitions, output
from foreword_client.client import Client
from foreword_client.errors import PermissionDeniedError

Search = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="Only tasks whose name or description contains it.", show_default=False
    ),
]
State = Annotated[
    Literal["active", "split", "inactive"] | None,
    typer.Option(
        help="Only tasks with an active version, with a traffic split, or without an active "
        "version.",
        show_default=False,
    ),
]
Sort = Annotated[
    Literal["name", "-name", "created", "-created", "updated", "-updated"] | None,
    typer.Option(help="Order; `-` reverses it. Default: name.", show_default=False),
]


def tasks(
    ctx: typer.Context,
    search: Search = None,
    state: State = None,
    sort: Sort = None,
    as_json: arguments.AsJson = False,
) -> None:
    """List all tasks, or find some of them."""
    with arguments.connect(ctx) as client:
        found = client.tasks(search=search, state=state, sort=sort)
    if as_json:
        output.show_json(found)
        return
    if not found and (search or state):
        output.note("no such task")
        return
    if not found:
        output.note("no tasks yet; create one with `foreword push TASK SOURCE`")
        return
    output.show_table(("TASK", "ACTIVE", "VERSIONS", "CHANGED", "DESCRIPTION"), _rows(found))


def _rows(found: list[types.Task]) -> list[tuple[str, ...]]:
    return [
        (
            task.name,
            _active(task),
            str(task.num_versions),
            output.when(task.updated_at),
            task.profile.description,
        )
        for task in found
    ]


def task(
    ctx: typer.Context,
    name: arguments.Task,
    description: arguments.Description = None,
    template: arguments.Template = None,
    chat: arguments.Chat = None,
    stop: arguments.Stop = None,
    max_tokens: arguments.MaxTokens = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Show a task, or change it.

    Another template, chat or default is a new version, which has the active one's prefix and is
    live at once.
    """
    changes = arguments.changes(description, template, chat, stop, max_tokens)
    with arguments.connect(ctx) as client:
        found = client.task(name)
        if changes:
            before = found
            client.update_task(name, if_match=before.revision, **changes)
            found = client.task(name)
            _note_new_version(before, found)
    if as_json:
        output.show_json(found)
    else:
        output.show_fields(_fields(found))


def _note_new_version(before: types.Task, now: types.Task) -> None:
    if now.num_versions > before.num_versions:
        output.note(
            f"{now.name}: {_active(now)} is now live; it has the prefix of {_active(before)} and "
            "is asked in the changed way"
        )


def _fields(task: types.Task) -> list[tuple[str, str]]:
    profile = task.profile
    fields = [
        ("task", task.name),
        ("description", profile.description or "-"),
        ("active", _active(task) + (f" ({output.short(task.digest)})" if task.digest else "")),
        ("residency", task.residency or "-"),
        ("versions", str(task.num_versions)),
        ("revision", "-" if task.revision is None else str(task.revision)),
        *definitions.fields(profile),
        ("limits", definitions.settings(profile.limits)),
        ("weight", f"{profile.weight:g}"),
    ]
    return [*fields, ("created", output.when(task.created_at))]


def _live(task: types.Task) -> str:
    """The versions that get a task's traffic."""
    if task.weights:
        return " and ".join(f"v{n} (weight {weight})" for n, weight in task.weights.items())
    return "none" if task.active_version is None else f"v{task.active_version}"


def _active(task: types.Task) -> str:
    return "-" if task.active_version is None else f"v{task.active_version}"


def rollback(
    ctx: typer.Context,
    task: arguments.Task,
    if_match: arguments.IfMatch = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Activate the version that was active before; a second rollback goes further back.

    While versions share the traffic, the active one alone gets it again.
    """
    with arguments.connect(ctx) as client:
        before = before_change(client, task)
        activated = client.rollback(task, if_match=expected(if_match, before))
    show_activated(activated, before, as_json=as_json)


def before_change(client: Client, task: str) -> types.Task | None:
    """Get the task as it is before a change; None if the key may not read tasks."""
    with suppress(PermissionDeniedError):
        return client.task(task)
    return None


def expected(if_match: int | None, before: types.Task | None) -> int | None:
    """The revision a change is meant for: the one given, else the one just seen."""
    return if_match if if_match is not None or before is None else before.revision


def show_activated(activated: types.Activated, before: types.Task | None, *, as_json: bool) -> None:
    """Print which version is live now, and what was before."""
    if as_json:
        output.show_json(activated)
        return
    digest = output.short(activated.digest)
    output.say(
        f"{activated.task}: v{activated.active_version} is now live ({digest})"
        + ("" if before is None else f"; before: {_live(before)}")
    )
    if activated.warning:
        output.warn(activated.warning)


def delete(
    ctx: typer.Context,
    task: arguments.Task,
    version: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Only this version, which must not be active."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Delete a task with all its versions, or one version."""
    what = f"task {task} with all its versions" if version is None else f"{task} v{version}"
    if not yes:
        _confirm(f"Delete {what}?")
    with arguments.connect(ctx) as client:
        if version is None:
            client.delete_task(task)
        else:
            client.delete_version(task, version)
    if as_json:
        typer.echo("{}")
    else:
        output.say(f"deleted {what}")


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter("not a terminal; pass --yes", param_hint="--yes")
    if not typer.confirm(question, err=True):
        output.note("nothing was deleted")
        raise typer.Exit(1)


def info(ctx: typer.Context, as_json: arguments.AsJson = False) -> None:
    """Show the server's base model, geometry and limits."""
    with arguments.connect(ctx) as client:
        found = client.info()
        is_ready = client.is_ready()
    if as_json:
        output.show_json(found)
        return
    shape = f"{found.num_layers} layers, {found.num_kv_heads} KV heads of {found.head_dim}"
    limits = found.limits
    fields = [
        ("server", found.version or "-"),
        ("ready", "yes" if is_ready else "no"),
        ("base model", found.model),
        ("fingerprint", output.short(found.fingerprint)),
        ("geometry", f"{shape}, {found.dtype}"),
        ("device", f"{found.device} ({found.attention} attention)"),
        ("context", _limit(limits.max_model_len, "tokens")),
        ("max prefix", _limit(limits.max_prefix_tokens, "tokens")),
        ("max upload", output.size(limits.max_upload_bytes or 0)),
        ("max concurrency", _limit(limits.max_num_seqs, "requests")),
    ]
    output.show_fields(fields)


def _limit(value: int | None, unit: str) -> str:
    return "-" if value is None else f"{value} {unit}"
