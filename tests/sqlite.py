"""Registries in SQLite that nobody has used before, each a copy of one that was migrated once."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from prefix_store.registry.registry import Registry


def new_sqlite(folder: Path) -> str:
    """Makes `registry.db` in a folder; its URL."""
    path = folder / "registry.db"
    path.write_bytes(_migrated())
    return f"sqlite:///{path}"


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "registry.db"
        Registry(f"sqlite:///{path}").close()
        return path.read_bytes()
