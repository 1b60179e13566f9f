"""Settings of a training run. All are recorded with its result."""

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
    """Everything that determines the outcome, together with the data."""

    base: str
    method: Method
    num_virtual_tokens: int
    projection: bool
    init: str
    """`random`, `examples` (the first lines of the training data), or `text:...`."""
    first_layer: int
    """The lowest trained layer. Those below keep their initial keys and values."""
    template: str
    chat: bool
    held_out: float
    """Share of the lines held out for evaluation."""
    max_tokens: int
    """Max tokens of an example; longer ones are bad lines."""
    learning_rate: float
    warmup: float
    """Share of the training that warms up."""
    weight_decay: float
    clip: float
    batch_tokens: int
    """Tokens of a forward pass, with padding."""
    accumulate: int
    """Forward passes per optimizer step."""
    max_epochs: float
    max_minutes: float | None
    """The learning rate decays to zero by then."""
    eval_every: int
    """Steps between evaluations. Each writes a checkpoint."""
    patience: int
    """Evaluations without improvement before training stops."""
    dtype: DType
    seed: int

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def identity(self, *data: str) -> str:
        """Return the identity of a run: only an identical one may resume its checkpoint. `data` are
        digests."""
        text = json.dumps([self.as_json(), *data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of a run, and the paths of its files."""

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
