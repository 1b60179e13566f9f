"""Preparation of a training: examples, trained parameters, forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch

from foreword_tuner import checkpoint, configs, data, initial
from foreword_tuner.base import Base
from foreword_tuner.data import DataFile
from foreword_tuner.encoding import Encoder, Example
from foreword_tuner.errors import TunerError
from foreword_tuner.forms import Line
from foreword_tuner.forward import DecoderForward, Forward, Seq2SeqForward
from foreword_tuner.methods import Method
from foreword_tuner.settings import TEXT_INIT, Settings

_NUM_SHOTS = 64
"""Number of lines whose text is long enough for any prefix."""


@dataclass(frozen=True, slots=True)
class Examples:
    """The training and held-out examples."""

    train: list[Example]
    held_out: list[Example]
    held_out_lines: list[Line]
    encoder: Encoder
    init_ids: list[int]
    """Token ids of the text that the prefix is initialized from; empty for random."""
    skipped: list[str]
    """Why lines were skipped."""


def examples(base: Base, file: DataFile, settings: Settings, *, skip_bad: bool) -> Examples:
    """Encode and split a file. Raises a `DataError` that lists bad lines, unless skipped."""
    encoder = Encoder(base.tokenizer, base.eos_id, template=settings.template, chat=settings.chat)
    encoded, problems = encoder.examples(file.lines, max_tokens=settings.max_tokens)
    if problems and not skip_bad:
        raise data.refusal(file.path, problems)
    by_number = {example.number: example for example in encoded}
    kept = [line for line in file.lines if line.number in by_number]
    train, held_out = data.split(kept, settings.held_out, settings.seed)
    return Examples(
        [by_number[line.number] for line in train],
        [by_number[line.number] for line in held_out],
        held_out,
        encoder,
        _init_ids(base, encoder, train, settings),
        [*file.skipped, *problems],
    )


def _init_ids(base: Base, encoder: Encoder, train: Sequence[Line], settings: Settings) -> list[int]:
    if settings.init == "random":
        return []
    if base.attention is None:
        raise TunerError("an encoder-decoder can only start at random: pass --init random")
    if settings.init.startswith(TEXT_INIT):
        ids = base.tokenizer(settings.init.removeprefix(TEXT_INIT)).input_ids
    else:
        step = max(1, len(train) // _NUM_SHOTS)  # files are often in the order of their labels
        ids = encoder.shots(train[::step])
    if not ids:
        raise TunerError("--init: the text has no tokens")
    return initial.fill(ids, settings.num_virtual_tokens)


@dataclass(frozen=True, slots=True)
class Trainee:
    """The base model with the parameters to train."""

    model: peft.PeftModel
    num_parameters: int
    """Number of trained parameters."""


def trainee(base: Base, settings: Settings, init_ids: Sequence[int]) -> Trainee:
    """Wrap the base model in PEFT, and initialize the trained parameters."""
    torch.manual_seed(settings.seed)
    method = settings.method
    config = configs.config_of(
        method, base.model, settings.num_virtual_tokens, projection=settings.projection
    )
    tuned: Any = peft.get_peft_model(base.model, config)
    if init_ids:
        initial.from_text(tuned, method, init_ids)
    num_parameters = sum(p.numel() for p in checkpoint.trainable(tuned).values())
    if method in (Method.PREFIX, Method.CARTRIDGE, Method.PROMPT) and not settings.projection:
        num_parameters = initial.measure_in_units(tuned, method, first_layer=settings.first_layer)
    return Trainee(tuned.eval(), num_parameters)


def forward(base: Base, tuned: peft.PeftModel, settings: Settings) -> Forward:
    """Choose the forward pass of the model's family. Raises `TunerError`."""
    if base.attention is None:
        if settings.first_layer:
            raise TunerError("--first-layer does not work for an encoder-decoder")
        return Seq2SeqForward(tuned, base.pad_id)
    return DecoderForward(
        tuned, settings.method, base.attention, base.pad_id, first_layer=settings.first_layer
    )
