"""What a user writes for a version: `task`, or `task@3`."""

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
    """Whether a task can have this name."""
    return _NAME.fullmatch(name) is not None


def check_task_name(name: str) -> None:
    """Raises `InvalidName`, without a word of what was given."""
    if not is_task_name(name):
        raise InvalidName(
            "a task's name is 1 to 63 of a-z, 0-9, _ and -, and starts with a letter or a digit"
        )


def matches(globs: Sequence[str], task: str) -> bool:
    """Whether a task's name matches one of them: `*` is any characters, `?` is one."""
    return any(fnmatchcase(task, glob) for glob in globs)


@dataclass(frozen=True, slots=True)
class Reference:
    """A task and, where one is pinned, its version. None means the active one."""

    task: str
    version: int | None = None

    def __str__(self) -> str:
        return self.task if self.version is None else f"{self.task}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `InvalidName`."""
        task, at, number = text.partition("@")
        check_task_name(task)
        if not at:
            return cls(task)
        if not _NUMBER.fullmatch(number):
            raise InvalidName("a version is a whole number from 1, such as in `task@3`")
        return cls(task, int(number))
