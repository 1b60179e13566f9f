"""References to versions as users write them: `task` or `task@3`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

from prefix_store.errors import InvalidName
from prefix_store.manifest import TASK_NAME_PATTERN

MAX_VERSION = 2**31 - 1
_NAME = re.compile(TASK_NAME_PATTERN, re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def is_task_name(name: str) -> bool:
    """Whether this is a valid task name."""
    return _NAME.fullmatch(name) is not None


def check_task_name(name: str) -> None:
    """Raise `InvalidName`, without echoing the name, unless it is a valid task name."""
    if not is_task_name(name):
        raise InvalidName(
            "a task name has 1 to 63 characters of a-z, 0-9, _ and -, and starts with a-z or 0-9"
        )


def matches(globs: Sequence[str], task: str) -> bool:
    """Whether a task's name matches one of the globs: `*` is any characters, `?` is one."""
    return any(fnmatchcase(task, glob) for glob in globs)


@dataclass(frozen=True, slots=True)
class Reference:
    """A task and optionally a version; None means the active one."""

    task: str
    version: int | None = None

    def __str__(self) -> str:
        return self.task if self.version is None else f"{self.task}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `task` or `task@number`. Raises `InvalidName`."""
        task, at, number = text.partition("@")
        check_task_name(task)
        if not at:
            return cls(task)
        if not _NUMBER.fullmatch(number):
            raise InvalidName("a version is a whole number from 1, as in `task@3`")
        return cls(task, int(number))
