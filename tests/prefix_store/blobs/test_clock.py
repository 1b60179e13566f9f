"""The wall clock is set while a server runs: garbage collection waits until ages mean something."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.blobs.clock import Clock
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from tests.sqlite import new_sqlite

DAY_S = 24 * 3600.0


@dataclass
class Times:
    """Both clocks of a machine."""

    wall_s: float = 0.0
    monotonic_s: float = 0.0

    def pass_by(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds

    def clock(self) -> Clock:
        return Clock(lambda: time.time() + self.wall_s, lambda: self.monotonic_s)


def make_older(root: Path, seconds: float) -> None:
    """Let time pass for the files, as `Times.pass_by` does for the clock."""
    for path in root.glob("sha256/??/*"):
        at_s = path.stat().st_mtime - seconds
        os.utime(path, (at_s, at_s))


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S, 300.0])
def test_a_clock_that_was_set_is_noticed_for_a_while(jump_s: float) -> None:
    times = Times()
    clock = times.clock()
    times.pass_by(10 * DAY_S)
    assert not clock.was_set_within(DAY_S)

    times.wall_s += jump_s

    assert clock.was_set_within(DAY_S)
    times.pass_by(DAY_S / 2)
    assert clock.was_set_within(DAY_S)
    times.pass_by(DAY_S)
    assert not clock.was_set_within(DAY_S)


def test_a_clock_that_is_slewed_was_not_set() -> None:
    times = Times()
    clock = times.clock()
    for _ in range(100):
        times.pass_by(3600)
        times.wall_s += 2.0  # 500 parts in a million: as fast as Linux slews
        assert not clock.was_set_within(DAY_S)


def test_a_suspended_machine_has_not_had_its_clock_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux leaves out of `CLOCK_MONOTONIC` what a machine was suspended for."""
    wall_s, read = time.time, time.clock_gettime
    clock = Clock()
    leaves_out = {time.CLOCK_MONOTONIC}

    def after_a_night(which: int) -> float:
        return read(which) + (0.0 if which in leaves_out else DAY_S / 3)

    monkeypatch.setattr(time, "clock_gettime", after_a_night)
    monkeypatch.setattr(clock, "_wall", lambda: wall_s() + DAY_S / 3)

    assert not clock.was_set_within(DAY_S)


def test_a_clock_set_forward_collects_nothing_that_is_fresh(tmp_path: Path) -> None:
    blobs, registry = FileBlobStore(tmp_path), Registry(new_sqlite(tmp_path))
    times = Times()
    store = PrefixStore(blobs, registry, clock=times.clock())
    fresh = store.put_bytes(b"of an upload of another server")

    times.wall_s += DAY_S + 60

    assert store.collect_garbage(DAY_S) == 0
    assert blobs.exists(fresh)
    times.monotonic_s += DAY_S + 60  # a day later by both clocks
    times.wall_s += DAY_S + 60
    assert store.collect_garbage(DAY_S) == 1
    registry.close()


def test_what_an_upload_holds_is_never_garbage(tmp_path: Path) -> None:
    """Also if the clock was wrong before the server started, or differs from the blob store's."""
    blobs, registry = FileBlobStore(tmp_path), Registry(new_sqlite(tmp_path))
    store = PrefixStore(blobs, registry)
    lease = store.lease()
    held = store.put_bytes(b"held", lease)
    make_older(tmp_path, 2 * DAY_S)

    assert store.collect_garbage(DAY_S) == 0
    assert blobs.exists(held)
    lease.release()
    registry.close()
