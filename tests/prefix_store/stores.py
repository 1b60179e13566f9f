"""Pushing to a store, and ageing its blobs."""

from __future__ import annotations

import os
from pathlib import Path

from prefix_store.digest import Digest
from prefix_store.store import PrefixStore
from prefix_store.testing import draft


def age(root: Path) -> None:
    """Make every blob an hour and more old."""
    for path in root.glob("sha256/??/*"):
        os.utime(path, (0, 0))


def push(store: PrefixStore, content: str, task: str = "x") -> Digest:
    digest = store.put_bytes(content.encode())
    store.push(task, draft(content), activate=True, create=True)
    return digest
