"""Grammar masks on logits."""

from __future__ import annotations

import pytest
import torch

from server.engine import grammar
from server.engine.grammar import Vocabulary
from server.engine.sampling.masks import (
    apply_grammar_bitmask,
    unpack_forbidden,
    unpack_forbidden_by_numpy,
)
from tests.server.fakes import make_transformers_tokenizer, make_vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return make_vocabulary()


def test_bits_beyond_the_logits_are_ignored(vocabulary: Vocabulary) -> None:
    logits = torch.zeros(3, 260)
    texts = {0: "a", 2: "[^x]"}
    apply_grammar_bitmask(
        logits, {row: vocabulary.compile(grammar.from_regex(r)) for row, r in texts.items()}
    )

    allowed = make_transformers_tokenizer()("a", add_special_tokens=False).input_ids
    assert logits[0].isfinite().nonzero().flatten().tolist() == allowed
    assert logits[1].isfinite().all()
    assert 90 < logits[2].isfinite().sum() < 260


def test_unpacking_with_torch_equals_unpacking_with_numpy() -> None:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(-(2**31), 2**31, (3, 4), dtype=torch.int32, generator=generator)

    assert torch.equal(unpack_forbidden(words, 120), unpack_forbidden_by_numpy(words, 120))
    assert unpack_forbidden(torch.tensor([[-(2**31)]], dtype=torch.int32), 32).sum() == 31
