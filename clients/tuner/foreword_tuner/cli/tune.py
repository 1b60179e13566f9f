"""`foreword tune`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from foreword_tuner.cli import options
from foreword_tuner.cli.job import Job, run_job
from foreword_tuner.encoding import template_or_default
from foreword_tuner.methods import DEFAULTS, PROJECTED, Method
from foreword_tuner.settings import TEXT_INIT, Settings

if TYPE_CHECKING:
    from foreword_tuner.tune import Run, Tuned


def tune(
    data: options.Data,
    task: options.Task,
    base: options.BaseModel = None,
    method: options.MethodOption = Method.PREFIX,
    virtual_tokens: options.VirtualTokens = None,
    projection: options.Projection = False,
    init: options.Init = None,
    first_layer: options.FirstLayer = 0,
    template: options.Template = None,
    chat: options.Chat = False,
    held_out: options.HeldOut = 0.05,
    max_tokens: options.MaxTokens = options.MAX_TOKENS,
    learning_rate: options.Lr = None,
    warmup: options.Warmup = options.WARMUP,
    weight_decay: options.WeightDecay = 0.0,
    clip: options.Clip = options.CLIP,
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
    """Train a prefix on a frozen base model, and push it to a server. An interrupted run resumes
    from its last checkpoint when it is started again."""
    defaults = PROJECTED if projection else DEFAULTS[method]
    settings = Settings(
        base=base or "",
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
        dtype=dtype,
        seed=seed,
    )
    _check(settings, push)
    run_job(_run, settings, data, Job(task, output, push, api_key, restart, skip_bad))


def _run(what: Run) -> Tuned:
    from foreword_tuner import tune  # torch only once it is needed

    return tune.run(what)


def _check(settings: Settings, push: str | None) -> None:
    """Refuse options that contradict each other. Raises `typer.BadParameter`."""
    method = settings.method
    if settings.projection and method is not Method.PREFIX:
        raise typer.BadParameter("--projection needs --method prefix")
    if settings.init not in ("random", "examples") and not settings.init.startswith(TEXT_INIT):
        raise typer.BadParameter('--init is random, examples or text:"..."')
    fixed = settings.projection or method in (Method.PTUNING, Method.LORA)
    if settings.init != "random" and fixed:
        raise typer.BadParameter("--init: a network or a LoRA can only start at random")
    if settings.first_layer and (fixed or not method.is_kv):
        raise typer.BadParameter("--first-layer needs keys and values that are trained directly")
    if push is not None and not method.is_servable:
        raise typer.BadParameter("a LoRA changes weights and cannot be pushed: only compared")
