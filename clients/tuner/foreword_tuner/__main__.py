"""Entry points of `foreword tune`, `foreword evaluate` and `foreword distill`."""

from __future__ import annotations

from foreword_tuner.cli import app
from foreword_tuner.cli.tune import tune as tune_command


def tune(argv: list[str] | None = None) -> None:
    """Train a prefix."""
    app.run(tune_command, "tune", argv)
