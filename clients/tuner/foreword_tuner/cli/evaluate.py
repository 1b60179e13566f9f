"""`foreword evaluate`"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from rich.console import Console
from rich.table import Table

from foreword_client import AsyncClient
from foreword_tuner import data as datafile
from foreword_tuner import scores
from foreword_tuner.cli import options
from foreword_tuner.encoding import PLAIN, fields_of
from foreword_tuner.evaluate import Asked, ask, questions

Data = Annotated[Path, typer.Option(metavar="FILE", help="Examples, as for `foreword tune`.")]
Version = Annotated[
    int | None, typer.Option(min=1, help="A version of the task. Default: the active one.")
]
Url = Annotated[
    str | None,
    typer.Option(envvar="FOREWORD_URL", metavar="URL", help="The server.", show_default=False),
]
Metric = Annotated[
    list[str] | None,
    typer.Option(help=f"One of {', '.join(scores.METRICS)}. Repeatable. Default: all."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Ask only the first N questions.")]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Max tokens of an answer. Default: the task's.")
]
Concurrency = Annotated[int, typer.Option(min=1, help="Concurrent requests.")]
Answers = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write questions and answers there, one JSON line each."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the result there, as JSON."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def evaluate(
    data: Data,
    task: options.Task,
    version: Version = None,
    url: Url = None,
    metric: Metric = None,
    limit: Limit = None,
    max_tokens: MaxTokens = None,
    concurrency: Concurrency = 32,
    answers: Answers = None,
    as_json: AsJson = False,
    output: Output = None,
    api_key: options.ApiKey = None,
    skip_bad: options.SkipBad = False,
) -> None:
    """Score a task's answers to all questions of a file, with 95 % intervals."""
    metrics = metric or list(scores.METRICS)
    if unknown := [name for name in metrics if name not in scores.METRICS]:
        raise typer.BadParameter(
            f"{', '.join(unknown)}: write {', '.join(scores.METRICS)}", param_hint="--metric"
        )
    file = datafile.read(data, skip_bad=skip_bad, needs="reference")

    async def run() -> Asked:
        async with AsyncClient(url, api_key=api_key) as client:
            fields = fields_of(await _template(client, task, version) or PLAIN)
            return await ask(
                client,
                questions(file.lines, fields)[:limit],
                task=task,
                version=version,
                max_tokens=max_tokens,
                concurrency=concurrency,
                fields=fields,
            )

    done = anyio.run(run)
    if answers is not None:
        _write_answers(answers, done)
    found = scores.score(done.answered, metrics)
    result = _result(file, done, task, found)
    document = json.dumps(result, indent=2) + "\n"
    if output is not None:
        output.write_text(document, "utf-8")
    if as_json:
        typer.echo(document, nl=False)
    else:
        _show(result, found)


async def _template(client: AsyncClient, task: str, version: int | None) -> str | None:
    """Return the template of a version, or of the active one."""
    if version is not None:
        definition = (await client.version(task, version)).definition
        if definition is not None:
            return definition.template
    return (await client.task(task)).profile.template


def _result(
    file: datafile.DataFile, done: Asked, task: str, found: dict[str, scores.Score]
) -> dict[str, Any]:
    versions = sorted({g.version for g in done.generations if g.version is not None})
    num_tokens = sum(g.usage.completion_tokens for g in done.generations)
    return {
        "task": task,
        "versions": versions,
        "data": {"name": file.path.name, "sha256": file.sha256},
        "num_questions": len(done.answered),
        "num_cut": sum(g.finish_reason == "length" for g in done.generations),
        "seconds": round(done.seconds, 2),
        "completion_tokens": num_tokens,
        "scores": {name: dataclasses.asdict(score) for name, score in found.items()},
    }


def _show(result: dict[str, Any], found: dict[str, scores.Score]) -> None:
    typer.echo(_title(result))
    table = Table(box=None)
    table.add_column("score")
    table.add_column("", justify="right")
    table.add_column("95 %", justify="right")
    for name, score in found.items():
        table.add_row(name, f"{score.value:.1f}", f"{score.low:.1f} to {score.high:.1f}")
    Console().print(table)


def _title(result: dict[str, Any]) -> str:
    versions: Sequence[int] = result["versions"]
    named = f"{result['task']}@{','.join(map(str, versions))}"
    cut = f", {result['num_cut']} cut short" if result["num_cut"] else ""
    rate = result["num_questions"] / result["seconds"]
    return f"{named}: {result['num_questions']} questions{cut}, {rate:.1f} per second"


def _write_answers(path: Path, done: Asked) -> None:
    rows = [
        {
            **asked,
            "answer": one.answer,
            "references": one.references,
            "tokens": g.usage.completion_tokens,
        }
        for asked, one, g in zip(done.questions, done.answered, done.generations, strict=True)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
