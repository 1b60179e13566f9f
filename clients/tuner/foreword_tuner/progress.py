"""Progress of a training: a bar on a terminal, elsewhere a line every 30 seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from foreword_tuner.training import Report

_LINE_EVERY_S = 30.0


class ProgressDisplay:
    """Shows the progress of a training on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} tokens/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._row = self._bar.add_task("", total=1.0, step=0, loss=0.0, rate=0.0)
        self._last_line_s = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def log(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, soft_wrap=True, markup=False)

    def update(self, report: Report) -> None:
        """Show the state after a step."""
        self._bar.update(
            self._row,
            completed=report.share,
            step=report.step,
            loss=report.loss,
            rate=report.tokens_per_s,
        )
        if report.held_out is not None:
            self.log(f"{_line(report)}; held out: {_scores(report.held_out)}")
        elif self._bar.disable and time.monotonic() - self._last_line_s > _LINE_EVERY_S:
            self.log(_line(report))
        else:
            return
        self._last_line_s = time.monotonic()


def _line(report: Report) -> str:
    return (
        f"{report.share:4.0%}  step {report.step}: loss {report.loss:.3f}, "
        f"{report.tokens_per_s:.0f} tokens/s"
    )


def _scores(scores: dict[str, float]) -> str:
    return f"loss {scores['loss']:.4f}, exact {scores['exact_match']:.1%}"
