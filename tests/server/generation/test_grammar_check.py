from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.engine import grammar
from server.errors import InvalidGrammar
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
