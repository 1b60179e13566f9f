"""Every setting of a training run. They are written down beside its result, all of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foreword_tuner.methods import Method

DType = Literal["bfloat16", "float32"]
TEXT_INIT = "text:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the outcome. Two runs with the same settings and data are the same run."""

    base: str
    method: Method
    num_virtual_tokens: int
    projection: bool
    init: str
    """`random`, `examples` (the first lines of the training data), or `text:...`."""
    first_layer: int
    """The lowest that is trained; those below keep the keys and values of the beginning."""
    template: str
    chat: bool
    held_out: float
    """Share of the lines."""
    max_tokens: int
    """Of one example; longer ones are bad lines."""
    learning_rate: float
    warmup: float
    """Share of the training."""
    weight_decay: float
    clip: float
    batch_tokens: int
    """Of one forward, padding counted."""
    accumulate: int
    """Forwards between steps of the optimiser."""
    max_epochs: float
    max_minutes: float | None
    """The learning rate comes down in time for it."""
    eval_every: int
    """Steps; a checkpoint is written as often."""
    patience: int
    """Evaluations without progress that end the training."""
    dtype: DType
    seed: int

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def identity(self, *data: str) -> str:
        """Of a run: what may go on from a checkpoint of it. `data` are digests."""
        text = json.dumps([self.as_json(), *data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a run's files are."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def record(self) -> Path:
        return self.path / "training.json"

    @property
    def plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def golden(self) -> Path:
        return self.path / "golden.jsonl"

    @property
    def definition(self) -> Path:
        return self.path / "foreword.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"
