"""`foreword push`"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from foreword_client import types
from foreword_client.cli import arguments, definitions, output


def _file(help: str, panel: str | None = None) -> Any:
    """An option whose value is a file that exists."""
    return typer.Option(
        exists=True, dir_okay=False, metavar="FILE", help=help, rich_help_panel=panel
    )


Source = Annotated[
    Path | None,
    typer.Argument(
        metavar="SOURCE",
        help="A folder from PEFT or `foreword download`, a .safetensors file, or a .tar.",
    ),
]
Text = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Let the server compute it from this text.")
]
Messages = Annotated[
    Path | None,
    _file("Let the server compute it from a chat, a JSON file."),
]
PrefixOf = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Use version N's prefix again, asked in another way."),
]
Activate = Annotated[
    bool,
    typer.Option("--activate/--no-activate", help="Make it live at once; creates a new task."),
]
Definition = Annotated[
    Path | None,
    _file("How it is asked, all of it: a foreword.json.", arguments.DEFINITION),
]
Golden = Annotated[
    Path | None,
    _file('Golden prompts it must pass to be activated: {"prompt": ..., "expect": ...} per line.'),
]
Evaluation = Annotated[
    Path | None,
    _file("What was measured where it was trained: an evaluation.json."),
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
    prefix_of: PrefixOf = None,
    activate: Activate = True,
    golden: Golden = None,
    evaluation: Evaluation = None,
    dry_run: DryRun = False,
    definition: Definition = None,
    template: arguments.Template = None,
    chat: arguments.Chat = None,
    stop: arguments.Stop = None,
    max_tokens: arguments.MaxTokens = None,
    description: arguments.Description = None,
    if_match: arguments.IfMatch = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Upload a prefix, and how it is asked, as a task's next version.

    The server verifies it first: nothing changes unless it fits.

    It is asked as its own foreword.json says, else like the active version; options change that.

    It is live without a restart. Requests in progress finish on the version they started with.
    """
    if sum(given is not None for given in (source, text, messages, prefix_of)) != 1:
        raise typer.BadParameter("give exactly one of SOURCE, --text, --messages and --prefix-of")
    content: dict[str, Any] = {
        "text": text,
        "messages": None if messages is None else arguments.messages(messages),
        "prefix_of": prefix_of,
        "definition": None if definition is None else arguments.json_object(definition),
        "golden": () if golden is None else arguments.json_lines(golden),
        "evaluation": None if evaluation is None else arguments.json_object(evaluation),
        "activate": activate,
        **arguments.changes(description, template, chat, stop, max_tokens),
    }
    with arguments.connect(ctx) as client:
        if dry_run:
            _show_rehearsal(client.rehearse(task, source, **content), as_json=as_json)
            return
        with _noted_interrupt(task), output.bar(f"{task}: upload") as progress:
            uploaded = client.push(task, source, **content, if_match=if_match, progress=progress)
    if as_json:
        output.show_json(uploaded)
    else:
        _show_uploaded(uploaded)


@contextmanager
def _noted_interrupt(task: str) -> Iterator[None]:
    """Say after Ctrl-C where to look: the upload may have arrived a moment before."""
    try:
        yield
    except KeyboardInterrupt:
        output.note(f"`foreword versions {task}` shows whether the upload had arrived")
        raise


def _show_uploaded(uploaded: types.Uploaded) -> None:
    state = "is now live" if uploaded.active else "is stored, but not active"
    output.say(
        f"{uploaded.task}: v{uploaded.version} {state} "
        f"({uploaded.num_virtual_tokens} virtual tokens from {uploaded.source_format}, "
        f"{output.size(uploaded.num_bytes)}, {output.short(uploaded.digest)})"
    )
    if uploaded.definition is not None:
        asked = [f"{k} {v}" for k, v in definitions.fields(uploaded.definition) if v != "-"]
        output.say(f"asked with {'; '.join(asked)}")
    if uploaded.warning:
        output.warn(uploaded.warning)


def _show_rehearsal(rehearsed: types.Rehearsal, *, as_json: bool) -> None:
    if as_json:
        output.show_json(rehearsed)
        return
    output.show_checks(rehearsed.verification)
    fits = "fits" if rehearsed.fits else "does not fit now and would be loaded later"
    evicted = f"; {len(rehearsed.evicted)} others would be evicted" if rehearsed.evicted else ""
    output.say(
        f"{rehearsed.task}: would become v{rehearsed.version}; "
        f"{output.size(rehearsed.device_bytes)} on the device, which {fits}{evicted}"
    )
