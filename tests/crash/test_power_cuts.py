"""Power cuts at every event: what was not fsynced may be lost, what was acknowledged not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.conftest import Sweep
from tests.crash.disk import OPTIONS, Disk, write_state
from tests.crash.operations import build
from tests.crash.promises import states_of, violations
from tests.crash.strace import Actor

Cut = tuple[int, dict[str, bytes | None]]
"""The steps acknowledged before it, and what is on the disk after it."""


def cuts(root: str, log: Path) -> Iterator[Cut]:
    """What a power cut at any event of a trace may leave, each state once."""
    disk = Disk(root)
    known = set()
    with log.open() as lines:
        for line in lines:
            if disk.apply(line):
                for state in disk.states():
                    cut = (disk.num_done, frozenset(state.items()))
                    if cut not in known:
                        known.add(cut)
                        yield disk.num_done, state


class PowerCuts:
    def __init__(self, sweep: Sweep, folder: Path, mutant: str | None = None) -> None:
        self._sweep = sweep
        self._states = states_of("everything", folder / "undisturbed")
        self._root = folder / "traced"
        self._log = folder / "log"
        self._mutant = mutant

    def violations(self) -> Iterator[list[str]]:
        """Of each state, the promises broken."""
        build(self._root, "everything")
        list(self._sweep.over([None], self._trace))
        return self._sweep.over(cuts(str(self._root), self._log), self._look)

    def _trace(self, actor: Actor, _: Path, __: None) -> None:
        actor.act("everything", self._root, "-o", str(self._log), *OPTIONS, mutant=self._mutant)

    def _look(self, _: Actor, folder: Path, cut: Cut) -> list[str]:
        num_done, state = cut
        write_state(state, str(self._root), folder)
        return violations(folder, "everything", self._states, num_done)


def test_a_power_cut_at_any_event_keeps_every_promise(
    sweep: Sweep, tmp_path: Path, note: Callable[[str], None]
) -> None:
    results = list(PowerCuts(sweep, tmp_path).violations())
    found = Counter(promise for promises in results for promise in promises)
    note(f"power cuts: {len(results)} states, {found.total()} violations")

    assert not found
    assert len(results) >= 100


@pytest.mark.parametrize(
    ("mutant", "promise"),
    [
        ("row before blob", "a version without its blob"),
        ("no file fsync", "half a blob is visible"),
        ("no folder fsync", "a version without its blob"),
        ("synchronous = NORMAL", "not recovered"),
    ],
)
def test_the_replay_finds_what_is_broken_on_purpose(
    sweep: Sweep, tmp_path: Path, mutant: str, promise: str
) -> None:
    results = PowerCuts(sweep, tmp_path, mutant).violations()

    assert any(said.startswith(promise) for promises in results for said in promises)
