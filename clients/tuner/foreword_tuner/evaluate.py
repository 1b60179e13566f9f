"""Concurrent requests for a task's answers to the questions of a data file."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypedDict

import anyio

from foreword_client import AsyncClient, Generation
from foreword_tuner.forms import Line
from foreword_tuner.scores import Answered


class Question(TypedDict, total=False):
    """The part of a request that asks."""

    prompt: str
    messages: Sequence[dict[str, str]]
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions, answers with their references, generations, and the total duration."""

    questions: list[Question]
    answered: list[Answered]
    generations: list[Generation]
    seconds: float


def questions(lines: Sequence[Line], fields: Collection[str]) -> list[tuple[Line, tuple[str, ...]]]:
    """Return each distinct question with all its right answers in the file."""
    references: dict[str, list[str]] = {}
    first: dict[str, Line] = {}
    for line in lines:
        question = line.question(fields)
        references.setdefault(question, []).extend(line.answers)
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
    fields: Collection[str] = ("prompt",),
) -> Asked:
    """Request greedy answers, in the order of the questions. Raises the first `ForewordError`.

    `fields` are those of the task's template.
    """
    found: list[Generation | None] = [None] * len(asked)
    slots = anyio.CapacityLimiter(concurrency)

    async def one(i: int, line: Line) -> None:
        async with slots:
            found[i] = await client.generate(
                task=task,
                version=version,
                temperature=0.0,
                max_tokens=max_tokens,
                **question(line, fields),
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
    return Asked([question(line, fields) for line, _ in asked], answered, generations, seconds)


def question(line: Line, fields: Collection[str]) -> Question:
    """Return messages, or what a template with these fields takes of a line."""
    if line.messages:
        return {"messages": line.messages}
    found: Question = {"prompt": line.prompt} if "prompt" in fields else {}
    if given := {k: line.fields[k] for k in sorted(fields) if k != "prompt" and k in line.fields}:
        found["fields"] = given
    return found
