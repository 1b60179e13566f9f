"""The part that `tune` and `distill` share once they have settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foreword_tuner.settings import Folder, Settings

if TYPE_CHECKING:
    from foreword_tuner.tune import Run, Tuned


@dataclass(frozen=True, slots=True)
class Job:
    """Where a training is kept, and where its result goes. An `output` of None is a folder named
    after the task."""

    task: str
    output: Path | None
    push: str | None
    api_key: str | None
    restart: bool
    skip_bad: bool


def run_job(train: Callable[[Run], Tuned], settings: Settings, data: Path, job: Job) -> None:
    """Train, print a summary, and push the result if requested. Raises `ForewordError`."""
    from foreword_tuner import publish, tune  # torch only where it is needed
    from foreword_tuner.progress import ProgressDisplay

    with ProgressDisplay() as display:
        tuned = train(
            tune.Run(
                settings=settings,
                data=data,
                folder=Folder(job.output or Path("runs") / job.task),
                skip_bad=job.skip_bad,
                restart=job.restart,
                log=display.log,
                on_report=display.update,
            )
        )
    publish.summarize(tuned)
    if job.push:
        publish.push(tuned, job.task, url=job.push, api_key=job.api_key)
