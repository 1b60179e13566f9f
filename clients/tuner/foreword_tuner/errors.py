"""
What can go wrong on the way from data to a served task. Each is one line for the user.

* TunerError
  x DataError
"""

from __future__ import annotations


class TunerError(Exception):
    """One line for the user."""


class DataError(TunerError):
    """The data cannot be trained on; the message names file and line."""
