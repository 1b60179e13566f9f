"""Admission: how many sequences and tokens may run or wait, in total and of one API key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from prefix_store.registry.keys import Key
from server.engine.ipc.protocol import Engine
from server.engine.ipc.stream import TokenStream
from server.errors import KeyLimitReached, Overloaded
from server.settings import Settings

_RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what runs or waits. Tokens are those of prompts, and `max_tokens` of each."""

    max_sequences: int
    max_sequences_per_key: int
    """Used for keys that have no `max_concurrency`."""
    max_tokens: int | None = None
    """None: in the proportion to the KV pool that `max_sequences` has to the places in it."""

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        room = settings.max_num_seqs + settings.max_waiting
        per_key = settings.max_concurrency_per_key or max(1, room // 2)
        return cls(room, min(per_key, room), settings.max_tokens_in_flight)


class Admission:
    """Counts what runs or waits, and refuses what is too much.

    A sequence counts from its admission until the engine has ended it, wherever it waits. A request
    with more tokens than are allowed is admitted while nothing else counts, or it could never be.
    Not thread-safe: used on the event loop only.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._num_not_submitted = 0
        self._num_tokens = 0
        self._sequences_of: Counter[str] = Counter()
        self._tokens_of: Counter[str] = Counter()

    @property
    def num_sequences(self) -> int:
        """Sequences that run or wait, including those of the server's own requests."""
        return self._engine.num_in_flight + self._num_not_submitted

    def check(self, key: Key | None, num_sequences: int, num_tokens: int = 0) -> None:
        """Raise `KeyLimitReached` or `Overloaded` unless so much more can be admitted."""
        if key is not None:
            self._check_key(key, num_sequences, num_tokens)
        if self.num_sequences + num_sequences > self._limits.max_sequences:
            raise Overloaded(f"{self.num_sequences} requests are running or waiting already")
        most = self._max_tokens
        if self._num_tokens and self._num_tokens + num_tokens > most:
            raise Overloaded(
                f"{self._num_tokens} of at most {most} tokens are running or waiting already"
            )

    @contextmanager
    def preparing(self, key: Key | None, num_sequences: int) -> Iterator[None]:
        """Count sequences while their requests are prepared. Raises as `check` does."""
        self.check(key, num_sequences)
        hold = self.hold(key, [0] * num_sequences)
        try:
            yield
        finally:
            hold.release()

    def hold(self, key: Key | None, num_tokens: Sequence[int]) -> Hold:
        """Count the sequences of a request, with so many tokens each, until they are released."""
        return Hold(self, None if key is None else key.id, num_tokens)

    def count(self, key_id: str | None, num_sequences: int, num_tokens: int) -> None:
        """Change the counts. Only `Hold` calls this."""
        self._num_tokens += num_tokens
        if key_id is None:
            return
        self._sequences_of[key_id] += num_sequences
        self._tokens_of[key_id] += num_tokens
        if not self._sequences_of[key_id]:
            del self._sequences_of[key_id], self._tokens_of[key_id]

    def count_not_submitted(self, num_sequences: int) -> None:
        """Change the number of sequences that the engine does not have yet. See `count`."""
        self._num_not_submitted += num_sequences

    def _check_key(self, key: Key, num_sequences: int, num_tokens: int) -> None:
        limit = key.max_concurrency or self._limits.max_sequences_per_key
        if self._sequences_of[key.id] + num_sequences > limit:
            raise KeyLimitReached(
                f"the key allows {limit} sequences at once, {self._sequences_of[key.id]} are "
                f"running or waiting and this request has {num_sequences}",
                _RETRY_AFTER_S,
            )
        limits, used = self._limits, self._tokens_of[key.id]
        most = self._max_tokens * limits.max_sequences_per_key // limits.max_sequences
        if used and used + num_tokens > most:
            raise KeyLimitReached(
                f"{used} of at most {most} tokens of the key are running or waiting already",
                _RETRY_AFTER_S,
            )

    @property
    def _max_tokens(self) -> int:
        if self._limits.max_tokens is not None:
            return self._limits.max_tokens
        info = self._engine.info
        return info.kv_pool_tokens * self._limits.max_sequences // info.max_num_seqs


class Hold:
    """What the sequences of one request count for. Each is released when the engine has ended it,
    and those that the engine does not have with `release`."""

    def __init__(self, admission: Admission, key_id: str | None, num_tokens: Sequence[int]) -> None:
        self._admission = admission
        self._key_id = key_id
        self._not_submitted = list(num_tokens)
        admission.count(key_id, len(num_tokens), sum(num_tokens))
        admission.count_not_submitted(len(num_tokens))

    def submitted(self, stream: TokenStream) -> None:
        """Count the next sequence until its stream ends."""
        num_tokens = self._not_submitted.pop(0)
        self._admission.count_not_submitted(-1)
        stream.on_end(lambda: self._admission.count(self._key_id, -1, -num_tokens))

    def release(self) -> None:
        """Release the sequences that were not submitted. Idempotent."""
        num_tokens, self._not_submitted = self._not_submitted, []
        self._admission.count_not_submitted(-len(num_tokens))
        self._admission.count(self._key_id, -len(num_tokens), -sum(num_tokens))
