"""Ends a traffic split whose rule says so."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from prefix_store.errors import ActivationOvertaken, PrefixStoreError, UnknownTask
from prefix_store.registry.activations import GuardedSplit
from prefix_store.registry.preconditions import CurrentActivation, Preconditions
from prefix_store.rollback import Condition, RollbackRule
from server.async_store import AsyncStore
from server.errors import GoldenPromptFailed, ServerError
from server.metrics import Metrics
from server.publishing.rechecks import Rechecks
from server.publishing.uploads import Uploads
from server.telemetry.recent import Quantiles, RecentStats

logger = logging.getLogger(__name__)

GOLDEN_EVERY_S = 600.0


class Breach(NamedTuple):
    """A condition that a version met, and how."""

    condition: Condition
    reason: str


@dataclass(slots=True)
class _Watched:
    since_s: float
    """When this server first saw the split. Earlier requests do not count."""
    golden_s: float = -math.inf
    """When its golden prompts were last run."""


class SplitGuard:
    """Judges the splits that have a rule, by the requests that this server has answered.

    Several servers with one registry judge each for itself. The first one to see a rule broken ends
    the split; the others find that it is not in force any more.
    """

    def __init__(
        self,
        store: AsyncStore,
        uploads: Uploads,
        rechecks: Rechecks,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._uploads = uploads
        self._rechecks = rechecks
        self._metrics = metrics
        self._clock = clock
        self._watched: dict[int, _Watched] = {}

    async def check(self) -> None:
        """Judge every split once, and end those whose rule is broken. Raises `StorageFailure`."""
        splits = await self._store.guarded_splits()
        now_s = self._clock()
        seqs = [split.activation.seq for split in splits]
        self._watched = {seq: self._watched.get(seq) or _Watched(now_s) for seq in seqs}
        for split in splits:
            if (breach := await self._judge(split)) is not None:
                await self._end(split, breach)

    async def _judge(self, split: GuardedSplit) -> Breach | None:
        watched, rule = self._watched[split.activation.seq], split.activation.rollback_if
        assert rule is not None, "a guarded split has a rule"
        for version in _canaries(split):
            stats = self._metrics.recent.stats(split.task, version, watched.since_s)
            if (breach := judge(rule, version, stats)) is not None:
                return breach
        if rule.golden_fails and self._clock() - watched.golden_s >= GOLDEN_EVERY_S:
            watched.golden_s = self._clock()
            return await self._run_golden(split)
        return None

    async def _run_golden(self, split: GuardedSplit) -> Breach | None:
        for version in _canaries(split):
            try:
                manifest = await self._store.get_version(split.task, version)
                await self._rechecks.check_golden(manifest)
            except GoldenPromptFailed as exc:
                return Breach("golden", f"v{version}: {exc}")
            except (ServerError, PrefixStoreError) as exc:  # no answer is no evidence
                logger.warning("golden prompts of %s v%d not run: %s", split.task, version, exc)
        return None

    async def _end(self, split: GuardedSplit, breach: Breach) -> None:
        task, activation = split.task, split.activation
        expected = Preconditions(expected_activation=CurrentActivation(activation.seq))
        try:
            active = await self._store.get_version(task, activation.version)
            await self._uploads.load(active.digest)
            await self._store.end_split(task, breach.condition, breach.reason, expected)
        except (ActivationOvertaken, UnknownTask):
            logger.info("the split of %s was ended or changed by others", task)
        except PrefixStoreError as exc:
            logger.error("the split of %s cannot be ended: %s", task, exc)
        else:
            self._metrics.rolled_back(breach.condition)
            extra = {"task": task, "version": activation.version, "reason": breach.reason}
            logger.warning("rolled back by the rule of the split", extra=extra)


def judge(rule: RollbackRule, version: int, stats: RecentStats) -> Breach | None:
    """Return the first condition on errors and times that a version meets."""
    rate = stats.error_rate
    if stats.num_requests < rule.min_requests or rate is None:
        return None
    if rule.error_rate_above is not None and rate > rule.error_rate_above:
        reason = (
            f"v{version}: {stats.num_errors} of {stats.num_requests} requests failed, "
            f"{rate * 100:.3g} %, more than {rule.error_rate_above * 100:.3g} %"
        )
        return Breach("error_rate", reason)
    return _too_slow(
        "first_token_p95",
        version,
        "first token",
        stats.first_token_s,
        rule.first_token_p95_ms_above,
    ) or _too_slow("total_p95", version, "last token", stats.total_s, rule.total_p95_ms_above)


def _too_slow(
    condition: Condition, version: int, what: str, found: Quantiles | None, limit_ms: float | None
) -> Breach | None:
    if found is None or limit_ms is None or found.p95 * 1000 <= limit_ms:
        return None
    p95_ms = found.p95 * 1000
    return Breach(
        condition, f"v{version}: p95 to the {what} is {p95_ms:.0f} ms, more than {limit_ms:g} ms"
    )


def _canaries(split: GuardedSplit) -> Iterator[int]:
    """The versions of a split other than the active one."""
    return (v for v in split.activation.weights or {} if v != split.activation.version)
