"""Processes that do not outlive the one that started them, also where that one is killed.

On Linux the kernel tells a process that its parent has ended. Elsewhere the engine process notices
when it next reads from its socket, and a compiler runs to its end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, signum: signal.Signals = signal.SIGKILL) -> None:
    """Get `signum` when the process `parent`, which started this one, ends, or at once if it has.

    The kernel means the thread that started it; ours live as long as their processes.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signum))
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def run(command: Sequence[str], *, timeout_s: float, env: Mapping[str, str]) -> None:
    """Run a command that ends, with all that it has started, when this process does.

    Raises `subprocess.CalledProcessError`, with what it wrote, and `subprocess.TimeoutExpired`.
    """
    guarded = [sys.executable, "-I", __file__, str(os.getpid()), *command]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        guarded, stdout=pipe, stderr=pipe, text=True, env=env, process_group=0
    ) as guard:
        try:
            output, errors = guard.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(guard.pid, signal.SIGKILL)
            raise
    if guard.returncode:
        raise subprocess.CalledProcessError(guard.returncode, command, output, errors)


def _guard(parent: int, command: list[str]) -> int:
    """Between `run` and its command: a compiler starts others, which have to end with it."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    end_with_parent(parent, signal.SIGTERM)
    return subprocess.call(command, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(_guard(int(sys.argv[1]), sys.argv[2:]))
