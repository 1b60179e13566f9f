"""`foreword traffic`"""

from __future__ import annotations

from typing import Annotated

import typer

from foreword_client import types
from foreword_client.cli import arguments, output


def traffic(
    ctx: typer.Context,
    task: arguments.Task,
    shares: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VERSION=WEIGHT]...",
            help="Weights, such as 3=90 4=10. If omitted, the current ones are shown.",
            show_default=False,
        ),
    ] = None,
    off: Annotated[
        bool, typer.Option("--off", help="Send all traffic to the active version.")
    ] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Split a task's traffic between versions, by weight.

    The split ends at the next activation or rollback.
    """
    if off and shares:
        raise typer.BadParameter("give shares or --off, not both")
    weights = _weights(shares or [])
    with arguments.connect(ctx) as client:
        found = client.set_traffic(task, weights) if weights or off else client.traffic(task)
    if as_json:
        output.show_json(found)
        return
    _show(found)
    if found.warning:
        output.warn(found.warning)


def _weights(shares: list[str]) -> dict[int, int]:
    weights = {}
    for share in shares:
        version, equals, weight = share.partition("=")
        if not (equals and version.lstrip("v").isdecimal() and weight.isdecimal()):
            raise typer.BadParameter(f"{share!r} is not VERSION=WEIGHT, such as 4=10")
        weights[int(version.lstrip("v"))] = int(weight)
    if weights and not any(weights.values()):
        raise typer.BadParameter("at least one weight must be above 0; --off ends a split")
    return weights


def _show(found: types.Traffic) -> None:
    weights = found.weights
    if weights is None:
        weights = {} if found.active_version is None else {found.active_version: 1}
    if not weights:
        output.note(f"{found.task} has no active version")
        return
    total = sum(weights.values())
    rows = [
        (
            "*" if version == found.active_version else "",
            f"v{version}",
            str(weight),
            f"{100 * weight / total:.3g} %",
        )
        for version, weight in weights.items()
    ]
    output.show_table(("", "VERSION", "WEIGHT", "SHARE"), rows)
