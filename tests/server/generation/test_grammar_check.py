from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.engine import grammar
from server.errors import InvalidGrammar, Overloaded
from server.generation import grammar_check
from server.generation.grammar_check import GrammarCheck
from server.text.tokenizer import Tokenizer
from tests.server.fakes import INFO, make_transformers_tokenizer

LOADING_S = 1.0


class SlowTokenizer(Tokenizer):
    """Takes longer to hand out its vocabulary than a grammar may take to compile."""

    def backend_json(self) -> str:
        time.sleep(LOADING_S)
        return super().backend_json()


@pytest.mark.parametrize("form", ["[a-z]+", "(a"])
async def test_building_the_vocabulary_is_not_part_of_a_grammars_deadline(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_check, "COMPILE_TIMEOUT_S", LOADING_S * 0.9)
    with ThreadPoolExecutor(2) as executor:
        check = GrammarCheck(
            SlowTokenizer(make_transformers_tokenizer()), lambda: INFO, executor=executor
        )
        try:
            if form == "(a":
                with pytest.raises(InvalidGrammar) as refused:
                    await check.check(grammar.from_regex(form))
                assert "longer than" not in str(refused.value)
            else:
                await check.check(grammar.from_regex(form))
        finally:
            check.close()


@pytest.fixture
async def check() -> AsyncIterator[GrammarCheck]:
    with ThreadPoolExecutor(2) as executor:
        made = GrammarCheck(
            Tokenizer(make_transformers_tokenizer()), lambda: INFO, executor=executor
        )
        yield made
        made.close()


async def test_a_process_that_was_killed_while_idle_is_replaced(check: GrammarCheck) -> None:
    await check.check(grammar.from_regex("[a-z]+"))
    [idle] = check._processes
    os.kill(idle._process.pid, signal.SIGKILL)
    idle._process.wait(10)

    await check.check(grammar.from_regex("[0-9]+"))

    assert check._processes != [idle]


async def test_a_grammar_is_not_refused_for_good_where_no_process_starts(
    check: GrammarCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    for executable in ("/missing", "/bin/false"):
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", executable)
            with pytest.raises(Overloaded):
                await check.check(grammar.from_regex("[a-z]+"))

    await check.check(grammar.from_regex("[a-z]+"))
