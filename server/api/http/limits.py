"""Rate and concurrency limits of keys, and of peers that present invalid keys.

Limits apply per process: several servers with one address each allow that much.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from prefix_store.registry.keys import Key
from server.errors import KeyLimitReached, TooManyAttempts

_LONGEST_WAIT_S = 24 * 3600.0
"""Upper bound of a reported wait; keys of 0.1.0 may have rates for which it would be infinite."""
_MAX_PEERS = 10_000
_FAILURES_PER_S = 1.0
_FAILURES_AT_ONCE = 20


class TokenBucket:
    """Token bucket of at most `burst` tokens, refilled with `rate` tokens per second."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at_s = time.monotonic()

    def wait_s(self) -> float:
        """Return the seconds until a token is available, at most a day; 0 if one is."""
        now_s = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        return min(max(0.0, (1 - self._tokens) / self._rate), _LONGEST_WAIT_S)

    def take(self) -> float:
        """Take a token and return 0, or return the seconds until one is available."""
        wait_s = self.wait_s()
        if wait_s == 0:
            self._tokens -= 1
        return wait_s


class KeyLimits:
    """Enforces the limits of keys. Not thread-safe: used on the event loop only.

    `max_concurrency` is for keys that have none of their own. `server.generation.admission` applies
    the same limits to sequences, of which a request can have many.
    """

    def __init__(self, max_concurrency: int) -> None:
        self._max_concurrency = max_concurrency
        self._buckets: dict[str, TokenBucket] = {}
        self._num_running: Counter[str] = Counter()

    @contextmanager
    def admitted(self, key: Key | None) -> Iterator[None]:
        """Count a request until the end of its response. Raises `KeyLimitReached`."""
        if key is None:
            yield
            return
        limit = key.max_concurrency or self._max_concurrency
        if self._num_running[key.id] >= limit:
            raise KeyLimitReached(f"the key allows {limit} concurrent requests", 1)
        if (wait_s := self._take(key)) > 0:
            said = f"the key allows {key.requests_per_s:g} requests per second"
            raise KeyLimitReached(said, math.ceil(wait_s))
        self._num_running[key.id] += 1
        try:
            yield
        finally:
            self._num_running[key.id] -= 1
            if not self._num_running[key.id]:
                del self._num_running[key.id]

    def _take(self, key: Key) -> float:
        if key.requests_per_s is None:
            return 0.0
        if (bucket := self._buckets.get(key.id)) is None:
            burst = key.burst or math.ceil(key.requests_per_s)
            bucket = self._buckets[key.id] = TokenBucket(key.requests_per_s, burst)
        return bucket.take()


class AttemptLimit:
    """Limits peers that present invalid keys, as each one costs a database lookup."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def check(self, peer: str) -> None:
        """Raise `TooManyAttempts` if the peer has presented too many invalid keys."""
        bucket = self._buckets.get(peer)
        if bucket is not None and (wait_s := bucket.wait_s()) > 0:
            raise TooManyAttempts("too many invalid keys came from your address", math.ceil(wait_s))

    def failed(self, peer: str) -> None:
        """Count an invalid key."""
        bucket = self._buckets.setdefault(peer, TokenBucket(_FAILURES_PER_S, _FAILURES_AT_ONCE))
        bucket.take()
        self._buckets.move_to_end(peer)
        if len(self._buckets) > _MAX_PEERS:
            self._buckets.popitem(last=False)
