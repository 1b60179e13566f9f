from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import pytest

from tests.crash.strace import Actor, an_actor

T = TypeVar("T")
R = TypeVar("R")

NUM_ACTORS = 4


def why_no_strace() -> str | None:
    if shutil.which("strace") is None:
        return "strace is not installed (Debian: apt-get install strace)"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = why_no_strace() if here else None
    for item in here:
        item.add_marker(pytest.mark.crash)
        if reason is not None and "sweep" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


class Sweep:
    """Does the same for many points, on a few processes at once."""

    def __init__(self, actors: list[Actor], folder: Path) -> None:
        self._idle: SimpleQueue[Actor] = SimpleQueue()
        for actor in actors:
            self._idle.put(actor)
        self._folder = folder

    def over(self, points: Iterable[T], work: Callable[[Actor, Path, T], R]) -> Iterator[R]:
        """What `work` says of each point; it gets a path of its own to make a folder at."""

        def one(numbered: tuple[int, T]) -> R:
            actor = self._idle.get()
            folder = self._folder / str(numbered[0])
            folder.mkdir(parents=True)
            try:
                return work(actor, folder / "store", numbered[1])
            finally:
                self._idle.put(actor)
                shutil.rmtree(folder)

        pool = ThreadPoolExecutor(NUM_ACTORS)
        try:
            yield from pool.map(one, enumerate(points))
        finally:  # also where the caller has seen enough
            pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def actors() -> Iterator[list[Actor]]:
    with ExitStack() as stack:
        yield [stack.enter_context(an_actor()) for _ in range(NUM_ACTORS)]


@pytest.fixture
def sweep(actors: list[Actor], tmp_path: Path) -> Sweep:
    return Sweep(actors, tmp_path / "sweep")
