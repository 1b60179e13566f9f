"""Data files: JSON lines, all checked before training starts."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword_tuner.errors import DataError

MAX_SHOWN = 20
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Line:
    """One example: either a prompt with fields for a template, or a chat up to the answer."""

    number: int
    """Line number in the file, from 1."""
    completion: str
    prompt: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    messages: tuple[dict[str, str], ...] = ()

    def question(self, fields: Collection[str] = ()) -> str:
        """Return a key that is equal for equal questions: prompt, chat and the named `fields`."""
        asked = {name: self.fields.get(name) for name in sorted(fields)}
        return json.dumps([self.prompt, asked, self.messages])


@dataclass(frozen=True, slots=True)
class DataFile:
    """The content of a data file."""

    path: Path
    sha256: str
    lines: tuple[Line, ...]
    skipped: tuple[str, ...] = ()
    """Why lines were skipped, if bad lines are skipped."""


def read(path: Path, *, skip_bad: bool = False, needs_completion: bool = True) -> DataFile:
    """Read a file. Raises a `DataError` that lists all bad lines, unless they are skipped."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise DataError(f"{path}: {exc.strerror or exc}") from None
    lines, problems = [], []
    for number, raw in enumerate(data.split(b"\n"), 1):
        if raw.strip():
            try:
                lines.append(parse(raw, number, needs_completion=needs_completion))
            except DataError as exc:
                problems.append(f"line {number}: {exc}")
    if problems and not skip_bad:
        raise refusal(path, problems)
    if not lines:
        raise DataError(f"{path} has no examples")
    return DataFile(path, hashlib.sha256(data).hexdigest(), tuple(lines), tuple(problems))


def refusal(path: Path, problems: Sequence[str]) -> DataError:
    """Return one error for all bad lines of a file."""
    shown = "; ".join(problems[:MAX_SHOWN])
    more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
    return DataError(
        f"{path} has {len(problems)} bad lines; fix them, or skip them with --skip-bad: "
        f"{shown}{more}"
    )


def parse(raw: bytes, number: int, *, needs_completion: bool = True) -> Line:
    """Parse a line. Raises `DataError`, without the line number."""
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError:
        raise DataError("not UTF-8") from None
    except ValueError as exc:
        raise DataError(f"not JSON: {exc}") from None
    except RecursionError:
        raise DataError("nested too deeply") from None
    if not isinstance(value, dict):
        raise DataError("not a JSON object")
    if "messages" in value:
        return _chat(value, number)
    prompt = _text(value, "prompt")
    completion = _text(value, "completion") if needs_completion else ""
    fields = {k: v for k, v in value.items() if isinstance(v, str) and k != "completion"}
    for name, text in fields.items():
        _check_whole(name, text)
    return Line(number, completion, prompt, fields)


def _text(value: Mapping[str, Any], name: str) -> str:
    if name not in value:
        raise DataError(f"no `{name}`")
    text = value[name]
    if not isinstance(text, str):
        raise DataError(f"`{name}` is not a string")
    if not text.strip():
        raise DataError(f"`{name}` is empty")
    _check_whole(name, text)
    return text


def _check_whole(name: str, text: str) -> None:
    """Refuse lone surrogates, which JSON can escape and a tokenizer cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        shown = name.encode("ascii", "backslashreplace").decode()
        raise DataError(f"`{shown}` has a lone surrogate at {exc.start + 1}") from None


def _chat(value: Mapping[str, Any], number: int) -> Line:
    if "prompt" in value or "completion" in value:
        raise DataError("both `messages` and `prompt` or `completion`")
    messages = value["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError("`messages` is not a list of at least two")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise DataError(f"a message's role is one of {', '.join(ROLES)}")
        _text(message, "content")
    if messages[-1]["role"] != "assistant":
        raise DataError("the last message is not the assistant's")
    chat = tuple({"role": m["role"], "content": m["content"]} for m in messages[:-1])
    prompt = chat[-1]["content"]
    return Line(number, messages[-1]["content"], prompt, {}, chat)


def split(lines: Sequence[Line], share: float, seed: int) -> tuple[list[Line], list[Line]]:
    """Split lines into training and held-out lines. Equal prompts stay on one side.

    `share` of the lines is held out, at least one and never all. Raises `DataError` if all lines
    have the same prompt.
    """
    keys = sorted({line.question() for line in lines})
    if len(keys) < 2:
        raise DataError("nothing can be held out: all lines have the same prompt")
    random.Random(seed).shuffle(keys)
    counts = dict.fromkeys(keys, 0)
    for line in lines:
        counts[line.question()] += 1
    held = set(_up_to(keys[:-1], counts, share * len(lines)))
    train = [line for line in lines if line.question() not in held]
    return train, [line for line in lines if line.question() in held]


def _up_to(keys: Sequence[str], counts: Mapping[str, int], wanted: float) -> Iterator[str]:
    taken = 0
    for key in keys:
        yield key
        taken += counts[key]
        if taken >= wanted:
            return
