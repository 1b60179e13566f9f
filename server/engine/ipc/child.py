"""One engine process, as the API process sees it: a child, and frames to and from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Self

import msgspec

from server.engine.ipc import messages as m

_decoder = msgspec.msgpack.Decoder(m.Event)


class EngineProcess:
    """Made by `spawn`; its first event is `Ready`, or `Failed` if the model cannot be loaded."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def spawn(cls, config: m.EngineConfig) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "server.engine",
                str(theirs.fileno()),
                str(os.getpid()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=_environment(config),
                # Ctrl-C is for the API process, which drains. Not a new session: Linux's autogroup
                # would give that as much time as this one, whatever a thread's priority here.
                process_group=0,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(m.frame(config))
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: m.Request) -> None:
        self._writer.write(m.frame(message))

    async def read(self) -> m.Event | None:
        """The next event; None when the process has closed its end, alive or not."""
        try:
            (length,) = m.HEADER.unpack(await self._reader.readexactly(m.HEADER.size))
            event: m.Event = _decoder.decode(await self._reader.readexactly(length))
            return event
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def wait(self) -> None:
        await self._process.wait()

    async def kill(self) -> None:
        """End it now. Idempotent."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._writer.close()


def _environment(config: m.EngineConfig) -> dict[str, str]:
    """OpenMP reads its settings once, when torch is imported.

    Its threads wait for each other hundreds of times in a step. Left to itself each spins for
    milliseconds, so that a neighbour on the same cores makes a step ten times slower; asleep at
    once, waking costs more than the work. A short spin is right for both.
    """
    num_threads = config.num_threads or os.cpu_count() or 1
    defaults = {"GOMP_SPINCOUNT": "5000", "TOKENIZERS_PARALLELISM": "false"}
    return defaults | os.environ | {"OMP_NUM_THREADS": str(num_threads)}
