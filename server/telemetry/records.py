"""What metrics and traces are made from: protocols, so that they need no request."""

from __future__ import annotations

from typing import Protocol

from prefix_store.digest import Digest


class ServedBy(Protocol):
    """The version that served a request; task, version and digest are None for the base model."""

    @property
    def task(self) -> str | None: ...
    @property
    def version(self) -> int | None: ...
    @property
    def digest(self) -> Digest | None: ...
    @property
    def num_prefix_tokens(self) -> int: ...


class RequestRecord(Protocol):
    """What is recorded of a request that was admitted and has ended. Times are monotonic."""

    @property
    def target(self) -> ServedBy: ...
    @property
    def outcome(self) -> str: ...
    @property
    def error(self) -> Exception | None: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def num_completion_tokens(self) -> int: ...
    @property
    def submitted_s(self) -> float: ...
    @property
    def first_token_s(self) -> float | None: ...
    @property
    def ended_s(self) -> float | None: ...
    @property
    def queue_s(self) -> float: ...
    @property
    def time_to_first_token_s(self) -> float | None: ...
    @property
    def total_s(self) -> float: ...


def time_per_output_token_s(record: RequestRecord) -> float | None:
    """Return the mean time from one token to the next, in seconds; None for fewer than two."""
    if record.first_token_s is None or record.ended_s is None or record.num_completion_tokens < 2:
        return None
    return (record.ended_s - record.first_token_s) / (record.num_completion_tokens - 1)
