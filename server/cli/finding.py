"""The result of a check of `foreword doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    status: Status
    detail: str
    todo: str = ""
    """What to do; empty if `status` is ok."""
