"""`foreword push`, `versions`, `verify`, `activate` and `download`"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from foreword_client import types
from foreword_client.cli import arguments, output
from foreword_client.cli.tasks import before_change, expected, show_activated

Source = Annotated[
    Path | None,
    typer.Argument(
        metavar="SOURCE", help="A PEFT folder, a .safetensors file, or a .tar of a folder."
    ),
]
Text = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Let the server compute it from this text.")
]
Messages = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        metavar="FILE",
        help="Let the server compute it from a chat, a JSON file.",
    ),
]
Activate = Annotated[
    bool,
    typer.Option("--activate/--no-activate", help="Make it live at once; creates a new task."),
]
Golden = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        metavar="FILE",
        help='Golden prompts it must pass to be activated: {"prompt": ..., "expect": ...} per '
        "line.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Verify it and show what it would take; store nothing.")
]


def push(
    ctx: typer.Context,
    task: arguments.Task,
    source: Source = None,
    text: Text = None,
    messages: Messages = None,
    activate: Activate = True,
    golden: Golden = None,
    dry_run: DryRun = False,
    description: arguments.Description = None,
    template: arguments.Template = None,
    chat: arguments.Chat = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Upload a prefix as a task's next version.

    The server verifies it first: nothing changes unless it fits.

    It is live without a restart. Requests in progress finish on the version they started with.
    """
    if sum(given is not None for given in (source, text, messages)) != 1:
        raise typer.BadParameter("give exactly one of SOURCE, --text and --messages")
    changes = arguments.profile(description, template, chat)
    content: dict[str, Any] = {
        "text": text,
        "messages": None if messages is None else arguments.messages(messages),
        "golden_prompts": () if golden is None else arguments.json_lines(golden),
        "activate": activate,
    }
    with arguments.connect(ctx) as client:
        if dry_run:
            _show_rehearsal(client.rehearse(task, source, **content), as_json=as_json)
            return
        with output.bar(f"{task}: upload") as progress:
            uploaded = client.push(task, source, **content, progress=progress, **changes)
    if as_json:
        output.show_json(uploaded)
    else:
        _show_uploaded(uploaded)


def _show_uploaded(uploaded: types.Uploaded) -> None:
    state = "is now live" if uploaded.active else "is stored, but not active"
    output.say(
        f"{uploaded.task}: v{uploaded.version} {state} "
        f"({uploaded.num_virtual_tokens} virtual tokens from {uploaded.source_format}, "
        f"{output.size(uploaded.num_bytes)}, {output.short(uploaded.digest)})"
    )
    if uploaded.warning:
        output.warn(uploaded.warning)


def _show_rehearsal(rehearsed: types.Rehearsal, *, as_json: bool) -> None:
    if as_json:
        output.show_json(rehearsed)
        return
    show_checks(rehearsed.verification)
    fits = "fits" if rehearsed.fits else "does not fit now and would be loaded later"
    evicted = f"; {len(rehearsed.evicted)} others would be evicted" if rehearsed.evicted else ""
    output.say(
        f"{rehearsed.task}: would become v{rehearsed.version}; "
        f"{output.size(rehearsed.device_bytes)} on the device, which {fits}{evicted}"
    )


def show_checks(checks: list[types.Check]) -> None:
    """Print the checks of a verification, one per line."""
    rows = [("ok" if check.passed else "FAILED", check.name, check.detail) for check in checks]
    output.show_table(("", "CHECK", "DETAIL"), rows)


def verify(
    ctx: typer.Context,
    task: arguments.Task,
    version: arguments.Version,
    as_json: arguments.AsJson = False,
) -> None:
    """Verify a stored version again: its bytes, a run of the model, golden prompts.

    Exits with 1 if a check fails.
    """
    with arguments.connect(ctx) as client:
        report = client.verify(task, version)
    if as_json:
        output.show_json(report)
    else:
        show_checks(report.verification)
    if not report.passed:
        raise typer.Exit(1)


def versions(
    ctx: typer.Context,
    task: arguments.Task,
    history: Annotated[
        bool, typer.Option("--history", help="Show when each version was activated.")
    ] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """List a task's versions; a star marks the active one."""
    with arguments.connect(ctx) as client:
        found = client.versions(task)
    if as_json:
        output.show_json(found)
    elif history:
        rows = [_moment(line) for line in found.history]
        output.show_table(("WHEN", "VERSION", "ACTION", "BY"), rows)
    else:
        rows = [_row(version, found) for version in found.versions]
        columns = ("", "VERSION", "TOKENS", "SIZE", "CREATED", "DIGEST", "RESIDENCY", "SOURCE")
        output.show_table(columns, rows)


def _moment(line: types.Activation) -> tuple[str, ...]:
    return output.when(line.at), f"v{line.version}", line.action, line.by or "-"


def _row(manifest: types.Version, found: types.Versions) -> tuple[str, ...]:
    where = "quarantine" if manifest.version in found.quarantined else manifest.residency or "-"
    return (
        "*" if manifest.version == found.active_version else "",
        f"v{manifest.version}",
        str(manifest.num_virtual_tokens),
        output.size(manifest.num_bytes),
        output.when(manifest.created_at),
        output.short(manifest.digest),
        f"{where} (pinned)" if manifest.pinned else where,
        manifest.source_format,
    )


def activate(
    ctx: typer.Context,
    task: arguments.Task,
    version: arguments.Version,
    if_match: arguments.IfMatch = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Make a version live, without a restart.

    Refused if the task has changed in the meantime.
    """
    with arguments.connect(ctx) as client:
        before = before_change(client, task)
        activated = client.activate(task, version, if_match=expected(if_match, before))
    show_activated(activated, before, as_json=as_json)


def download(
    ctx: typer.Context,
    task: arguments.Task,
    version: arguments.Version,
    to: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Output file; - for standard output."),
    ] = None,
    peft: Annotated[
        bool, typer.Option("--peft", help="Write a folder that PEFT loads into the tar.")
    ] = False,
    bare: Annotated[
        bool, typer.Option("--bare", help="Write only the artifact, as .safetensors.")
    ] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Download a version's prefix and prompt format, as a tar that `push` accepts."""
    bare = bare or (to is not None and to.suffix == ".safetensors")
    if peft and bare:
        raise typer.BadParameter("--peft writes a tar, not --bare or a .safetensors file")
    with arguments.connect(ctx) as client:
        data = client.download(task, version, format=None if bare else "peft" if peft else "tar")
        manifest = client.version(task, version) if as_json else None
    if to == Path("-"):
        sys.stdout.buffer.write(data)
        return
    path = to or Path(f"{task}-v{version}.{'safetensors' if bare else 'tar'}")
    _write_whole(path, data)
    if manifest is not None:
        output.show_json(manifest)
    else:
        output.say(f"wrote {path} ({output.size(len(data))})")


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: if the disk is full, no partial file is left."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # a device or a pipe: nothing to replace
        return
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temp.write_bytes(data)
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
