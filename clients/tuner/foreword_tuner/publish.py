"""Summary and upload of a training's result."""

from __future__ import annotations

import shlex

import typer

from foreword_client import Client, ForewordError
from foreword_tuner.tune import Tuned


def summarize(tuned: Tuned) -> None:
    """Print the result in two lines."""
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
    """Upload the result as the active version of a task. An empty `url` is the client's default.

    If it fails, the command that pushes the finished folder is printed. Raises `ForewordError`.
    """
    try:
        with Client(url or None, api_key=api_key) as client:
            uploaded = client.push(task, tuned.folder.path)
    except (ForewordError, KeyboardInterrupt):
        typer.echo(f"not pushed; this does it: {_command(tuned, task, url)}", err=True)
        raise
    typer.echo(f"{task}: v{uploaded.version} is now live ({uploaded.digest})")
    if uploaded.warning:
        typer.echo(f"warning: {uploaded.warning}", err=True)


def _command(tuned: Tuned, task: str, url: str) -> str:
    address = ["--url", url] if url else []
    return shlex.join(["foreword", *address, "push", task, str(tuned.folder.path)])
