"""Data files, all checked before training starts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foreword_tuner import forms, rows
from foreword_tuner.errors import DataError
from foreword_tuner.forms import Line, Needs
from foreword_tuner.rows import Row

_MAX_REASONS = 20
_MAX_NUMBERS = 3


@dataclass(frozen=True, slots=True)
class DataFile:
    """The content of a data file."""

    path: Path
    sha256: str
    lines: tuple[Line, ...]
    skipped: tuple[str, ...] = ()
    """Why lines were skipped, if bad lines are skipped."""


def read(path: Path, *, skip_bad: bool = False, needs: Needs = "completion") -> DataFile:
    """Read a file. Raises a `DataError` that lists all bad lines, unless they are skipped."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise DataError(f"{path}: {exc.strerror or exc}") from None
    lines, problems = [], []
    for row in rows.read(path, data):
        try:
            lines.append(_line(row, needs))
        except DataError as exc:
            problems.append(f"line {row.number}: {exc}")
    if problems and (not skip_bad or not lines):
        raise refusal(path, problems, are_all=not lines)
    if not lines:
        raise DataError(f"{path} has no examples")
    return DataFile(path, hashlib.sha256(data).hexdigest(), tuple(lines), tuple(problems))


def _line(row: Row, needs: Needs) -> Line:
    if row.problem is not None:
        raise DataError(row.problem)
    return forms.parse(row.value, row.number, needs)


def refusal(path: Path, problems: Sequence[str], *, are_all: bool = False) -> DataError:
    """Return one error for the bad lines of a file, `line N: why` each; `are_all` if it has no good
    one."""
    numbers: dict[str, list[str]] = {}
    for problem in problems:
        number, _, reason = problem.removeprefix("line ").partition(": ")
        numbers.setdefault(reason, []).append(number)
    told = [f"{_named(found)}: {reason}" for reason, found in numbers.items()]
    shown = "; ".join(told[:_MAX_REASONS])
    more = f"; and {len(told) - _MAX_REASONS} more" if len(told) > _MAX_REASONS else ""
    if are_all:
        return DataError(f"{path} has no good line; {shown}{more}")
    count = "1 bad line" if len(problems) == 1 else f"{len(problems)} bad lines"
    return DataError(f"{path} has {count}; fix or skip (--skip-bad): {shown}{more}")


def _named(numbers: Sequence[str]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    more = len(numbers) - _MAX_NUMBERS
    shown = ", ".join(numbers[:_MAX_NUMBERS])
    return f"lines {shown} and {more} more" if more > 0 else f"lines {shown}"


def split(lines: Sequence[Line], share: float, seed: int) -> tuple[list[Line], list[Line]]:
    """Split lines into training and held-out lines. Equal prompts stay on one side.

    `share` of the lines is held out, at least one and never all. Raises `DataError` if all lines
    have the same prompt.
    """
    keys = sorted({line.question() for line in lines})
    if len(keys) < 2:
        raise DataError("nothing can be held out: all lines have the same prompt")
    random.Random(seed).shuffle(keys)
    counts = dict.fromkeys(keys, 0)
    for line in lines:
        counts[line.question()] += 1
    held = set(_up_to(keys[:-1], counts, share * len(lines)))
    train = [line for line in lines if line.question() not in held]
    return train, [line for line in lines if line.question() in held]


def _up_to(keys: Sequence[str], counts: Mapping[str, int], wanted: float) -> Iterator[str]:
    taken = 0
    for key in keys:
        yield key
        taken += counts[key]
        if taken >= wanted:
            return
