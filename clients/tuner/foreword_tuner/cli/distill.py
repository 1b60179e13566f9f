"""`foreword distill`"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from foreword_tuner.cli import options
from foreword_tuner.cli.job import Job, run_job
from foreword_tuner.encoding import template_or_default
from foreword_tuner.errors import TunerError
from foreword_tuner.methods import DEFAULTS, Method
from foreword_tuner.settings import Settings

if TYPE_CHECKING:
    from foreword_tuner.tune import Run, Tuned


def distill(
    text: options.Text,
    data: options.Prompts,
    task: options.Task,
    base: options.BaseModel = None,
    virtual_tokens: options.VirtualTokens = None,
    answer_tokens: options.AnswerTokens = 32,
    template: options.Template = None,
    chat: options.Chat = False,
    held_out: options.HeldOut = 0.05,
    learning_rate: options.Lr = None,
    batch_tokens: options.BatchTokens = 320,
    epochs: options.Epochs = 5.0,
    minutes: options.Minutes = None,
    eval_every: options.EvalEvery = 100,
    patience: options.Patience = 5,
    dtype: options.DTypeOption = "bfloat16",
    seed: options.Seed = 0,
    output: options.Output = None,
    push: options.Push = None,
    api_key: options.ApiKey = None,
    restart: options.Restart = False,
    skip_bad: options.SkipBad = False,
) -> None:
    """Compress a long text into a short prefix with which the base model answers the same.

    The data needs no completions: the base model's own answers after the text are the target.
    """
    content = _content(text)
    defaults = DEFAULTS[Method.PREFIX]
    settings = Settings(
        base=base or "",
        method=Method.PREFIX,
        num_virtual_tokens=virtual_tokens or defaults.num_virtual_tokens,
        projection=False,
        init="text",
        first_layer=0,
        template=template_or_default(template, chat=chat),
        chat=chat,
        held_out=held_out,
        max_tokens=options.MAX_TOKENS,
        learning_rate=learning_rate or defaults.learning_rate,
        warmup=options.WARMUP,
        weight_decay=0.0,
        clip=options.CLIP,
        batch_tokens=batch_tokens,
        accumulate=1,
        max_epochs=epochs,
        max_minutes=minutes,
        eval_every=eval_every,
        patience=patience,
        dtype=dtype,
        seed=seed,
    )
    train = partial(_run, text.name, content, answer_tokens)
    run_job(train, settings, data, Job(task, output, push, api_key, restart, skip_bad))


def _run(name: str, content: str, answer_tokens: int, what: Run) -> Tuned:
    from foreword_tuner import distill  # torch only once it is needed

    return distill.run(what, distill.Text(name, content, answer_tokens))


def _content(path: Path) -> str:
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise TunerError(f"{path}: {exc}") from None
    if not content.strip():
        raise TunerError(f"{path} is empty")
    return content
