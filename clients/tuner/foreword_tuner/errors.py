"""
Errors between data and a served task. Each message is one line for the user.

* ForewordError
  x TunerError
    x DataError
"""

from __future__ import annotations

from foreword_client import ForewordError


class TunerError(ForewordError):
    """One line for the user."""


class DataError(TunerError):
    """The data cannot be trained on; the message names file and line."""
