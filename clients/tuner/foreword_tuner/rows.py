"""Rows of a data file: JSON lines, a JSON array or a table, each with its line number."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from foreword_tuner.errors import DataError

_GZIP = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SPACE = re.compile(r"[ \t\r\n]*")
_TABLES = (".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class Row:
    """One example as it is in the file."""

    number: int
    """Line on which it begins, from 1."""
    value: object = None
    """A JSON value, or the cells of a table by column."""
    problem: str | None = None
    """Why there is no value."""


def read(path: Path, data: bytes) -> Iterator[Row]:
    """Yield the rows of a file's content.

    A name that ends in .csv or .tsv makes it a table with a header; a `[` at the start makes it a
    JSON array; everything else is JSON lines. All may be compressed with gzip, and begin with a
    byte order mark. Raises `DataError` if nothing after some line can be read.
    """
    data = _decoded(path, _decompressed(path, data))
    if (suffix := _suffix(path)) in _TABLES:
        return _table(path, _text(path, data), suffix)
    if data.lstrip().startswith(b"["):
        return _array(path, _text(path, data))
    return _lines(path, data)


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _decompressed(path: Path, data: bytes) -> bytes:
    if not data.startswith(_GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as exc:
        raise DataError(f"{path} is damaged: {exc}") from None


def _decoded(path: Path, data: bytes) -> bytes:
    """Return UTF-8 without a byte order mark. Windows PowerShell writes UTF-16."""
    if not data.startswith(_UTF16):
        return data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-16").encode()
    except UnicodeError:
        raise DataError(f"{path} begins as UTF-16, and is none") from None


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        number = data.count(b"\n", 0, exc.start) + 1
        raise DataError(f"{path}, line {number}: not UTF-8") from None


# --- JSON ---


def _lines(path: Path, data: bytes) -> Iterator[Row]:
    is_first = True
    for number, raw in enumerate(data.split(b"\n"), 1):
        if not raw.strip():
            continue
        row = _line(number, raw)
        if is_first and row.problem:
            _refuse_one_object(path, data)
        is_first = False
        yield row


def _line(number: int, raw: bytes) -> Row:
    try:
        return Row(number, json.loads(raw.decode()))
    except UnicodeDecodeError:
        return Row(number, problem="not UTF-8")
    except ValueError as exc:
        return Row(number, problem=f"not JSON: {exc}")
    except RecursionError:
        return Row(number, problem="nested too deeply")


def _refuse_one_object(path: Path, data: bytes) -> None:
    with suppress(ValueError, RecursionError):
        json.loads(data)
        raise DataError(
            f"{path} is one JSON object over several lines: write each example on a line of its "
            "own, or all in an array"
        )


def _array(path: Path, text: str) -> Iterator[Row]:
    """Yield the items of an array that is the whole text."""
    decoder = json.JSONDecoder()
    number, counted = 1, 0
    at = _after_space(text, text.index("[") + 1)
    while not text.startswith("]", at):
        number, counted = number + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as exc:
            raise DataError(f"{path}, line {exc.lineno}: not JSON: {exc.msg}") from None
        except RecursionError:
            raise DataError(f"{path}, line {number}: nested too deeply") from None
        yield Row(number, value)
        at = _after_space(text, at)
        if text.startswith(",", at):
            at = _after_space(text, at + 1)
        elif not text.startswith("]", at):
            raise DataError(f"{path}, line {_line_at(text, at)}: not JSON: no comma after an item")
    if text[at + 1 :].strip():
        raise DataError(f"{path}, line {_line_at(text, at)}: not JSON: text follows the array")


def _line_at(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


# --- tables ---


def _table(path: Path, text: str, suffix: str) -> Iterator[Row]:
    """Yield the rows of a table by the names in its header. Blank rows are skipped."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=_delimiter(text, suffix), strict=True
    )
    names: list[str] = []
    number = 0
    try:
        for cells in reader:
            number, begin = reader.line_num, number + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = _names(path, cells, begin)
            elif len(cells) != len(names):
                yield Row(begin, problem=f"{len(cells)} cells, the header has {len(names)}")
            else:
                yield Row(begin, dict(zip(names, cells, strict=True)))
    except csv.Error as exc:
        raise DataError(f"{path}, line {number + 1}: {exc}") from None


def _delimiter(text: str, suffix: str) -> str:
    """Return the delimiter: of a .csv the first of these in its header, as spreadsheets use `;`
    where a comma is a decimal point."""
    header = text.lstrip().partition("\n")[0]
    return "\t" if suffix == ".tsv" else next((c for c in ",;\t" if c in header), ",")


def _names(path: Path, cells: list[str], number: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise DataError(f"{path}, line {number}: two columns are named {twice[0]}")
    return names
