"""Forms of examples: each is read rightly, or refused with the fields that it has."""

from __future__ import annotations

from typing import Any

import pytest

from foreword_tuner.errors import DataError
from foreword_tuner.forms import Line, Needs, parse

ALPACA = {"instruction": "Double it.", "input": "4", "output": "8"}
CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
]
SHAREGPT = [
    {"from": "system", "value": "s"},
    {"from": "human", "value": "q"},
    {"from": "gpt", "value": "a"},
]


def completion(value: object) -> Line:
    return parse(value, 7, "completion")


@pytest.mark.parametrize(
    ("value", "prompt", "answer"),
    [
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"prompt": "p", "completion": "c", "text": "t", "messages": None}, "p", "c"),
        (ALPACA, "Double it.\n\n4", "8"),
        (ALPACA | {"input": ""}, "Double it.", "8"),
        (ALPACA | {"input": None}, "Double it.", "8"),
        (ALPACA | {"text": "Below is an instruction"}, "Double it.\n\n4", "8"),
        ({"instruction": "Hi.", "output": "Ho."}, "Hi.", "Ho."),
        ({"text": "so nice", "label": "positive", "idx": 3}, "so nice", "positive"),
    ],
)
def test_a_prompt_and_its_answer(value: dict[str, Any], prompt: str, answer: str) -> None:
    line = completion(value)

    assert (line.number, line.prompt, line.completion, line.messages) == (7, prompt, answer, ())
    texts = {k: v for k, v in value.items() if isinstance(v, str)}
    assert line.fields == {k: v for k, v in texts.items() if v != answer} | {"prompt": prompt}


@pytest.mark.parametrize(
    "value",
    [
        {"messages": CHAT},
        {"messages": CHAT, "prompt": "q", "prompt_id": "x"},
        {"conversations": SHAREGPT},
        {"conversations": SHAREGPT[1:], "system": "s"},
        {"conversations": CHAT, "system": ""},
    ],
)
def test_a_chat_and_its_last_answer(value: dict[str, Any]) -> None:
    line = completion(value)

    assert (line.messages, line.completion) == (tuple(CHAT[:2]), "a")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"question": "q", "answer": "a"}, "no `prompt`.*: it has `question`, `answer`"),
        ({"instruction": "i"}, "no `output`"),
        (ALPACA | {"prompt": "p"}, "ambiguous.*`instruction`, `input`, `output`, `prompt`"),
        (ALPACA | {"completion": "c"}, "ambiguous"),
        (ALPACA | {"text": "t", "label": "l"}, "ambiguous"),
        (ALPACA | {"input": 4}, "`input` is not a string"),
        (ALPACA | {"history": [["a", "b"]]}, "`history` is not read"),
        (ALPACA | {"output": "\ud83d"}, "`output` has a lone surrogate at 1"),
        ({"text": "t", "label": 1}, "`label` is a number"),
        ({"text": "t", "label": True}, "`label` is a number"),
        ({"messages": CHAT, "completion": "c"}, "ambiguous"),
        ({"messages": CHAT, "conversations": SHAREGPT}, "ambiguous"),
        ({"messages": "q"}, "`messages` is not a list"),
        ({"messages": ["q", "a"]}, "a message is not a JSON object"),
        ({"messages": CHAT, "tools": [{"type": "function"}]}, "`tools`: calls of functions"),
        ({"messages": [*CHAT[:2], CHAT[2] | {"tool_calls": [{}]}]}, "`tool_calls`: calls of"),
        ({"conversations": SHAREGPT[:2]}, "the last message is not the assistant's"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "a message's role"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "a message's role"),
        ({"conversations": [*SHAREGPT[:2], {"from": "gpt", "value": ""}]}, "`value` is empty"),
        ({"conversations": SHAREGPT, "system": "\udc00"}, "`system` has a lone surrogate"),
        ([1], "not a JSON object"),
        ({"\ud83d" * 500: 1}, r"it has `\\ud83d"),
    ],
)
def test_what_is_unclear_is_refused(value: object, said: str) -> None:
    with pytest.raises(DataError, match=said) as refused:
        completion(value)

    assert len(str(refused.value)) < 300
    assert str(refused.value).isascii()


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ({"prompt": "p", "references": ["a", "b"]}, ("a", "b")),
        ({"prompt": "p", "completion": "c", "references": ["a"]}, ("c", "a")),
        ({"instruction": "i", "references": ["a"]}, ("a",)),
        ({"messages": CHAT[:2], "references": ["a", "b"]}, ("a", "b")),
        ({"messages": CHAT, "references": ["b"]}, ("a", "b")),
        ({"text": "t", "label": "l"}, ("l",)),
    ],
)
def test_all_right_answers_are_references(value: dict[str, Any], answers: tuple[str, ...]) -> None:
    assert parse(value, 1, "reference").answers == answers


@pytest.mark.parametrize(
    ("references", "said"),
    [
        ([], "`references` is empty"),
        ("a", "not a list of strings"),
        ([1], "not a list of strings"),
        ([" "], "`references` is empty"),
        (["\ud83d"], "`references` has a lone surrogate"),
    ],
)
def test_bad_references_are_refused(references: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse({"prompt": "p", "completion": "c", "references": references}, 1, "reference")


@pytest.mark.parametrize("needs", ["completion", "reference"])
def test_an_answer_is_needed(needs: Needs) -> None:
    with pytest.raises(DataError, match="no `completion`"):
        parse({"prompt": "p"}, 1, needs)
    with pytest.raises(DataError, match="not the assistant's"):
        parse({"messages": CHAT[:2]}, 1, needs)


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        ({"prompt": "p", "text": "t"}, "p"),
        (ALPACA | {"text": "t"}, "Double it.\n\n4"),
        ({"text": "t"}, "t"),
        ({"messages": CHAT}, "q"),
        ({"messages": CHAT[:2]}, "q"),
    ],
)
def test_questions_alone_are_enough_for_a_teacher(value: dict[str, Any], prompt: str) -> None:
    assert parse(value, 1, "nothing").prompt == prompt
