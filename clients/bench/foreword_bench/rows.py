"""The CPU tables of docs/benchmarks.md: the measured loads and their goals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foreword_bench.roofline import Shape

Against = Literal["vllm", "one task", "peft", "lora"]


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: a load of `concurrency` requests over `tasks` tasks against a peer."""

    concurrency: int
    tasks: int
    prefix_tokens: int
    requests: int
    goal: float
    """Minimum ratio of our throughput to the peer's."""
    against: Against = "vllm"
    resident: float | None = None
    """Share of the prefixes that the device's budget holds. None for all of them."""
    prompt_tokens: int = 32
    new_tokens: int = 64

    def __post_init__(self) -> None:
        assert self.requests % self.concurrency == 0, "the last wave would run half empty"

    @property
    def title(self) -> str:
        """Unique name of the row."""
        tasks = f"{self.tasks}x{self.prefix_tokens}" if self.tasks else "none"
        part = f", {self.resident:.0%} resident" if self.resident else ""
        return f"{self.concurrency}, {tasks}{part} / {self.against}"

    @property
    def shape(self) -> Shape:
        return Shape(
            num_requests=self.concurrency,
            num_tasks=self.tasks,
            num_prefix_tokens=self.prefix_tokens,
            num_prompt_tokens=self.prompt_tokens,
            num_new_tokens=self.new_tokens,
        )


ROWS = (
    Row(1, 0, 0, 8, 1.2),
    Row(8, 0, 0, 32, 1.2),
    Row(32, 0, 0, 96, 1.3),
    Row(8, 8, 64, 32, 1.5),
    Row(32, 8, 64, 96, 1.5),
    Row(32, 8, 256, 96, 1.4),
    Row(32, 8, 1024, 96, 2.0),
    Row(32, 64, 256, 128, 1.5),
    Row(32, 256, 64, 256, 0.9, "one task"),
    Row(32, 256, 64, 256, 0.7, "one task", resident=0.25),
    Row(16, 16, 64, 16, 10.0, "peft"),
    Row(32, 1, 32, 32, 1.0, "lora"),
    Row(32, 8, 32, 32, 1.0, "lora"),
    Row(32, 32, 32, 32, 1.0, "lora"),
)
