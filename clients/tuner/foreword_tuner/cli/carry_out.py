"""What `tune` and `distill` do alike once their settings are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foreword_tuner.settings import Folder, Settings

if TYPE_CHECKING:
    from foreword_tuner.tune import Run, Tuned


@dataclass(frozen=True, slots=True)
class Order:
    """Where a training is kept, and where its result goes. `output`: None, a folder named after
    the task."""

    task: str
    output: Path | None
    push: str | None
    api_key: str | None
    restart: bool
    skip_bad: bool


def carry_out(train: Callable[[Run], Tuned], settings: Settings, data: Path, order: Order) -> None:
    """Train, tell what came out, and push it where that was asked for.

    Raises `TunerError`, `ForewordError`.
    """
    from foreword_tuner import publish, tune  # torch only where it is needed
    from foreword_tuner.progress import Teller

    with Teller() as teller:
        tuned = train(
            tune.Run(
                settings=settings,
                data=data,
                folder=Folder(order.output or Path("runs") / order.task),
                skip_bad=order.skip_bad,
                restart=order.restart,
                say=teller.say,
                tell=teller.tell,
            )
        )
    publish.tell(tuned)
    if order.push:
        publish.push(tuned, order.task, url=order.push, api_key=order.api_key)
