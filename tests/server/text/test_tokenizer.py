from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from server.errors import InvalidRequest, TemplateMismatch
from server.text import template
from server.text.detokenizer import StopStrings
from server.text.template import Part
from server.text.tokenizer import Tokenizer
from tests.server.fakes import SPECIALS, make_transformers_tokenizer

RAW = make_transformers_tokenizer(bos=True)
TOKENIZER = Tokenizer(RAW)
SPECIAL_IDS = set(RAW.convert_tokens_to_ids(list(SPECIALS)))
BOS = RAW.bos_token_id
TEXT = st.text(max_size=40).map(lambda s: s.encode(errors="replace").decode())
HOSTILE = st.lists(st.sampled_from([*SPECIALS, "<|im_", "start|>", "x", " ", "\n"])).map("".join)


def specials_in(token_ids: list[int]) -> list[str]:
    return [RAW.convert_ids_to_tokens(i) for i in token_ids if i in SPECIAL_IDS]


# --- user text ---


@given(TEXT)
def test_a_plain_text_has_the_ids_that_transformers_gives(text: str) -> None:
    assert TOKENIZER.encode(text) == RAW(text)["input_ids"]
    assert (
        TOKENIZER.encode(text, add_special_tokens=False)
        == RAW(text, add_special_tokens=False)["input_ids"]
    )


@given(HOSTILE)
def test_a_users_text_never_becomes_a_special_token(text: str) -> None:
    token_ids = TOKENIZER.encode(text)

    assert token_ids[0] == BOS
    assert specials_in(token_ids[1:]) == []
    assert TOKENIZER.decode(token_ids) == text


def test_a_word_vocabulary_that_holds_special_names_is_no_way_around() -> None:
    words = {"[UNK]": 0, "</s>": 1, "hello": 2, "</": 3, "s>": 4}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken("[UNK]"), AddedToken("</s>")])
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))

    assert tokenizer.encode("hello </s>") == [2, 3, 4]
    assert tokenizer.encode("hello stranger") == [2, 0]


def test_a_special_name_that_no_cut_takes_apart_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"x": 0, "a": 1}, unk_token="x"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens([AddedToken("a", special=True)])
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))

    with pytest.raises(InvalidRequest):
        tokenizer.encode("a")


# --- templates ---


@given(HOSTILE)
def test_special_tokens_count_in_a_template_and_not_in_its_fields(text: str) -> None:
    parts = template.render("<|im_start|>Q: {prompt}<|im_end|>{{A}}", {"prompt": text})

    token_ids = TOKENIZER.encode_parts(parts, add_special_tokens=True)

    assert specials_in(token_ids) == ["<s>", "<|im_start|>", "<|im_end|>"]
    assert TOKENIZER.decode(token_ids) == f"Q: {text}{{A}}"


@given(TEXT)
def test_a_filled_template_has_the_ids_of_the_whole_string(text: str) -> None:
    parts = [Part("<|im_start|>Q: ", True), Part(text, False), Part(" A:", True)]

    expected = RAW("".join(part.text for part in parts))["input_ids"]
    assert TOKENIZER.encode_parts(parts, add_special_tokens=True) == expected


def test_a_field_cannot_complete_a_special_token_that_the_template_begins() -> None:
    parts = template.render("<|im_{prompt}", {"prompt": "start|>"})

    assert specials_in(TOKENIZER.encode_parts(parts, add_special_tokens=False)) == []


@pytest.mark.parametrize(
    "text",
    ["{prompt.__class__}", "{prompt[0]}", "{prompt!r}", "{prompt:>9}", "{}", "{0}", "{", "}"],
)
def test_a_template_is_data_and_its_fields_are_plain_names(text: str) -> None:
    with pytest.raises(TemplateMismatch):
        template.render(text, {"prompt": "x"})


def test_missing_and_unknown_fields_are_refused_by_name_of_the_template() -> None:
    with pytest.raises(TemplateMismatch, match="language"):
        template.render("{prompt} {language}", {"prompt": "x"})
    with pytest.raises(TemplateMismatch, match="it has `prompt`"):
        template.render("{prompt}", {"prompt": "x", "secret": "y"})


# --- chat ---


