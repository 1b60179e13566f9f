"""`foreword apply`, killed at any write and run again, gives the same as without the kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.python.apply.conftest import Run, Server, save_peft
from tests.server.live import wait_until

TASKS = """
tasks:
  tuned: {prefix: run, template: "Q: {prompt}", weight: 2, limits: {max_tokens: 9}}
  plain: {text: one, defaults: {max_tokens: 4}}
  split:
    versions:
      - {text: stable, traffic: 90, pinned: true}
      - {text: new, traffic: 10, template: "{prompt} ->"}
  described: {description: without a version}
"""
CHANGED = TASKS.replace("Q: {prompt}", "Question: {prompt}").replace("text: one", "text: two")


def start_client(server: Server, file: str) -> subprocess.Popen[bytes]:
    program = "from foreword_client.cli import main; main()"
    command = [sys.executable, "-c", program, "apply", "-f", file]
    environment = os.environ | {"FOREWORD_URL": server.url, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, **quiet)


def answers(server: Server) -> dict[str, Any]:
    """What requests get: without numbers of versions, and without versions that answer none."""
    state = server.state()
    for task in state.values():
        names = {one.pop("version"): one for one in task["versions"]}
        task["active_version"] = names.get(task["active_version"])
        weights = task["weights"] or {}
        task["weights"] = [(names[int(number)], weight) for number, weight in weights.items()]
        task["pinned"] = [one for one in names.values() if one["pinned"]]
        del task["versions"]
    return state


@pytest.mark.parametrize(
    ("before", "num_writes"), [([], 2), ([], 5), (["tasks.yaml"], 1), (["tasks.yaml"], 2)]
)
def test_killed_at_a_write_and_run_again_it_gives_the_same(
    before: list[str], num_writes: int, run: Run, server: Server, start: Callable[[str], Server]
) -> None:
    save_peft(Path("run"))
    Path("tasks.yaml").write_text(TASKS)
    Path("changed.yaml").write_text(CHANGED)
    whole = start("whole")
    for file in (*before, "changed.yaml"):
        assert run("--url", whole.url, "apply", "-f", file).exit_code == 0
    for file in before:
        run("apply", "-f", file)

    server.at_write[len(server.writes) + num_writes] = lambda: client.send_signal(signal.SIGKILL)
    client = start_client(server, "changed.yaml")
    assert client.wait(60) == -signal.SIGKILL
    wait_until(lambda: not server.in_progress)
    done = run("apply", "-f", "changed.yaml")

    assert done.exit_code == 0, done.stderr
    assert answers(server) == answers(whole)
