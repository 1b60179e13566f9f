"""The result of a training, told and pushed."""

from __future__ import annotations

from typing import Any

import typer

from foreword_client import Client, UnknownTaskError
from foreword_tuner.errors import TunerError
from foreword_tuner.tune import Tuned


def tell(tuned: Tuned) -> None:
    """What came out, in a few lines."""
    record = tuned.record
    scores = record["evaluation"]["scores"]
    typer.echo(
        f"{tuned.folder.path}: {record['num_bytes'] / 1000:.0f} kB, "
        f"{record['num_parameters']:,} parameters, {record['steps']} steps in "
        f"{record['training_s'] / 60:.1f} min at {record['tokens_per_s']:.0f} tokens/s"
    )
    typer.echo(
        f"held out ({record['num_held_out']} lines): loss {scores['loss']:.4f}, "
        f"exact {scores['exact_match']:.1%}"
    )


def push(tuned: Tuned, task: str, *, url: str, api_key: str | None) -> None:
    """Make it the active version of a task. Raises `TunerError`, `ForewordError`.

    The profile comes first: golden prompts are asked in its template.
    """
    with Client(url, api_key=api_key) as client:
        ensure_profile(client, task, tuned.profile)
        uploaded = client.push(task, tuned.folder.path)
    typer.echo(f"{task}@{uploaded.version} answers: {uploaded.digest}")
    if uploaded.warning:
        typer.echo(f"warning: {uploaded.warning}", err=True)


def ensure_profile(client: Client, task: str, profile: dict[str, Any]) -> None:
    """A new task gets it; one that exists must treat prompts so already."""
    try:
        found = client.task(task).profile
    except UnknownTaskError:
        client.create_task(task, **profile)
        return
    if (found.template, found.chat) != (profile["template"], profile["chat"]):
        raise TunerError(
            f"the task {task} treats prompts in another way (template {found.template!r}, chat "
            f"{found.chat}) than this training did: push under another name, or change its profile"
        )
