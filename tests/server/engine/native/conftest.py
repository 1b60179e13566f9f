"""Fixtures of the tests of the compiled layers."""

from __future__ import annotations

import pytest

from server.engine.native.build import NativeUnavailable, library
from tests import tiny_models
from tests.native_engine import FAMILIES


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make FAMILIES known to `build_model`."""
    for name, config in FAMILIES.items():
        monkeypatch.setitem(tiny_models.CONFIGS, name, config)


@pytest.fixture(scope="module")
def compiled() -> None:
    """Skip the test without a compiler."""
    try:
        library()
    except NativeUnavailable as exc:
        pytest.skip(str(exc))
