"""A PostgreSQL of the tests' own: made, started and ended by them, on a loopback port."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from prefix_store.database.database import Database
from tests.running_server import free_port

PASSWORD = "a password that no log may show"
_DURABILITY_OFF = ("-c", "fsync=off", "-c", "full_page_writes=off")
_TEMPLATE = "foreword_template"


class Postgres:
    """One server, and databases in it that nobody has used before."""

    def __init__(self, binaries: Path, folder: Path, account: str | None) -> None:
        self._binaries = binaries
        self._data = folder / "data"
        self._log = folder / "log"
        self._account = account
        self._numbers = itertools.count(1)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """A new cluster with one user, who needs a password."""
        password = self._data.with_name("password")
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = (
            "--username=foreword",
            "--auth=scram-sha-256",
            "--no-sync",
            "--locale=C",
            "--encoding=UTF8",
        )
        command = [self._binaries / "initdb", "--pgdata", self._data, f"--pwfile={password}"]
        subprocess.run(
            [*command, *options], check=True, user=self._account, stdout=subprocess.DEVNULL, cwd="/"
        )
        self.start()
        self._create(_TEMPLATE)
        Database(self.url(_TEMPLATE), may_create=True).close()

    def start(self) -> None:
        """Return when it takes connections."""
        command = [self._binaries / "postgres", "-D", self._data, "-p", str(self.port)]
        options = ("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options, *_DURABILITY_OFF],
                stdout=log, stderr=log, user=self._account, cwd="/",
            )  # fmt: skip
        deadline_s = time.monotonic() + 60
        while True:
            with suppress(psycopg.OperationalError):
                self._admin().close()
                return
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline_s, self._log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """As when the machine is turned off: connections break, and nothing takes new ones."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Connections stay, and nothing is answered."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pids = [pid, *(int(child) for child in children)]
        try:
            for one in pids:
                os.kill(one, signal.SIGSTOP)
            yield
        finally:
            for one in pids:
                os.kill(one, signal.SIGCONT)

    def new_database(self, *, is_migrated: bool = True) -> str:
        """Its URL."""
        name = f"test_{next(self._numbers)}"
        self._create(name, _TEMPLATE if is_migrated else "template1")
        return self.url(name)

    def url(self, database: str) -> str:
        password = PASSWORD.replace(" ", "%20")
        return f"postgresql+psycopg://foreword:{password}@127.0.0.1:{self.port}/{database}"

    def execute(self, url: str, statement: str) -> None:
        """Past everything that is ours."""
        with self._admin(url.rpartition("/")[2]) as connection:
            connection.execute(statement)

    def _create(self, name: str, template: str = "template1") -> None:
        with self._admin() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")

    def _admin(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="foreword", password=PASSWORD,
            dbname=database, autocommit=True, connect_timeout=5,
        )  # fmt: skip


def find_binaries() -> Path | None:
    """The folder of `initdb` and `postgres`; Debian keeps them off the path."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Skips the test where PostgreSQL is not installed."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    # Not under pytest's folder: there, root's is closed to the account that PostgreSQL runs as.
    folder = Path(tempfile.mkdtemp(prefix="foreword-postgres-"))
    account = _account()
    if account is not None:
        shutil.chown(folder, account)
    server = Postgres(binaries, folder, account)
    try:
        server.make()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def _account() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
