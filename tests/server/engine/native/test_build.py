from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.native import build
from server.engine.native.build import NativeUnavailable, library


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    yield
    library.cache_clear()


def test_a_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(NativeUnavailable, match=r"no C\+\+ compiler"):
        library()


def test_a_failing_compiler_is_quoted_and_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "bad-compiler"
    compiler.write_text("#!/bin/sh\necho sorry >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))

    with pytest.raises(NativeUnavailable, match="sorry"):
        library()

    assert not list((tmp_path / "foreword" / "native").iterdir())


def test_the_library_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        library()
    except NativeUnavailable as exc:
        pytest.skip(str(exc))
    library.cache_clear()
    monkeypatch.setattr(build.lifeline, "run", None)

    library()

    assert len(list((tmp_path / "foreword" / "native").iterdir())) == 1
