"""Options of the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foreword_tuner.methods import Method
from foreword_tuner.settings import DType

MAX_TOKENS = 1024
WARMUP = 0.03
CLIP = 1.0

Data = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Examples as JSON lines, a JSON array or CSV: `prompt` and `completion`, `messages`, "
        "or another form that docs/tuning.md lists.",
    ),
]
Prompts = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Prompts as users send them; no answers are needed.",
    ),
]
Text = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="The long text that precedes every prompt today.",
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The frozen base model: a folder, a hub id, or `default`, the model of a server that "
        "was given none. Default: that of the server.",
        show_default=False,
    ),
]
Task = Annotated[str, typer.Option(metavar="NAME", help="The task's name on the server.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Folder of the run. Default: runs/TASK.",
        show_default=False,
    ),
]
Push = Annotated[
    str | None,
    typer.Option(
        metavar="[URL]",
        help="Push the result to this server: verified with golden prompts, and activated. Without "
        "a URL: to that of `foreword --url`, FOREWORD_URL or http://127.0.0.1:8000.",
    ),
]
MethodOption = Annotated[Method, typer.Option(help="What is trained.")]
VirtualTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Length of the prefix. Default: 20.", show_default=False),
]
Projection = Annotated[
    bool,
    typer.Option(
        "--projection", help="Train the prefix as the output of a small network (Li & Liang)."
    ),
]
Init = Annotated[
    str | None,
    typer.Option(
        metavar="random|examples|text:...",
        help="Initial prefix: random, from the first examples, or from a text.",
        show_default=False,
    ),
]
FirstLayer = Annotated[
    int,
    typer.Option(
        min=0,
        help="The lowest layer that is trained. The output of the layers below it is constant, and "
        "computed once.",
    ),
]
AnswerTokens = Annotated[
    int, typer.Option(min=1, help="Max tokens of each answer that the base model gives.")
]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Text around a prompt, with fields of the line in braces. Use \\n for a newline. It "
        "becomes the version's template. Default: the prompt and a newline; in a chat the prompt.",
        show_default=False,
    ),
]
Chat = Annotated[
    bool, typer.Option("--chat", help="Send a prompt as a user message of the chat template.")
]
HeldOut = Annotated[
    float, typer.Option(min=0, max=0.9, help="Share of the lines held out for evaluation.")
]
MaxTokens = Annotated[
    int, typer.Option(min=2, help="Max tokens of a line; a longer one is a bad line.")
]
Lr = Annotated[
    float | None,
    typer.Option("--learning-rate", min=0, help="Default: the method's.", show_default=False),
]
Warmup = Annotated[float, typer.Option(min=0, max=0.9, help="Share of the training that warms up.")]
WeightDecay = Annotated[float, typer.Option(min=0, help="AdamW's weight decay.")]
Clip = Annotated[float, typer.Option(min=0, help="Max gradient norm.")]
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens per forward pass.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Forward passes per optimizer step.")]
Epochs = Annotated[float, typer.Option(min=0.001, help="Max passes over the data.")]
Minutes = Annotated[
    float | None, typer.Option(min=0.01, help="Max minutes of training, without evaluations.")
]
EvalEvery = Annotated[
    int, typer.Option(min=1, help="Steps between evaluations. Each writes a checkpoint.")
]
Patience = Annotated[
    int, typer.Option(min=1, help="Stop after this many evaluations without improvement.")
]
DTypeOption = Annotated[DType, typer.Option("--dtype", help="Dtype of the base model.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Start over, even if there is a checkpoint.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip bad lines, and list them.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="FOREWORD_API_KEY", metavar="KEY", help="The server's key.", show_default=False
    ),
]
