"""Child processes that end with their parent, even if the parent is killed, and before it.

On Linux the kernel sends the child a signal when its parent ends. On other systems the engine
process notices the closed socket at its next read, and a compiler runs to its end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_MORE_OOM_SCORE = 200
"""A fifth of the memory, in the kernel's thousandths."""


def end_with_parent(parent: int, signum: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `signum` to this process when its parent ends, or now if it has ended.

    `parent` is the process id of the parent. The kernel watches the parent's thread that started
    this process; in our processes that thread lives as long as the process. Linux only.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signum))
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def end_before_parent() -> None:
    """Have the kernel kill this process before its parent when memory runs out. Linux only."""
    with suppress(OSError, ValueError):
        score = min(1000, int(_OOM_SCORE.read_text()) + _MORE_OOM_SCORE)
        _OOM_SCORE.write_text(str(score))


def run(command: Sequence[str], *, timeout_s: float, env: Mapping[str, str]) -> None:
    """Run a command that is killed, with its child processes, when this process ends.

    Raises `subprocess.CalledProcessError`, with the command's output, and
    `subprocess.TimeoutExpired`.
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
    """Run the command between `run` and it, in a process group that can be killed as a whole.

    A compiler starts further processes, which have to end with it.
    """
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    end_with_parent(parent, signal.SIGTERM)
    return subprocess.call(command, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(_guard(int(sys.argv[1]), sys.argv[2:]))
