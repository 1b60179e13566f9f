"""Options that the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from foreword_tuner.errors import TunerError
from foreword_tuner.methods import Method
from foreword_tuner.settings import DType

MAX_TOKENS = 1024
WARMUP = 0.03
CLIP = 1.0

BaseModel = Annotated[
    str, typer.Option(metavar="MODEL", help="The frozen base model: a folder or a hub id.")
]
Task = Annotated[str, typer.Option(metavar="NAME", help="The task's name on the server.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Default: runs/TASK.", show_default=False),
]
Push = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Push the result to this server: verified, with golden prompts, and active.",
    ),
]
VirtualTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Length of the prefix. Default: 20.", show_default=False),
]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="What goes around a prompt, with the line's fields in braces. \\n is a new line. "
        "The task's profile gets it. Default: the prompt and a new line; in a chat the prompt.",
        show_default=False,
    ),
]
Chat = Annotated[
    bool, typer.Option("--chat", help="A prompt is one user message of the chat template.")
]
Lr = Annotated[
    float | None,
    typer.Option("--learning-rate", min=0, help="Default: the method's.", show_default=False),
]
Epochs = Annotated[float, typer.Option(min=0.001, help="Passes over the data at most.")]
Minutes = Annotated[
    float | None, typer.Option(min=0.01, help="Of training at most, evaluations not counted.")
]
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens of one forward.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Forwards between two steps.")]
EvalEvery = Annotated[
    int, typer.Option(min=1, help="Steps between evaluations, each with a checkpoint.")
]
Patience = Annotated[int, typer.Option(min=1, help="Evaluations without progress that end it.")]
HeldOut = Annotated[
    float, typer.Option(min=0, max=0.9, help="Share of the lines that is only measured on.")
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew where a checkpoint is found.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out, and name them.")]
MethodOption = Annotated[Method, typer.Option(help="What is trained.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="FOREWORD_API_KEY", metavar="KEY", show_default=False),
]
DTypeOption = Annotated[
    str, typer.Option("--dtype", help="What the base model computes in: bfloat16 or float32.")
]


def dtype_of(name: str) -> DType:
    """Raises `TunerError`."""
    if name not in ("bfloat16", "float32"):
        raise TunerError("--dtype is bfloat16 or float32")
    return cast(DType, name)
