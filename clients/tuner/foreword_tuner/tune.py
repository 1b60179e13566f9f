"""A training, from its data file to its output folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword_tuner import base as bases
from foreword_tuner import data, golden, plots, prepare, result
from foreword_tuner.base import Base
from foreword_tuner.data import DataFile
from foreword_tuner.encoding import PLAIN
from foreword_tuner.fingerprint import fingerprint
from foreword_tuner.forward import Forward
from foreword_tuner.prepare import Examples, Trainee
from foreword_tuner.settings import Folder, Settings
from foreword_tuner.target import Target
from foreword_tuner.training import Report, Training

_SPARE_TOKENS = 1.5
"""`max_tokens` of the task, as a multiple of the longest answer in the data."""


@dataclass(frozen=True, slots=True)
class Run:
    """The inputs of a training, and callbacks for its progress."""

    settings: Settings
    data: Path
    folder: Folder
    skip_bad: bool
    restart: bool
    log: Callable[[str], None]
    on_report: Callable[[Report], None]
    target: Target | None = None
    """Where the result goes. None: it is not pushed."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A finished training."""

    folder: Folder
    record: dict[str, Any]


def run(what: Run) -> Tuned:
    """Train, or resume an interrupted training. Raises `TunerError`."""
    settings = what.settings
    file = data.read(what.data, skip_bad=what.skip_bad)
    base = load_base(what)
    examples = prepare.examples(base, file, settings, skip_bad=what.skip_bad)
    trainee = prepare.trainee(base, settings, examples.init_ids)
    forward = prepare.forward(base, trainee.model, settings)
    return train(what, file, trainee, forward, examples)


def load_base(what: Run) -> Base:
    """Load the base model. Raises `TunerError`, also if it is not the target's."""
    base = bases.load(what.settings.base, what.settings.dtype)
    if what.target is not None:
        what.target.check_base(base.name, fingerprint(base.model))
    return base


def train(
    what: Run,
    file: DataFile,
    trainee: Trainee,
    forward: Forward,
    examples: Examples,
    *extra: str,
) -> Tuned:
    """Train and write the output files. `extra` is part of the run's identity."""
    for problem in examples.skipped:
        what.log(f"skipped: {problem}")
    definition = _definition(what.settings, _max_answer_tokens(examples))
    if what.target is not None and (changes := what.target.differences(definition)):
        told = "; ".join(changes)
        what.log(f"warning: the push will change how {what.target.task} is asked: {told}")
    training = _training(what, file, trainee, forward, examples, extra)
    training.run()
    return _finish(what, file, trainee, forward, examples, training, definition)


def _training(
    what: Run,
    file: DataFile,
    trainee: Trainee,
    forward: Forward,
    examples: Examples,
    extra: Sequence[str],
) -> Training:
    folder = what.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    if what.restart:
        folder.checkpoint.unlink(missing_ok=True)
    training = Training(
        trainee.model,
        forward,
        examples.train,
        examples.held_out,
        what.settings,
        path=folder.checkpoint,
        identity=what.settings.identity(file.sha256, *extra),
        on_report=what.on_report,
    )
    what.log(
        f"{len(examples.train)} training lines, {len(examples.held_out)} held out; "
        f"{trainee.num_parameters:,} parameters"
    )
    if training.resume():
        what.log(f"resuming after step {training.state.step}")
    return training


def _finish(
    what: Run,
    file: DataFile,
    trainee: Trainee,
    forward: Forward,
    examples: Examples,
    training: Training,
    definition: dict[str, Any],
) -> Tuned:
    folder, settings, state = what.folder, what.settings, training.state
    chosen = golden.choose(
        forward, examples.held_out_lines, examples.held_out, examples.encoder.fields
    )
    result.write_golden(folder.golden, chosen)
    num_bytes = result.save_peft(trainee.model, folder)
    best = next(m for m in reversed(state.held_out) if m["step"] == state.best_step)
    evaluation = {
        "num_examples": len(examples.held_out),
        "scores": {key: value for key, value in best.items() if key != "step"},
    }
    result.write_json(folder.evaluation, evaluation)
    record = _record(file, trainee, examples, training, settings)
    record |= {"num_bytes": num_bytes, "evaluation": evaluation}
    result.write_json(folder.record, record)
    result.write_json(folder.definition, definition)
    title = f"{settings.method} on {file.path.name}, {settings.num_virtual_tokens} virtual tokens"
    plots.draw(folder.plot, title, state.curve, state.held_out)
    return Tuned(folder, record)


def _definition(settings: Settings, max_tokens: int) -> dict[str, Any]:
    """Describe the prompt format: prompts must look as they did in training."""
    template = None if settings.template == PLAIN else settings.template
    defaults = {"temperature": 0.0, "max_tokens": max_tokens}
    return {
        "template": template,
        "chat": settings.chat,
        "defaults": defaults,
        "prompt": {"add_special_tokens": True},
    }


def _max_answer_tokens(examples: Examples) -> int:
    longest = max(len(e.completion_ids) for e in (*examples.train, *examples.held_out))
    return int(longest * _SPARE_TOKENS)


def _record(
    file: DataFile, trainee: Trainee, examples: Examples, training: Training, settings: Settings
) -> dict[str, Any]:
    """Collect all settings, curves and sizes."""
    state = training.state
    return {
        "settings": settings.as_json(),
        "data": {"name": file.path.name, "sha256": file.sha256, "left_out": examples.skipped},
        "num_train": len(examples.train),
        "num_held_out": len(examples.held_out),
        "num_parameters": trainee.num_parameters,
        "max_answer_tokens": _max_answer_tokens(examples),
        "steps": state.step,
        "epochs": state.epoch + 1,
        "training_s": round(state.elapsed_s, 1),
        "tokens_per_s": round(state.num_tokens / state.elapsed_s, 1),
        "best_step": state.best_step,
        "curve": state.curve,
        "held_out": state.held_out,
        "versions": result.versions(),
    }
