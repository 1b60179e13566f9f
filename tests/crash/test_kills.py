"""SIGKILL at every system call of every operation: nothing is lost, nothing is half there."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.conftest import Sweep
from tests.crash.operations import build
from tests.crash.promises import states_of, violations
from tests.crash.strace import Actor, Call, calls_of

OPERATIONS = ["upload", "activate", "delete", "collect", "migrate"]


class Killer:
    """Kills an operation at any of its system calls, and looks what is left."""

    def __init__(self, operation: str, folder: Path, mutant: str | None = None) -> None:
        self._operation = operation
        self._mutant = mutant
        self._states = states_of(operation, folder / "undisturbed")
        self._fresh = folder / "fresh"
        build(self._fresh, operation)

    def calls(self, actor: Actor, folder: Path, _: None) -> list[Call]:
        """The operation's system calls."""
        shutil.copytree(self._fresh, folder)
        log = folder.with_suffix(".log")
        actor.act(self._operation, folder, "-o", str(log), mutant=self._mutant)
        return calls_of(log)

    def kill(self, actor: Actor, folder: Path, call: Call) -> tuple[bool, list[str]]:
        """Whether the operation came as far as this call, and the promises broken."""
        shutil.copytree(self._fresh, folder)
        outcome = actor.act(
            self._operation, folder, *call.inject("signal=SIGKILL"), mutant=self._mutant
        )
        found = [word for word in outcome.words if word != "done"]
        found += violations(folder, self._operation, self._states, outcome.num_done)
        return outcome.exit_status != 0, found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_at_any_system_call_keeps_every_promise(
    sweep: Sweep, tmp_path: Path, operation: str, note: Callable[[str], None]
) -> None:
    killer = Killer(operation, tmp_path)
    [calls] = sweep.over([None], killer.calls)
    results = list(sweep.over(calls, killer.kill))
    found = Counter(promise for _, promises in results for promise in promises)
    num_kills = sum(was_killed for was_killed, _ in results)
    note(f"{operation}: killed at {num_kills} system calls, {found.total()} violations")

    assert not found
    assert num_kills >= 100


@pytest.mark.parametrize(
    ("operation", "mutant", "promise"),
    [
        ("upload", "row before blob", "a version without its blob"),
        ("upload", "written in place", "half a blob is visible"),
        ("upload", "no transactions", "not the state before the step or after it"),
        ("upload", "answer after the commit", "what was asked for twice counted twice"),
        ("upload", "no grace", "refused unknown_digest"),
        ("activate", "audit after the commit", "not the state before the step or after it"),
        ("activate", "no transactions", "not the state before the step or after it"),
        ("delete", "no transactions", "not the state before the step or after it"),
        ("collect", "no grace", "the blob of an upload under way is gone"),
        ("migrate", "no transactions", "not recovered"),
    ],
)
def test_the_sweep_finds_what_is_broken_on_purpose(
    sweep: Sweep, tmp_path: Path, operation: str, mutant: str, promise: str
) -> None:
    killer = Killer(operation, tmp_path, mutant)
    [calls] = sweep.over([None], killer.calls)
    results = sweep.over(calls[::4], killer.kill)

    assert any(said.startswith(promise) for _, promises in results for said in promises)
