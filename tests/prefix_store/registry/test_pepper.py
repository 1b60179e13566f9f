"""The pepper of the keys."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefix_store.errors import StorageFailure
from prefix_store.registry.keys import load_pepper


def test_the_pepper_is_made_once_and_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "pepper"

    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: load_pepper(path, create=True), range(8)))

    assert len(made) == 1
    assert load_pepper(path, create=False) in made
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert list(tmp_path.iterdir()) == [path]


def test_a_pepper_that_cannot_be_right_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pepper"

    with pytest.raises(StorageFailure, match="No such file"):
        load_pepper(path, create=False)
    path.write_text("short\n")
    path.chmod(0o600)
    with pytest.raises(StorageFailure, match="shorter than"):
        load_pepper(path, create=True)
    path.write_text("x" * 32)
    path.chmod(0o644)
    with pytest.raises(StorageFailure, match="world-readable"):
        load_pepper(path, create=True)
