"""Grammars of requests, compiled on a worker thread so that the step loop never waits for one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from server.engine.background import yield_to_steps
from server.engine.grammar import (
    ByteBoundedCache,
    GrammarError,
    Matcher,
    Vocabulary,
    compiled_bytes,
)
from server.engine.scheduler.sequence import Sequence

logger = logging.getLogger(__name__)

CACHE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class GrammarCompiled:
    """Result of a compile, put into the step loop's inbox. `matcher` is None if it failed."""

    grammar: str
    matcher: Matcher | None


class Grammars:
    """Compiled grammars, and the sequences that wait for one.

    `load` builds the vocabulary on the worker thread. `report` is called on that thread and must
    pass the result to the step loop, which calls `on_compiled`. All other methods must be called
    from the step loop.
    """

    def __init__(
        self, report: Callable[[GrammarCompiled], None], load: Callable[[], Vocabulary]
    ) -> None:
        self._report = report
        self._load = load
        self._compiled = ByteBoundedCache[Matcher](CACHE_BYTES, compiled_bytes)
        self._waiting: dict[int, Sequence] = {}
        self._worker = ThreadPoolExecutor(1, "grammar", yield_to_steps)
        self._worker.submit(self._warm_up)

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    def attach_matcher(self, seq: Sequence) -> bool:
        """Give a sequence the matcher of its grammar; return False if it has to wait for it."""
        grammar = seq.sampling.grammar
        assert grammar is not None
        if (matcher := self._compiled.get(grammar)) is not None:
            seq.matcher = matcher.copy()
            return True
        is_queued = grammar in (other.sampling.grammar for other in self._waiting.values())
        self._waiting[seq.request_id] = seq  # before the worker looks for it
        if not is_queued:
            self._worker.submit(self._compile, grammar)
        return False

    def on_compiled(self, item: GrammarCompiled) -> list[Sequence]:
        """Return the sequences that waited for this grammar, without a matcher if it failed."""
        if item.matcher is not None:
            self._compiled.put(item.grammar, item.matcher)
        ready = [s for s in self._waiting.values() if s.sampling.grammar == item.grammar]
        for seq in ready:
            del self._waiting[seq.request_id]
            seq.matcher = None if item.matcher is None else item.matcher.copy()
        return ready

    def cancel(self, request_id: int) -> None:
        """Stop waiting for the grammar of a cancelled request."""
        self._waiting.pop(request_id, None)

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    # --- on the worker thread: an error is reported and fails only this grammar ---

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return self._load()

    def _warm_up(self) -> None:
        """Load the vocabulary, which holds the interpreter lock, before requests arrive."""
        with suppress(Exception):
            _ = self._vocabulary

    def _compile(self, grammar: str) -> None:
        if grammar not in (seq.sampling.grammar for seq in list(self._waiting.values())):
            return  # all of its requests were cancelled while it was queued
        matcher: Matcher | None = None
        try:
            matcher = self._vocabulary.compile(grammar)
        except GrammarError:
            logger.warning("a grammar that passed the check cannot be compiled")
        except Exception:
            logger.exception("a grammar could not be compiled")
        self._report(GrammarCompiled(grammar, matcher))
