"""A process that does operations, each in a fork of itself: everything is imported but once.

Reads lines of JSON: an operation, a folder, a file for what is acknowledged, maybe a mutant. Makes
a child, which stops itself before its first step, so that strace can attach; says the child's
process id, and when it has ended its exit status.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path

import alembic.autogenerate
import alembic.command  # noqa: F401 -- or its import would be most of a migration's system calls

from prefix_store.errors import PrefixStoreError
from prefix_store.store import PrefixStore
from tests.crash.mutants import MUTANTS
from tests.crash.operations import STEPS, Step, opened

_PR_SET_PTRACER = 0x59616D61


def main() -> None:
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                act(**request)
                status = 0
            finally:
                os._exit(status)
        os.waitpid(pid, os.WUNTRACED)
        tell(pid)
        tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def act(operation: str, folder: str, acks: str, mutant: str | None) -> None:
    """Do the steps, and write down after each that it is done."""
    descriptor = os.open(acks, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
    with MUTANTS[mutant]() if mutant else nullcontext(), ExitStack() as stack:
        opens_first = operation not in ("migrate", "everything")
        store = stack.enter_context(opened(Path(folder))) if opens_first else None
        signal.raise_signal(signal.SIGSTOP)
        while store is None:
            try:
                store = stack.enter_context(opened(Path(folder)))
            except Exception as error:
                if not refused(descriptor, error):
                    return
        for step in STEPS[operation]:
            if not done(descriptor, store, step) and not done(descriptor, store, step):
                return


def done(descriptor: int, store: PrefixStore, step: Step) -> bool:
    try:
        step(store)
    except Exception as error:
        refused(descriptor, error)
        return False
    say(descriptor, "done")
    return True


_num_refusals = 0


def refused(descriptor: int, error: Exception) -> bool:
    """Whether another try makes sense."""
    global _num_refusals
    _num_refusals += 1
    expected = isinstance(error, PrefixStoreError)
    say(descriptor, f"refused {error.code}" if expected else f"leaked {error!r}")
    return expected and _num_refusals < 2


def say(descriptor: int, word: str) -> None:
    # A system call that nothing else makes, and that the tests let succeed.
    os.writev(descriptor, [f"{word}\n".encode()])


if __name__ == "__main__":
    main()
