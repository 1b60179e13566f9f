"""A task's answers to the questions of a data file, through the server, many at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from foreword_client import AsyncClient, Generation
from foreword_client.types import GenerateOptions
from foreword_tuner.data import Line
from foreword_tuner.scores import Answered


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, what came, and how long all of it took."""

    answered: list[Answered]
    generations: list[Generation]
    seconds: float


def questions(lines: Sequence[Line]) -> list[tuple[Line, tuple[str, ...]]]:
    """Every question once, with all completions that the file has for it."""
    references: dict[str, list[str]] = {}
    first: dict[str, Line] = {}
    for line in lines:
        references.setdefault(line.key, []).append(line.completion)
        first.setdefault(line.key, line)
    return [(line, tuple(references[key])) for key, line in first.items()]


async def ask(
    client: AsyncClient,
    asked: Sequence[tuple[Line, tuple[str, ...]]],
    *,
    task: str | None,
    version: int | None,
    max_tokens: int | None,
    concurrency: int,
    prompt_of: Callable[[Line], str] | None = None,
    tell: Callable[[], None] = lambda: None,
) -> Asked:
    """Greedy answers in the order of the questions. Raises `ForewordError` of the first failure.

    `prompt_of` makes prompts where the server has no task to do it.
    """
    found: list[Generation | None] = [None] * len(asked)
    slots = anyio.CapacityLimiter(concurrency)

    async def one(i: int, line: Line) -> None:
        async with slots:
            found[i] = await client.generate(
                None if line.messages else (prompt_of or _prompt)(line),
                task=task,
                version=version,
                **_options(line, max_tokens),
            )
            tell()

    begin_s = time.perf_counter()
    try:
        async with anyio.create_task_group() as group:
            for i, (line, _) in enumerate(asked):
                group.start_soon(one, i, line)
    except ExceptionGroup as failed:  # the first ended the others
        raise failed.exceptions[0] from None
    seconds = time.perf_counter() - begin_s
    generations = [g for g in found if g is not None]
    pairs = zip(generations, asked, strict=True)
    answered = [Answered(g.text, references) for g, (_, references) in pairs]
    return Asked(answered, generations, seconds)


def _prompt(line: Line) -> str:
    return line.prompt


def _options(line: Line, max_tokens: int | None) -> GenerateOptions:
    options: GenerateOptions = {"temperature": 0.0, "max_tokens": max_tokens}
    if line.messages:
        options["messages"] = line.messages
    beside = {name: text for name, text in line.fields.items() if name != "prompt"}
    if beside:
        options["fields"] = beside
    return options
