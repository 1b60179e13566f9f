"""`foreword tune`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foreword_tuner.cli import options
from foreword_tuner.cli.carry_out import Order, carry_out
from foreword_tuner.encoding import template_or_default
from foreword_tuner.errors import TunerError
from foreword_tuner.methods import DEFAULTS, PROJECTED, Method
from foreword_tuner.settings import TEXT_INIT, Settings


def tune(
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="JSON lines with `prompt` and `completion`, or `messages`."
        ),
    ],
    base: options.BaseModel,
    task: options.Task,
    method: options.MethodOption = Method.PREFIX,
    virtual_tokens: options.VirtualTokens = None,
    projection: Annotated[
        bool,
        typer.Option("--projection", help="Train a prefix through a network (Li & Liang)."),
    ] = False,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="random|examples|text:...",
            help="What training begins from: chance, the first examples, or a text.",
            show_default=False,
        ),
    ] = None,
    first_layer: Annotated[
        int,
        typer.Option(
            min=0,
            help="The lowest layer that is trained. What those below compute is then constant, and "
            "computed once.",
        ),
    ] = 0,
    template: options.Template = None,
    chat: options.Chat = False,
    held_out: options.HeldOut = 0.05,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Of one line; a longer one is a bad line.")
    ] = options.MAX_TOKENS,
    learning_rate: options.Lr = None,
    warmup: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the training.")] = (
        options.WARMUP
    ),
    weight_decay: Annotated[float, typer.Option(min=0)] = 0.0,
    clip: Annotated[float, typer.Option(min=0, help="Longest gradient.")] = options.CLIP,
    batch_tokens: options.BatchTokens = 320,
    accumulate: options.Accumulate = 1,
    epochs: options.Epochs = 5.0,
    minutes: options.Minutes = None,
    eval_every: options.EvalEvery = 200,
    patience: options.Patience = 5,
    dtype: options.DTypeOption = "bfloat16",
    seed: options.Seed = 0,
    output: options.Output = None,
    push: options.Push = None,
    api_key: options.ApiKey = None,
    restart: options.Restart = False,
    skip_bad: options.SkipBad = False,
) -> None:
    """Train a prefix on a frozen base model, and push it to a server.

    Interrupted, it goes on from its last checkpoint when it is called again.
    """
    defaults = PROJECTED if projection else DEFAULTS[method]
    settings = Settings(
        base=base,
        method=method,
        num_virtual_tokens=virtual_tokens or defaults.num_virtual_tokens,
        projection=projection,
        init=init or defaults.init,
        first_layer=first_layer,
        template=template_or_default(template, chat=chat),
        chat=chat,
        held_out=held_out,
        max_tokens=max_tokens,
        learning_rate=learning_rate or defaults.learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        batch_tokens=batch_tokens,
        accumulate=accumulate,
        max_epochs=epochs,
        max_minutes=minutes,
        eval_every=eval_every,
        patience=patience,
        dtype=options.dtype_of(dtype),
        seed=seed,
    )
    _check(settings, push)
    from foreword_tuner import tune  # torch only where it is needed

    carry_out(tune.run, settings, data, Order(task, output, push, api_key, restart, skip_bad))


def _check(settings: Settings, push: str | None) -> None:
    """What does not go together, before anything is loaded."""
    method = settings.method
    if settings.projection and method is not Method.PREFIX:
        raise TunerError("--projection goes with --method prefix")
    if settings.init not in ("random", "examples") and not settings.init.startswith(TEXT_INIT):
        raise TunerError('--init is random, examples or text:"..."')
    fixed = settings.projection or method in (Method.PTUNING, Method.LORA)
    if settings.init != "random" and fixed:
        raise TunerError("--init: a network or a LoRA can only begin at random")
    if settings.first_layer and (fixed or not method.is_kv):
        raise TunerError("--first-layer goes with keys and values that are trained themselves")
    if push and not method.is_servable:
        raise TunerError("a LoRA changes weights, and cannot be pushed: it is for comparison")
