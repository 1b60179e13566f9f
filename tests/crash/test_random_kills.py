"""SIGKILL of the API process or the engine, at random moments under load: nothing is left behind.

`NUM_KILLS=200 make test-crash ARGS="-k random_kills"` is the long run, `SEED` repeats one.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from prefix_store.registry.audit import AuditLog
from prefix_store.registry.registry import Registry
from tests.crash.load import QUESTION, Client, Generator, Streamer, Writer
from tests.running_server import RunningServer, free_port, running_server, starting_server
from tests.small_model import save_small_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

NUM_KILLS = int(os.environ.get("NUM_KILLS", "6"))
SEED = int(os.environ.get("SEED", random.randrange(1 << 30)))
FLAGS = ("--dtype", "float32", "--num-threads", "1", "--kv-cache-bytes", str(64 << 20))
MARK = "RANDOM_KILLS"
ORPHANS_END_S = 5.0
SERVED_AGAIN_S = 900.0
MAX_GROWTH_BYTES = 100 << 20


class Sweep:
    """A server under load, and what became of each kill."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model = save_small_model(folder / "model")
        self._port = free_port()
        self._mark = uuid4().hex
        self._stack = ExitStack()
        self.server: RunningServer | None = None
        self.random = random.Random(SEED)
        self.violations: list[str] = []
        self.clients: list[Client] = []
        self.kills: Counter[str] = Counter()
        self.residents: list[int] = []
        """Memory of both processes when everything is served, in bytes."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def learn_answer(self) -> str:
        """Return the undisturbed answer to what the generators ask."""
        with running_server(self._model, self._folder / "undisturbed", *FLAGS) as server:
            response = httpx.post(f"{server.url}/generate", json=QUESTION, timeout=60)
            return str(response.raise_for_status().json()["text"])

    def start(self) -> RunningServer:
        """Start a server, unless one runs."""
        if self.server is None or self.server.process.poll() is not None:
            self._stack.close()
            store, env = self._folder / "store", {MARK: self._mark}
            starting = starting_server(self._model, store, *FLAGS, env=env, port=self._port)
            self.server = self._stack.enter_context(starting)
        return self.server

    def stop(self) -> None:
        self._stack.close()

    def kill_one(self) -> None:
        """Kill one of the processes, while it serves or while it starts."""
        server = self.start()
        if self.random.random() < 0.5:
            self.wait_served(server)
        time.sleep(self.random.uniform(0, 2))
        victim = self.random.choice(["API process", "engine"])
        engine = self._engine(server)
        if server.process.poll() is not None or (victim == "engine" and engine is None):
            return  # an engine killed before its first start ends the server: nothing to kill
        self.kills[victim] += 1
        if victim == "engine" and engine is not None:
            os.kill(engine, signal.SIGKILL)
        else:
            server.process.kill()
            server.process.wait(10)
            self._check_no_orphan()

    def wait_served(self, server: RunningServer) -> None:
        """Until every client was served again, and found what it was promised."""
        before = [client.num_served for client in self.clients]
        deadline_s = time.monotonic() + SERVED_AGAIN_S
        while any(
            client.num_served < num + 2 for client, num in zip(self.clients, before, strict=True)
        ):
            if self.violations or server.process.poll() is not None:
                return
            assert time.monotonic() < deadline_s, "not served again in time"
            time.sleep(0.02)
        self.residents.append(sum(map(resident_bytes, self._processes())))

    def _engine(self, server: RunningServer) -> int | None:
        with suppress(OSError, ValueError):
            return server.engine_pid()
        return None

    def _check_no_orphan(self) -> None:
        deadline_s = time.monotonic() + ORPHANS_END_S
        while (left := self._processes()) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        if left:
            self.violations.append(f"{left} still run {ORPHANS_END_S} s after the API process")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _processes(self) -> list[int]:
        """Return every process that the server started, directly or not, and the server itself."""
        mark = f"{MARK}={self._mark}".encode()
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if has(pid, mark)]


def has(pid: int, mark: bytes) -> bool:
    """Whether a process has this in its environment. A process that has ended has none."""
    with suppress(OSError):
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def resident_bytes(pid: int) -> int:
    with suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


@contextmanager
def under_load(sweep: Sweep) -> Iterator[list[Writer]]:
    expected = sweep.learn_answer()
    url, violations = sweep.url, sweep.violations
    writers = [Writer(url, violations, f"task-{i}", SEED + i) for i in range(3)]
    sweep.clients = [
        Generator(url, violations, expected),
        Streamer(url, violations, expected),
        Streamer(url, violations, expected),
        *writers,
    ]
    for client in sweep.clients:
        client.start()
    try:
        yield writers
    finally:
        for client in sweep.clients:
            client.stop()


@pytest.mark.timeout(1200 + 60 * NUM_KILLS)
def test_random_kills_leave_no_process_and_lose_no_change(
    tmp_path: Path, note: Callable[[str], None]
) -> None:
    sweep = Sweep(tmp_path)
    try:
        with under_load(sweep) as writers:
            while sweep.kills.total() < NUM_KILLS and not sweep.violations:
                sweep.kill_one()
            server = sweep.start()
            sweep.wait_served(server)
        for writer in writers:
            writer.check_prefixes()
    finally:
        sweep.stop()
    registry = Registry(f"sqlite:///{tmp_path / 'store' / 'registry.db'}", may_create=False)
    broken = AuditLog(registry.database).verify()
    registry.close()
    log = (tmp_path / "store.log").read_text()
    num_acknowledged = sum(writer.num_acknowledged for writer in writers)
    growth = max(sweep.residents) - sweep.residents[0]
    note(
        f"seed {SEED}: killed {dict(sweep.kills)}; {num_acknowledged} acknowledged changes, "
        f"memory at most {growth / 2**20:+.0f} MiB, violations: {sweep.violations}"
    )

    assert sweep.violations == []
    assert broken is None
    assert "Traceback" not in log
    assert num_acknowledged >= NUM_KILLS
    assert growth < MAX_GROWTH_BYTES
