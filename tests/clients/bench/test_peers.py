"""The servers of a comparison do not disturb each other."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from foreword_bench.peers import Choice, Peers
from foreword_bench.servers import Server


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    yield sleeper
    sleeper.kill()
    sleeper.wait()


def state(process: subprocess.Popen[bytes]) -> str:
    """The state in /proc, once a signal has had time to arrive."""
    time.sleep(0.2)
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_vllm_stands_still_while_another_server_is_measured(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    vllm, ours = Server("vllm", "", process.pid), Server("foreword", "")
    peers = Peers(Choice(), tmp_path, tmp_path, ExitStack(), {"vllm": vllm, "foreword": ours})

    with peers.peer_stopped(ours):
        assert state(process) == "T"
    assert state(process) != "T"

    with peers.peer_stopped(vllm):
        assert state(process) != "T"
