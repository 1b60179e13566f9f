"""Concurrent requests for a task's answers to the questions of a data file."""

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
    """Answers with their references, generations, and the total duration."""

    answered: list[Answered]
    generations: list[Generation]
    seconds: float


def questions(lines: Sequence[Line], fields: Collection[str]) -> list[tuple[Line, tuple[str, ...]]]:
    """Return each distinct question with all its completions in the file."""
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
    """Request greedy answers, in the order of the questions. Raises the first `ForewordError`.

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
    except ExceptionGroup as failed:  # the first failure cancelled the others
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
    given = {name: line.fields[name] for name in fields if name in line.fields}
    if given and not line.messages:
        options["fields"] = given
    return options
