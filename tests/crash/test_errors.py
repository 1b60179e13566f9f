"""A disk that is full, broken or out of descriptors, at every system call that can find out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.conftest import Sweep
from tests.crash.operations import build
from tests.crash.promises import states_of, violations
from tests.crash.strace import Actor, Call, calls_of

WRITES = {"write", "pwrite64", "mkdir", "mkdirat", "rename", "renameat", "ftruncate", "fallocate"}
SYNCS = {"fsync", "fdatasync"}
READS = {"read", "pread64", "unlink", "unlinkat", "getdents64"}
CALLS = {
    "ENOSPC": WRITES | SYNCS | {"openat"},
    "EIO": WRITES | SYNCS | READS,
    "EMFILE": {"openat"},
}


class Saboteur:
    """Refuses something to a process that does everything on a new folder."""

    def __init__(self, folder: Path, mutant: str | None = None) -> None:
        self._states = states_of("everything", folder / "undisturbed")
        self._mutant = mutant

    def calls(self, actor: Actor, folder: Path, error: str) -> list[Call]:
        """The system calls that can find this error."""
        build(folder, "everything")
        log = folder.with_suffix(".log")
        actor.act("everything", folder, "-o", str(log), mutant=self._mutant)
        return [call for call in calls_of(log) if call.name in CALLS[error]]

    def refuse(self, actor: Actor, folder: Path, point: tuple[str, Call, bool]) -> list[str]:
        """What was answered that is no plain refusal, and the promises broken."""
        error, call, and_after = point
        build(folder, "everything")
        options = call.inject(f"error={error}", and_after=and_after)
        outcome = actor.act("everything", folder, *options, mutant=self._mutant)
        words = Counter(outcome.words)
        found = [word for word in words if word not in ("done", "refused storage_failure")]
        if outcome.exit_status != 0:
            found.append("the process ended")
        if not and_after and outcome.num_done < len(self._states) - 1:
            found.append("one error, and the next try failed too")
        return found + violations(folder, "everything", self._states, outcome.num_done)


@pytest.mark.parametrize("error", CALLS)
@pytest.mark.parametrize("and_after", [False, True], ids=["once", "from then on"])
def test_an_error_at_any_system_call_keeps_every_promise(
    sweep: Sweep, tmp_path: Path, error: str, and_after: bool, note: Callable[[str], None]
) -> None:
    saboteur = Saboteur(tmp_path)
    [calls] = sweep.over([error], saboteur.calls)
    points = [(error, call, and_after) for call in (calls[::4] if and_after else calls)]
    results = list(sweep.over(points, saboteur.refuse))
    found = Counter(promise for promises in results for promise in promises)
    when = "and all that follow" if and_after else "once"
    note(f"{error} {when}: {len(results)} calls, {found.total()} violations")

    assert not found


@pytest.mark.parametrize("error", CALLS)
def test_the_sweep_finds_errors_that_are_swallowed(
    sweep: Sweep, tmp_path: Path, error: str
) -> None:
    saboteur = Saboteur(tmp_path, "errors swallowed")
    [calls] = sweep.over([error], saboteur.calls)
    results = sweep.over([(error, call, False) for call in calls], saboteur.refuse)

    assert any("a version without its blob" in promises for promises in results)
