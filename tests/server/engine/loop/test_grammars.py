"""Sequences that wait for the compile of their grammar."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import pytest

from server.engine import grammar
from server.engine.grammar import Matcher, Vocabulary
from server.engine.loop.grammars import GrammarCompiled, Grammars
from server.engine.params import SamplingParams
from server.engine.scheduler.sequence import Sequence
from tests.server.fakes import make_vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return make_vocabulary()


def sequence(request_id: int, form: str) -> Sequence:
    return Sequence(request_id, None, [5], SamplingParams(max_tokens=4, grammar=form))


def make_grammars(load: Callable[[], Vocabulary]) -> tuple[Grammars, SimpleQueue[GrammarCompiled]]:
    reported: SimpleQueue[GrammarCompiled] = SimpleQueue()
    return Grammars(reported.put, load), reported


def test_a_grammar_is_compiled_once_for_all_waiting_sequences(vocabulary: Vocabulary) -> None:
    go = threading.Event()

    def load() -> Vocabulary:
        assert go.wait(10)
        return vocabulary

    grammars, reported = make_grammars(load)
    one, other, cancelled = (sequence(i, grammar.from_regex("a+")) for i in range(3))
    assert not any(grammars.attach_matcher(seq) for seq in (one, other, cancelled))
    grammars.cancel(2)
    assert not grammars.is_idle
    go.set()
    ready = grammars.on_compiled(reported.get(timeout=10))
    third = sequence(3, grammar.from_regex("a+"))

    assert ready == [one, other]
    assert grammars.attach_matcher(third)
    assert grammars.is_idle
    assert reported.empty()
    matchers = [seq.matcher for seq in (one, other, third)]
    assert all(isinstance(matcher, Matcher) for matcher in matchers)
    assert len({id(matcher) for matcher in matchers}) == 3
    grammars.close()


def test_a_grammar_that_cannot_be_compiled_leaves_no_matcher(vocabulary: Vocabulary) -> None:
    grammars, reported = make_grammars(lambda: vocabulary)
    seq = sequence(1, grammar.from_regex("("))
    assert not grammars.attach_matcher(seq)

    assert grammars.on_compiled(reported.get(timeout=10)) == [seq]
    assert seq.matcher is None
    grammars.close()
