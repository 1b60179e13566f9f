"""Data files as people have them: the same examples in every encoding and container."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from foreword_tuner import data
from foreword_tuner.errors import DataError

LINES = [
    {"prompt": "café", "completion": 'é, "quoted"'},
    {"prompt": "two\nlines", "completion": "b"},
    {"prompt": "c", "completion": "d"},
]
JSONL = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in LINES)
ARRAY = json.dumps(LINES)
CSV = 'prompt,completion\r\ncafé,"é, ""quoted"""\r\n"two\nlines",b\r\n,\r\nc,d\r\n'
TSV = 'prompt\tcompletion\ncafé\t"é, ""quoted"""\n"two\nlines"\tb\nc\td'
INDEXED = ',prompt,completion\n0,café,"é, ""quoted"""\n1,"two\nlines",b\n2,c,d\n'

FILES = {
    "a.jsonl": JSONL.encode(),
    "bom.jsonl": JSONL.encode("utf-8-sig"),
    "powershell.jsonl": JSONL.encode("utf-16"),
    "big.jsonl": b"\xfe\xff" + JSONL.encode("utf-16-be"),
    "windows.jsonl": JSONL.replace("\n", "\r\n").encode(),
    "a.jsonl.gz": gzip.compress(JSONL.encode(), mtime=0),
    "array.json": ARRAY.encode(),
    "pretty.json": json.dumps(LINES, indent=2).encode("utf-8-sig"),
    "a.csv": CSV.encode(),
    "EXCEL.CSV": CSV.encode("utf-8-sig"),
    "pandas.csv": INDEXED.encode(),
    "a.csv.gz": gzip.compress(CSV.encode()),
    "a.tsv": TSV.encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_examples_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])

    lines = data.read(tmp_path / name).lines

    assert [(line.prompt, line.completion) for line in lines] == [
        (line["prompt"], line["completion"]) for line in LINES
    ]


def test_a_semicolon_separates_where_the_header_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt;completion\none, two;1,5\n", "utf-8")

    [line] = data.read(tmp_path / "a.csv").lines

    assert (line.prompt, line.completion) == ("one, two", "1,5")


@pytest.mark.parametrize(
    ("name", "content", "numbers"),
    [
        ("a.csv", CSV.encode(), [2, 3, 6]),
        ("a.json", b"[\n" + JSONL.strip().replace("}\n", "},\n").encode() + b"\n]", [2, 3, 4]),
        ("a.jsonl", b"\n" + JSONL.encode(), [2, 3, 4]),
    ],
)
def test_examples_have_the_number_of_their_first_line(
    tmp_path: Path, name: str, content: bytes, numbers: list[int]
) -> None:
    (tmp_path / name).write_bytes(content)

    assert [line.number for line in data.read(tmp_path / name).lines] == numbers


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'[{"prompt": "a", "completion": "b"},\n x]', "line 2: not JSON"),
        ("a.json", b'[{"prompt": "a", "completion": "b"}\n {}]', "line 2: not JSON: no comma"),
        ("a.json", b'[{"prompt": "a", "completion": "b"}\n', "line 2: not JSON: no comma"),
        ("a.json", b'["a"]\n["b"]', "line 1: not JSON: text follows the array"),
        ("a.json", b"[" * 100_000, "line 1: nested too deeply"),
        ("a.json", b'[{"prompt": "\xff"}]', "line 1: not UTF-8"),
        ("a.json", b'[{"prompt": "a"},\n"b"]', "1: no `completion`; line 2: not a JSON object"),
        ("a.json", b"[]", "has no examples"),
        ("a.json", b'{\n"data": [\n{"prompt": "a"}]}', "one JSON object over several lines"),
        ("a.csv", b"prompt,completion\na\n", "line 2: 1 cells, the header has 2"),
        ("a.csv", b'prompt,completion\n"a,b\nc,d\n', "line 2: unexpected end of data"),
        ("a.csv", b"prompt,prompt\na,b\n", "line 1: two columns are named prompt"),
        ("a.csv", b"prompt,completion\ncaf\xe9,b\n", "line 2: not UTF-8"),
        ("a.csv", b"x,y\na,b\nc,d\n", "lines 2, 3: no `prompt`.*it has `x`, `y`"),
        ("a.csv", b"prompt,completion\n", "has no examples"),
        ("a.jsonl", b"\xff\xfeabc", "begins as UTF-16, and is none"),
        ("a.gz", gzip.compress(JSONL.encode(), mtime=0)[:-9], "is damaged"),
        ("a.gz", b"\x1f\x8bnonsense", "is damaged"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=said) as refused:
        data.read(tmp_path / name)

    assert str(refused.value).startswith(str(tmp_path / name))
    assert "\n" not in str(refused.value)


def test_a_bad_cell_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\na\nb,c\n,d\n", "utf-8")

    file = data.read(tmp_path / "a.csv", skip_bad=True)

    assert [line.prompt for line in file.lines] == ["b"]
    assert file.skipped == ("line 2: 1 cells, the header has 2", "line 4: `prompt` is empty")


def test_equal_problems_are_named_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n' * 9 + JSONL, "utf-8")

    with pytest.raises(DataError, match=r"9 bad lines.*lines 1, 2, 3 and 6 more: no `completion`$"):
        data.read(tmp_path / "a.jsonl")