@given(st.lists(TEXT, min_size=1, max_size=3))
def test_a_plain_chat_has_the_ids_that_transformers_gives(contents: list[str]) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    text = RAW.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    expected = RAW(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.encode_chat(messages) == expected


@given(HOSTILE)
def test_a_message_cannot_smuggle_a_turn(content: str) -> None:
    harmless = TOKENIZER.encode_chat([{"role": "user", "content": "x"}])

    token_ids = TOKENIZER.encode_chat([{"role": "user", "content": content}])

    assert specials_in(token_ids) == specials_in(harmless)
    assert f"user\n{content.strip()}\n" in TOKENIZER.decode(token_ids)


def test_messages_continue_those_that_the_prefix_holds() -> None:
    held = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    asked = [{"role": "user", "content": "and <|im_end|> now?"}]

    prefix = TOKENIZER.encode_chat(held, add_generation_prompt=False)
    prompt = TOKENIZER.encode_chat(asked, after=held)

    assert TOKENIZER.decode(prefix) == "system\nBe kind.\nuser\nhi\nassistant\nho\n"
    assert TOKENIZER.decode(prompt) == "user\nand <|im_end|> now?\nassistant\n"


def test_a_template_that_cannot_continue_is_a_mismatch() -> None:
    only_the_last = "{{ messages[-1]['content'] }}"
    tokenizer = Tokenizer(make_transformers_tokenizer(chat_template=only_the_last))

    with pytest.raises(TemplateMismatch, match="cannot continue"):
        tokenizer.encode_chat(
            [{"role": "user", "content": "b"}], after=[{"role": "user", "content": "a"}]
        )


def test_what_the_template_says_about_a_refusal_is_passed_on() -> None:
    with pytest.raises(TemplateMismatch, match="not this one"):
        TOKENIZER.encode_chat([{"role": "user", "content": "refuse me"}])


def test_a_model_without_a_chat_template_takes_no_messages() -> None:
    tokenizer = Tokenizer(make_transformers_tokenizer(chat_template=None))

    with pytest.raises(TemplateMismatch, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "x"}])


def test_a_second_beginning_of_sequence_is_dropped_only_where_the_tokenizer_adds_one() -> None:
    without = Tokenizer(make_transformers_tokenizer(bos=False))

    assert TOKENIZER.without_bos([BOS, 5]) == [5]
    assert without.without_bos([BOS, 5]) == [BOS, 5]


# --- detokenisation ---


@given(TEXT)
def test_pieces_joined_are_the_text_and_no_piece_holds_half_a_character(text: str) -> None:
    detokenizer = TOKENIZER.detokenizer()
    pieces = [detokenizer.push(i) for i in TOKENIZER.encode(text)]

    assert "".join(pieces) + detokenizer.flush() == text
    assert all(len(piece) <= 1 for piece in pieces)
    assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in text)


def test_an_incomplete_character_comes_out_at_the_end_only() -> None:
    detokenizer = TOKENIZER.detokenizer()
    token_ids = TOKENIZER.encode("é", add_special_tokens=False)

    assert detokenizer.push(token_ids[0]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_special_tokens_leave_no_text_and_no_growing_window() -> None:
    detokenizer = TOKENIZER.detokenizer()
    a, b = TOKENIZER.encode("ab", add_special_tokens=False)

    pieces = [detokenizer.push(i) for i in [a, *([RAW.eos_token_id] * 500), b]]

    assert "".join(pieces) == "ab"
    assert len(detokenizer._ids) < 8


def test_bytes_that_never_become_a_character_come_out_after_a_while() -> None:
    detokenizer = TOKENIZER.detokenizer()
    half = TOKENIZER.encode("é", add_special_tokens=False)[0]

    pieces = [detokenizer.push(half) for _ in range(200)]

    assert any(pieces)


# --- stop strings ---


def through(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stopping = StopStrings(stops)
    text = "".join(stopping.push(piece) for piece in pieces)
    return text + stopping.flush(), stopping.matched


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        ([], "abc", "abc"),
        (["c"], "abcd", "ab"),
        (["bcd", "x"], "abcx", "abc"),
        (["bc", "abcd"], "abcd", "a"),
        (["\n\n"], "a\nb\n\nc", "a\nb"),
        (["aab"], "aaab", "a"),
        (["zz"], "abcz", "abcz"),
        (["é"], "caférest", "caf"),
        (["a"], "abc", ""),
    ],
)
def test_the_text_ends_exactly_before_the_stop_string(
    stops: list[str], text: str, expected: str
) -> None:
    for size in range(1, len(text) + 1):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert through(stops, pieces) == (expected, expected != text)


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5)),
)
def test_how_a_text_is_cut_into_pieces_changes_nothing(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    pieces, rest = [], text
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]

    cut, matched = through(stops, [*pieces, rest])

    assert (cut, matched) == through(stops, list(text))
    assert text.startswith(cut)
    assert not any(stop in cut for stop in stops)
    assert matched == any(stop in text for stop in stops)


def test_only_text_that_may_start_a_stop_string_is_held_back() -> None:
    stopping = StopStrings(["END"])

    assert [stopping.push(piece) for piece in ("a E", "N", "x", "E")] == ["a ", "", "ENx", ""]
    assert stopping.flush() == "E"
