"""`foreword versions`, `verify`, `activate` and `download`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from foreword_client import types
from foreword_client.cli import arguments, definitions, files, output
from foreword_client.cli.tasks import before_change, expected, show_activated


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
        output.show_checks(report.verification)
    if not report.passed:
        raise typer.Exit(1)


def versions(
    ctx: typer.Context,
    task: arguments.Task,
    version: Annotated[
        int | None, typer.Argument(metavar="[VERSION]", min=1, help="Show this one, all of it.")
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Show when each version was activated.")
    ] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """List a task's versions, with what changed in each, or show one.

    A star marks the active one.
    """
    with arguments.connect(ctx) as client:
        if version is not None:
            _show(client.version(task, version), as_json=as_json)
            return
        found = client.versions(task)
    if as_json:
        output.show_json(found)
    elif history:
        rows = [_moment(line) for line in found.history]
        output.show_table(("WHEN", "VERSION", "ACTION", "BY", "DETAILS"), rows)
    else:
        listed = sorted(found.versions, key=lambda each: each.version)
        rows = [
            _row(each, before, found) for before, each in zip([None, *listed], listed, strict=False)
        ]
        output.show_table(_COLUMNS, rows)


_COLUMNS = (
    "", "VERSION", "TOKENS", "SIZE", "CREATED", "DIGEST", "RESIDENCY", "SOURCE", "CHANGED",
    "TEMPLATE",
)  # fmt: skip


def _show(version: types.Version, *, as_json: bool) -> None:
    if as_json:
        output.show_json(version)
        return
    output.show_fields(_fields(version))
    for number, prompt in enumerate(version.golden, 1):
        output.say(f"golden prompt {number}: {prompt.prompt!r} -> {prompt.expect!r}")
    output.show_checks(version.verification)


def _fields(version: types.Version) -> list[tuple[str, str]]:
    scores = version.evaluation
    about = [
        ("version", f"{version.task} v{version.version}"),
        ("digest", version.digest),
        ("prefix", f"{version.num_virtual_tokens} tokens, {output.size(version.num_bytes)}"),
        ("source", version.source_format or "-"),
        ("base model", version.base_model or "-"),
        ("created", output.when(version.created_at)),
        ("residency", _residency(version)),
    ]
    asked = [] if version.definition is None else definitions.fields(version.definition)
    messages = version.prompt.messages or []
    continues = "; ".join(f"{message.role}: {message.content!r}" for message in messages)
    told = "-" if scores is None else _evaluation(scores)
    return [*about, *asked, ("continues", continues or "-"), ("evaluation", told)]


def _evaluation(found: types.Evaluation) -> str:
    scores = ", ".join(f"{name} {score:g}" for name, score in found.scores.items())
    return f"{scores} ({found.num_examples} examples)"


def _moment(line: types.Activation) -> tuple[str, ...]:
    shares = ", ".join(f"v{version}={weight}" for version, weight in (line.weights or {}).items())
    details = line.reason or shares or ("split ended" if line.action == "traffic" else "-")
    return output.when(line.at), f"v{line.version}", line.action, line.by or "-", details


def _row(
    manifest: types.Version, before: types.Version | None, found: types.Versions
) -> tuple[str, ...]:
    is_damaged = manifest.version in found.quarantined
    return (
        "*" if manifest.version == found.active_version else "",
        f"v{manifest.version}",
        str(manifest.num_virtual_tokens),
        output.size(manifest.num_bytes),
        output.when(manifest.created_at),
        output.short(manifest.digest),
        "quarantine" if is_damaged else _residency(manifest),
        manifest.source_format,
        definitions.changes(manifest, before),
        definitions.short(manifest.definition),
    )


def _residency(version: types.Version) -> str:
    where = version.residency or "-"
    return f"{where} (pinned)" if version.pinned else where


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
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="A .tar, a .safetensors, or a new folder; - for standard output.",
        ),
    ] = None,
    peft: Annotated[
        bool, typer.Option("--peft", help="Write the prefix as PEFT does, so that PEFT loads it.")
    ] = False,
    bare: Annotated[
        bool,
        typer.Option(
            "--bare", help="Write only the prefix, as .safetensors; how it is asked is left out."
        ),
    ] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Download a version: its prefix and how it is asked, as `push` accepts it."""
    bare = bare or (to is not None and to.suffix == ".safetensors")
    if peft and bare:
        raise typer.BadParameter("--peft writes a tar or folder, not --bare or a .safetensors file")
    is_folder = to is not None and not bare and files.is_folder(to)
    if is_folder and to is not None:
        files.check_new(to)
    with arguments.connect(ctx) as client:
        data = client.download(task, version, format=None if bare else "peft" if peft else "tar")
        manifest = client.version(task, version) if as_json else None
    if to == Path("-"):
        sys.stdout.buffer.write(data)
        return
    path = to or Path(f"{task}-v{version}.{'safetensors' if bare else 'tar'}")
    if is_folder:
        files.write_folder(path, data)
    else:
        files.write_whole(path, data)
    if manifest is not None:
        output.show_json(manifest)
    else:
        output.say(f"wrote {path} ({output.size(len(data))})")
    if bare:
        output.note("the file has the prefix only; how it is asked is in a .tar or a folder")
