"""A process that compiles grammars, with limits of processor time and memory that end it.

A compile cannot be stopped within a process, and some schemas of a few hundred bytes take
exponential time and memory.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from server.engine.grammar import GrammarError, Vocabulary
from server.engine.lifeline import end_with_parent

MAX_COMPILE_S = 3.0
"""Processor time of one compile. What other processes do does not count."""
MAX_COMPILE_BYTES = 512 << 20
"""Memory of a compile, beside that of the vocabulary. Linux only."""
_MAX_MESSAGE_CHARS = 4096
_KILLED = (-signal.SIGKILL, -signal.SIGTERM)
"""Exit codes that no limit leads to. The kernel kills a process when all memory is used."""
_HEADER = struct.Struct("<I")


class TooExpensive(Exception):
    """A compile reached one of its limits."""


class Killed(Exception):
    """The process was killed, here or from outside, or could not start: it has no result."""


class GrammarProcess:
    """A child process that compiles one grammar at a time. Only `kill` is thread-safe."""

    def __init__(
        self, tokenizer_json: str, *, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        """Start it and wait until its vocabulary is built. Raises `ValueError` for a tokenizer that
        does not support grammars, `Killed`, and `OSError` if no process can be started."""
        command = [sys.executable, "-m", "server.generation.grammar_process", str(os.getpid())]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, process_group=0
        )
        self._is_killed = False
        vocabulary = {"vocab_size": vocab_size, "eos_token_ids": [*eos_token_ids]}
        limits = [MAX_COMPILE_S, MAX_COMPILE_BYTES]
        try:
            if error := self._ask(json.dumps([tokenizer_json, vocabulary, limits])):
                raise ValueError(error)
        except TooExpensive:
            raise Killed from None  # it has ended before it had a grammar
        except BaseException:
            self.close()
            raise

    def compile(self, grammar: str) -> str:
        """Return the error of a grammar that does not compile, else an empty string.

        Raises `TooExpensive` and `Killed`; the process has ended then.
        """
        return self._ask(grammar)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End a running compile, and the process with it."""
        self._is_killed = True
        self._process.kill()

    def close(self) -> None:
        """Kill the process and wait until it has ended. Idempotent."""
        self.kill()
        self._wait()

    def _wait(self) -> None:
        """Wait until the process has ended, and close its pipes."""
        with suppress(BrokenPipeError, ValueError):
            self._process.communicate()

    def _ask(self, text: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            _write(self._process.stdin, text)
        if (answer := _read(self._process.stdout)) is not None:
            return answer
        self._wait()
        if self._is_killed or self._process.returncode in _KILLED:
            raise Killed
        if self._process.returncode == -signal.SIGPROF:
            raise TooExpensive(f"it takes longer than {MAX_COMPILE_S:g} s to compile")
        raise TooExpensive("it takes too much memory to compile")


def _write(file: IO[bytes], text: str) -> None:
    data = text.encode()
    file.write(_HEADER.pack(len(data)) + data)
    file.flush()


def _read(file: IO[bytes]) -> str | None:
    """Return the next frame, or None at the end of the file."""
    if len(header := file.read(_HEADER.size)) < _HEADER.size:
        return None
    data = file.read(_HEADER.unpack(header)[0])
    return data.decode() if len(data) == _HEADER.unpack(header)[0] else None


# --- in the child process ---


def _serve(asked: IO[bytes], answers: IO[bytes]) -> None:
    tokenizer_json, arguments, (max_s, max_bytes) = json.loads(_read(asked) or "[]")
    try:
        vocabulary = Vocabulary(tokenizer_json, **arguments)
    except ValueError:
        _write(answers, "the model's tokenizer does not support grammars")
        return
    _write(answers, "")
    _limit_memory(max_bytes)
    while (grammar := _read(asked)) is not None:
        signal.setitimer(signal.ITIMER_PROF, max_s)  # its signal ends the process
        error = _error(vocabulary, grammar)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(answers, error)


def _error(vocabulary: Vocabulary, grammar: str) -> str:
    try:
        vocabulary.compile(grammar)
    except GrammarError as exc:
        return str(exc)[:_MAX_MESSAGE_CHARS] or "it cannot be compiled"
    return ""


def _limit_memory(max_bytes: int) -> None:
    """Limit the address space, as far as this system says how large it is now."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = num_pages * resource.getpagesize() + max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    _serve(sys.stdin.buffer, sys.stdout.buffer)
