"""The engine process as a child of the API process, with frames sent to and read from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import Self

import msgspec

from server.engine.ipc import messages as m

_EXIT_TIMEOUT_S = 2.0
_decoder = msgspec.msgpack.Decoder(m.Event)


class EngineProcess:
    """A running engine process, created by `spawn`.

    Its first event is `Ready`, or `Failed` if the model cannot be loaded.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._was_killed = False
        """Whether `kill` ended it."""

    @classmethod
    async def spawn(cls, config: m.EngineConfig) -> Self:
        """Start the process and send it its configuration; do not wait for the model to load.

        Raises `OSError`.
        """
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as on_failure:
            on_failure.callback(ours.close)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "server.engine",
                str(theirs.fileno()),
                str(os.getpid()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=_environment(config),
                # A process group of its own: Ctrl-C then reaches only the API process, which
                # drains. Not a session of its own: Linux's autogroup scheduling would give that
                # session half of the processor, whatever the priorities of its threads.
                process_group=0,
            )
            on_failure.pop_all()
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(m.frame(config))
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: m.Request) -> None:
        self._writer.write(m.frame(message))

    async def read(self) -> m.Event | None:
        """Return the next event, or None once the process has closed its end of the socket."""
        try:
            (length,) = m.HEADER.unpack(await self._reader.readexactly(m.HEADER.size))
            event: m.Event = _decoder.decode(await self._reader.readexactly(length))
            return event
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def wait(self) -> None:
        await self._process.wait()

    async def kill(self) -> None:
        """Kill the process and wait until it has ended. Idempotent."""
        if self._process.returncode is None:
            self._was_killed = True
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._writer.close()

    async def end(self) -> None:
        """Give the process a moment to end by itself, as one does that has closed its socket."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _EXIT_TIMEOUT_S)
        await self.kill()

    @property
    def how_it_ended(self) -> str:
        """How the process ended, in words for the log."""
        code = self._process.returncode
        if self._was_killed or code is None:
            return "the engine process was stopped by the server"
        if code == -signal.SIGKILL:
            return "the engine process was killed from outside (SIGKILL): out of memory?"
        if code < 0:
            return f"the engine process crashed ({signal.Signals(-code).name})"
        return f"the engine process exited with status {code}"


def _environment(config: m.EngineConfig) -> dict[str, str]:
    """Return the environment of the engine process, with OpenMP's settings.

    OpenMP reads them once, when torch is imported. Its threads wait for each other hundreds of
    times per step. By default a waiting thread spins for milliseconds, and another process on the
    same cores then makes a step ten times slower. A thread that sleeps at once takes longer to wake
    up than its work takes. A short spin avoids both.
    """
    num_threads = config.num_threads or os.cpu_count() or 1
    defaults = {"GOMP_SPINCOUNT": "5000", "TOKENIZERS_PARALLELISM": "false"}
    return defaults | os.environ | {"OMP_NUM_THREADS": str(num_threads)}
