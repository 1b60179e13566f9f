"""Files of tasks: read as `kubectl apply -f` reads its own, and checked in full."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from foreword_client.apply.models import (
    Defaults,
    GoldenPrompt,
    Limits,
    Message,
    Rank,
    RollbackRule,
    SharedVersion,
    TasksFile,
    TaskSpec,
)
from foreword_client.errors import ForewordError

STDIN = "-"
_SUFFIXES = (".yaml", ".yml")
_NESTED: dict[str, type[BaseModel]] = {
    "tasks": TaskSpec,
    "versions": SharedVersion,
    "defaults": Defaults,
    "limits": Limits,
    "golden": GoldenPrompt,
    "messages": Message,
    "rank": Rank,
    "rollback_if": RollbackRule,
}
"""Model of the values below a key."""


class InvalidFileError(ForewordError):
    """A file of tasks cannot be read, or says what it may not. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class DeclaredTask:
    """A task of a file."""

    name: str
    spec: TaskSpec
    file: str
    folder: Path
    """Paths of prefixes are relative to it."""

    def at(self, *path: str | int) -> str:
        """Return the place of a field, for errors: `tasks.yaml: tasks.x.prefix`."""
        return f"{self.file}: {_dotted(('tasks', self.name, *path))}"


def read(names: Sequence[str]) -> dict[str, DeclaredTask]:
    """Read files, folders (their .yaml and .yml files) and `-`, standard input.

    Raises `InvalidFileError` at the first mistake, for a task in two places, and if all is empty.
    """
    found: dict[str, DeclaredTask] = {}
    is_empty = True
    for file, folder, text in _texts(names):
        for document in _documents(file, text):
            is_empty = False
            for name, spec in _checked(file, document).tasks.items():
                task = DeclaredTask(name, spec, file, folder)
                if name in found:
                    raise InvalidFileError(f"{task.at()}: the task is in {found[name].file} too")
                found[name] = task
    if is_empty:  # as a failed export leaves it: with --prune it would delete every task
        listed = ", ".join("standard input" if name == STDIN else name for name in names)
        raise InvalidFileError(f"{listed}: empty; `tasks: {{}}` declares no tasks")
    return found


def _texts(names: Sequence[str]) -> Iterator[tuple[str, Path, str]]:
    """Yield name, folder and text of every file."""
    for name in names:
        if name == STDIN:
            yield "standard input", Path(), _decoded("standard input", sys.stdin.buffer.read())
            continue
        for path in _paths(Path(name)):
            try:
                data = path.read_bytes()
            except OSError as exc:
                raise InvalidFileError(f"{path}: {exc.strerror}") from None
            yield str(path), path.parent, _decoded(str(path), data)


def _paths(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not found:
        raise InvalidFileError(f"{path}: the folder has no .yaml or .yml file")
    return found


def _decoded(file: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidFileError(f"{file}: not UTF-8 text") from None


def _documents(file: str, text: str) -> list[Any]:
    """Parse YAML 1.2: `yes` and `no` are texts. No tags, anchors, or keys given twice."""
    try:
        if "&" in text:
            _refuse_anchors(file, text)
        return [one for one in _yaml().load_all(text) if one is not None]
    except DuplicateKeyError as exc:
        raise InvalidFileError(f"{file}, {_line(exc)}: the key is given twice") from None
    except MarkedYAMLError as exc:
        raise InvalidFileError(f"{file}, {_line(exc)}: not YAML: {exc.problem}") from None
    except (YAMLError, ValueError) as exc:
        raise InvalidFileError(f"{file}: not YAML: {str(exc).splitlines()[0]}") from None
    except RecursionError:
        raise InvalidFileError(f"{file}: nested too deeply") from None


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _refuse_anchors(file: str, text: str) -> None:
    """Refuse anchors before anything is built: a few lines of them can stand for gigabytes."""
    for event in _yaml().parse(io.StringIO(text)):
        if getattr(event, "anchor", None) is not None:
            line = event.start_mark.line + 1
            raise InvalidFileError(f"{file}, line {line}: anchors and aliases are not allowed")


def _line(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "at its end" if mark is None else f"line {mark.line + 1}"


def _checked(file: str, document: Any) -> TasksFile:
    if not isinstance(document, dict):
        raise InvalidFileError(f"{file}: not a mapping with the key `tasks`")
    try:
        return TasksFile.model_validate(document)
    except ValidationError as exc:
        raise InvalidFileError(f"{file}: {describe(exc, document)}") from None


def describe(error: ValidationError, data: Any) -> str:
    """Return the first mistake in one sentence, with its path: `tasks.x.weight: ...`.

    `data` is what was validated.
    """
    errors = error.errors(include_context=False, include_url=False)
    unknown = [found for found in errors if found["type"] == "extra_forbidden"]
    first = (unknown or errors)[0]
    *above, name = first["loc"] or ("",)
    if first["type"] == "extra_forbidden":
        return f"{_dotted((*_path(above, data), name))}: unknown key{_hint(str(name), above)}"
    if first["type"] == "missing":
        return f"{_dotted((*_path(above, data), name))}: is required"
    path = _path(first["loc"], data)
    message = first["msg"].removeprefix("Value error, ")
    return f"{_dotted(path)}: {message}" if path else message


def _path(loc: Iterable[str | int], data: Any) -> tuple[str | int, ...]:
    """Return the part of a location that exists in the data: pydantic appends names of types."""
    path: list[str | int] = []
    for part in loc:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            break
        path.append(part)
    return tuple(path)


def _hint(name: str, above: Sequence[str | int]) -> str:
    """Return what was probably meant by an unknown key: the nearest known key, or its place."""
    parents = [part for part in above if part in _NESTED]
    known = list((_NESTED[str(parents[-1])] if parents else TasksFile).model_fields)
    for parent, model in _NESTED.items():
        if name in model.model_fields and parent in known:
            return f"; it belongs under {parent}"
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path)
