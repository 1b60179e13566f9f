"""Entry points of `foreword tune`, `foreword evaluate` and `foreword distill`."""

from __future__ import annotations

from foreword_tuner.cli import app
from foreword_tuner.cli.distill import distill as distill_command
from foreword_tuner.cli.evaluate import evaluate as evaluate_command
from foreword_tuner.cli.tune import tune as tune_command


def tune(argv: list[str] | None = None) -> None:
    """Train a prefix."""
    app.run(tune_command, "tune", argv)


def evaluate(argv: list[str] | None = None) -> None:
    """Score a task's answers."""
    app.run(evaluate_command, "evaluate", argv)


def distill(argv: list[str] | None = None) -> None:
    """Compress a text into a prefix."""
    app.run(distill_command, "distill", argv)
