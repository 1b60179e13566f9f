"""Plot of the loss over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def draw(
    path: Path,
    title: str,
    curve: Sequence[dict[str, float]],
    held_out: Sequence[dict[str, float]],
) -> None:
    """Draw training loss, held-out loss and the share of exact completions into a PNG file."""
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=9, color="#444444")
    axes = figure.add_subplot()
    axes.plot(
        [p["step"] for p in curve], [p["loss"] for p in curve], color="#9db8dc", label="train"
    )
    steps = [p["step"] for p in held_out]
    axes.plot(steps, [p["loss"] for p in held_out], "o-", color="#2458a6", label="held out")
    axes.set(xlabel="step", ylabel="loss per token", ylim=(0, None))
    right = axes.twinx()
    exact = [p["exact_match"] for p in held_out]
    right.plot(steps, exact, "s--", color="#c2571a", label="exact, held out")
    right.set(ylabel="share of exact completions", ylim=(0, 1))
    lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False)
    figure.savefig(path)
