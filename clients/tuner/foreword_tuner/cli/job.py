"""The part that `tune` and `distill` share once they have settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foreword_tuner import target as targets
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
    """Address of a server; empty for the client's default."""
    api_key: str | None
    restart: bool
    skip_bad: bool


def run_job(
    train: Callable[[Run], Tuned],
    settings: Settings,
    data: Path,
    job: Job,
) -> None:
    """Ask the server of `--push` what would refuse the result, train, print a summary, and push.

    An empty `settings.base` is the server's base model. Raises `ForewordError`.
    """
    target = None
    if job.push is not None:
        target = targets.of_push(job.task, job.push, job.api_key)
        target.check_length(settings.num_virtual_tokens)
    base = targets.base_of(settings.base, target, job.api_key)
    from foreword_tuner import publish, tune  # torch only where it is needed
    from foreword_tuner.progress import ProgressDisplay

    with ProgressDisplay() as display:
        tuned = train(
            tune.Run(
                settings=dataclasses.replace(settings, base=base),
                data=data,
                folder=Folder(job.output or Path("runs") / job.task),
                skip_bad=job.skip_bad,
                restart=job.restart,
                log=display.log,
                on_report=display.update,
                target=target,
            )
        )
    publish.summarize(tuned)
    if job.push is not None:
        publish.push(tuned, job.task, url=job.push, api_key=job.api_key)
