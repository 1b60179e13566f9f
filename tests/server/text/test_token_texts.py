"""Bytes of single tokens, joined, are the bytes of the text, whatever the vocabulary."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from server.text.tokenizer import Tokenizer
from tests.server.fakes import SPECIALS, make_transformers_tokenizer

GIRL = "\N{GIRL}"


def make_byte_level() -> Tokenizer:
    """A token is a byte, apart from two that were added."""
    tokenizer = make_transformers_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("<two words>")])
    return Tokenizer(tokenizer)


def make_sentencepiece() -> Tokenizer:
    """As in Llama 2: a space is a character of the token, unknown characters are bytes."""
    words = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words += ["\u2581", "\u2581a", "a", "b", "\u2581b", "!"]
    vocabulary = {word: i for i, word in enumerate(words)}
    merges = [("\u2581", "a"), ("\u2581", "b")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


TOKENIZERS = {"byte level": make_byte_level(), "sentencepiece": make_sentencepiece()}
PIECES = ["a", "b", " ", "  a", "!", "é", GIRL, "\n", "<think>", "<two words>", *SPECIALS, "<0x41>"]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1).map("".join)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=TEXTS)
def test_the_bytes_of_all_tokens_are_those_of_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    token_ids, detokenizer = tokenizer.encode(text), tokenizer.detokenizer()
    answer = "".join([*map(detokenizer.push, token_ids), detokenizer.flush()])

    joined = b""
    for token_id in token_ids:
        joined += tokenizer.token_bytes(token_id, at_start=not joined)

    assert joined == answer.encode()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_part_of_a_character_has_its_own_bytes_and_no_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    token_ids = tokenizer.encode(GIRL, add_special_tokens=False)[-4:]

    assert [tokenizer.token_bytes(i, at_start=False) for i in token_ids] == [
        bytes([byte]) for byte in GIRL.encode()
    ]
    assert {tokenizer.token_text(i) for i in token_ids} == {"\ufffd"}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_special_tokens_and_rows_without_a_token_have_no_bytes(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    special = next(i for i in range(300) if tokenizer.is_special(i))

    assert tokenizer.token_bytes(special, at_start=True) == b""
    assert tokenizer.token_bytes(100_000, at_start=False) == b""
