"""Errors of the operating system as errors of the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from prefix_store.errors import StorageFailure


@contextmanager
def storage_failure(what: str) -> Iterator[None]:
    """Raise `StorageFailure` for an `OSError`: what failed, and why, without a path."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "input/output error"
        raise StorageFailure(f"{what}: {reason}") from error
