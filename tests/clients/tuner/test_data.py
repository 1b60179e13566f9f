"""Bad data is named by line, and never trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword_tuner import data
from foreword_tuner.errors import DataError
from foreword_tuner.forms import Line
from tests.clients.tuner.tiny_base import write_lines

GOOD = b'{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "a", "completion"', "not JSON"),
        (b'{"prompt": "a\xff", "completion": "b"}', "not UTF-8"),
        (b'["a", "b"]', "not a JSON object"),
        (b'{"completion": "b"}', "no `prompt`, .*: it has `completion`"),
        (b'{}', "no `prompt`, .*: it has no fields"),
        (b'{"prompt": "a"}', "no `completion`"),
        (b'{"prompt": "a", "completion": ""}', "`completion` is empty"),
        (b'{"prompt": " \\n", "completion": "b"}', "`prompt` is empty"),
        (b'{"prompt": "a", "completion": 7}', "`completion` is not a string"),
        (b'{"prompt": "a", "completion": null}', "no `completion`"),
        (b'{"messages": []}', "`messages` is not a list of messages"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "a chat of one message"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
         "the last message is not the assistant's"),
        (b'{"messages": [{"role": "x", "content": "a"}, {"role": "assistant", "content": "b"}]}',
         "a message's role"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}',
         "`content` is empty"),
        (b'{"prompt": "a", "completion": "b", "messages": []}',
         "ambiguous.*`prompt`, `completion`, `messages`"),
        (b'{"prompt": "nice \\ud83d", "completion": "b"}', "`prompt` has a lone surrogate at 6"),
        (b'{"prompt": "a", "completion": "\\ude00 b"}', "`completion` has a lone surrogate at 1"),
        (b'{"prompt": "a", "completion": "b", "\\ud83d": "\\ud83d"}',
         r"`\\ud83d` has a lone surrogate at 1"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}, '
         b'{"role": "assistant", "content": "b"}]}', "`content` has a lone surrogate at 1"),
        (b'{"prompt": "a", "completion": ' + b"[" * 100_000 + b"}", "nested too deeply"),
    ],
)  # fmt: skip
def test_a_bad_line_is_refused_by_its_number(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD * 15 + b"\n" + line + b"\n" + GOOD)

    with pytest.raises(DataError, match=f"line 17: {said}") as refused:
        data.read(path)

    assert "1 bad line;" in str(refused.value)


def test_all_bad_lines_are_listed_and_can_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"no\n" + GOOD + b"{}\n" + GOOD)

    with pytest.raises(DataError, match=r"line 1: not JSON(?s:.*)line 3: no `prompt`"):
        data.read(path)
    file = data.read(path, skip_bad=True)

    assert [line.number for line in file.lines] == [2, 4]
    assert [problem.partition(":")[0] for problem in file.skipped] == ["line 1", "line 3"]


def test_a_file_without_a_good_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n\n")

    with pytest.raises(DataError, match="no examples"):
        data.read(path)
    with pytest.raises(DataError, match="No such file"):
        data.read(tmp_path / "elsewhere.jsonl")


def test_a_chat_becomes_what_was_said_before_the_answer(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]

    [line] = data.read(write_lines(tmp_path / "chat.jsonl", [{"messages": chat}])).lines

    assert (line.messages, line.completion) == (tuple(chat[:2]), "a")


def test_no_question_is_on_both_sides_of_a_split() -> None:
    lines = [Line(i, f"c{i}", f"p{i % 10}") for i in range(100)]

    train, held_out = data.split(lines, 0.2, seed=3)

    assert {line.prompt for line in train}.isdisjoint(line.prompt for line in held_out)
    assert sorted(line.number for line in (*train, *held_out)) == list(range(100))
    assert len(held_out) == 20
    assert data.split(lines, 0.2, seed=3) == (train, held_out)
    assert data.split(lines, 0.2, seed=4) != (train, held_out)


def test_something_is_always_held_out_and_never_all() -> None:
    two = [Line(1, "a", "p"), Line(2, "b", "q")]

    for share in (0.0, 0.9, 1.0):
        train, held_out = data.split(two, share, seed=0)
        assert len(train) == len(held_out) == 1
    with pytest.raises(DataError, match="the same prompt"):
        data.split([Line(1, "a", "p"), Line(2, "b", "p")], 0.5, seed=0)
