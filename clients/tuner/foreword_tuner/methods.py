"""Training methods, with the defaults that measured best (docs/tuning.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    """A training method. The server runs all but LoRA as a prefix."""

    PREFIX = "prefix"
    CARTRIDGE = "cartridge"
    PROMPT = "prompt"
    PTUNING = "ptuning"
    LORA = "lora"

    @property
    def is_kv(self) -> bool:
        """Whether the parameters are the keys and values of every layer."""
        return self in (Method.PREFIX, Method.CARTRIDGE)

    @property
    def is_servable(self) -> bool:
        return self is not Method.LORA


@dataclass(frozen=True, slots=True)
class Defaults:
    """Defaults of a method."""

    learning_rate: float
    num_virtual_tokens: int = 20
    init: str = "random"


DEFAULTS = {
    Method.PREFIX: Defaults(learning_rate=0.1, init="examples"),
    Method.CARTRIDGE: Defaults(learning_rate=0.1, init="examples"),
    Method.PROMPT: Defaults(learning_rate=0.3, init="examples"),
    Method.PTUNING: Defaults(learning_rate=1e-3),
    Method.LORA: Defaults(learning_rate=4e-3, num_virtual_tokens=0),
}
PROJECTED = Defaults(learning_rate=1e-3)
"""Prefix tuning with the network of Li & Liang, whose weights are trained."""
