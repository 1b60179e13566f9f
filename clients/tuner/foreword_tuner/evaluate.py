"""A task's answers to the questions of a data file, through the server, many at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

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


def questions(lines: Sequence[Line], fields: Collection[str]) -> list[tuple[Line, tuple[str, ...]]]:
    """Every question once, with all completions that the file has for it."""
    references: dict[str, list[str]] = {}
    first: dict[str, Line] = {}
    for line in lines:
        question = line.question(fields)
        references.setdefault(question, []).append(line.completion)
        first.setdefault(question, line)
    return [(line, tuple(references[question])) for question, line in first.items()]


async def ask(
    client: AsyncClient,
    asked: Sequence[tuple[Line, tuple[str, ...]]],
    *,
    task: str | None,
    version: int | None,
    max_tokens: int | None,
    concurrency: int,
    fields: Collection[str] = (),
) -> Asked:
    """Greedy answers in the order of the questions. Raises `ForewordError` of the first failure.

    `fields` are those of the task's template.
    """
    found: list[Generation | None] = [None] * len(asked)
    slots = anyio.CapacityLimiter(concurrency)

    async def one(i: int, line: Line) -> None:
        async with slots:
            found[i] = await client.generate(
                None if line.messages else line.prompt,
                task=task,
                version=version,
                **_options(line, max_tokens, fields),
            )

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


def _options(line: Line, max_tokens: int | None, fields: Collection[str]) -> GenerateOptions:
    options: GenerateOptions = {"temperature": 0.0, "max_tokens": max_tokens}
    if line.messages:
        options["messages"] = line.messages
    beside = {name: line.fields[name] for name in fields if name in line.fields}
    if beside and not line.messages:
        options["fields"] = beside
    return options
