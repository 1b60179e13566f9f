"""Child processes end with their parent: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.engine import lifeline
from tests.running_server import wait_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux only")

CHILD = """
import os, sys, time
from server.engine.lifeline import end_with_parent
end_with_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys
subprocess.run([sys.executable, "-c", {CHILD!r}, str(os.getpid())])
"""
COMPILING = """
import os, sys
from server.engine import lifeline
lifeline.run(sys.argv[1:], timeout_s=60, env=os.environ)
"""


@pytest.fixture
def compiler(tmp_path: Path) -> list[str]:
    """A command that starts a child process, as compilers do. Both write their process ids."""
    child = f"echo $$ > {tmp_path}/child && exec sleep 60"
    return ["sh", "-c", f"echo $$ > {tmp_path}/driver && sh -c '{child}' ; true"]


def wait_started(tmp_path: Path) -> list[int]:
    """Wait for the process ids of the compiler and of its child."""
    deadline_s = time.monotonic() + 30
    paths = [tmp_path / name for name in ("driver", "child")]
    while not all(path.exists() and path.read_text().strip() for path in paths):
        assert time.monotonic() < deadline_s, "the compiler did not start"
        time.sleep(0.05)
    return [int(path.read_text()) for path in paths]


def test_a_process_ends_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())

        parent.kill()

        wait_gone(child)


def test_a_process_whose_parent_has_ended_already_ends_at_once() -> None:
    long_gone = str(2**22 + 1)  # no process has this id

    done = subprocess.run([sys.executable, "-c", CHILD, long_gone], timeout=30, capture_output=True)

    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


def test_a_compiler_and_its_children_end_with_the_process_that_runs_it(
    compiler: list[str], tmp_path: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", COMPILING, *compiler]) as process:
        pids = wait_started(tmp_path)

        process.kill()

        wait_gone(*pids)


def test_a_compiler_that_times_out_ends_with_its_children(
    compiler: list[str], tmp_path: Path
) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        lifeline.run(compiler, timeout_s=3, env=os.environ)

    wait_gone(*wait_started(tmp_path))


def test_the_error_of_a_failed_command_has_its_output() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        lifeline.run(["sh", "-c", "echo sorry >&2; exit 3"], timeout_s=30, env=os.environ)

    assert failed.value.returncode == 3
    assert failed.value.stderr == "sorry\n"
