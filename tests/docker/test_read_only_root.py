"""What the image runs, without the image: the entry point as uid 10001, without any capability, on
a file system of which only `data` and `tmp` can be written.

A mount namespace of its own stands for the container; making one takes root.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from server.default_model import ensure_default_model
from server.settings import Settings
from tests.running_server import free_port

ROOT = Path(__file__).parents[2]
UID = int(re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.M)[0])
ENTRY = "from foreword_client.cli import main; main()"
CONTAINER = """
set -eu
cd "$1"; shift
mount --bind data data
mount -t tmpfs -o size=256m,mode=1777 tmpfs tmp
mount --bind "$VENV" venv; mount --bind "$SOURCE" source; mount --bind "$CACHE" cache
mount --bind "$BASE" base  # the interpreter, which may be in a home that is closed to others
home="/$(echo "$BASE" | cut -d/ -f2)"
if [ "$(stat -c %a "$home" | tail -c 2)" = 0 ]; then
    mount -t tmpfs -o mode=755 tmpfs "$home"; mkdir -p "$BASE"; mount --bind base "$BASE"
fi
writable="^(/proc|/sys|/dev)|$PWD/(data|tmp)$"
for point in $(findmnt --noheadings --raw --output TARGET | grep -Ev "$writable"); do
    mount -o remount,bind,ro "$point" 2> /dev/null || true
done
if [ "$DATA" = ro ]; then mount -o remount,bind,ro data; fi
exec setpriv --reuid "$RUN_AS" --regid "$RUN_AS" --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all "$@"
"""


def can_unshare() -> bool:
    tools = all(shutil.which(tool) for tool in ("unshare", "setpriv", "findmnt"))
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "mount",
        "-t",
        "tmpfs",
        "x",
        "/mnt",
    ]
    return tools and subprocess.run(command, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(not can_unshare(), reason="needs root, and a kernel that lets it unshare"),
]


@pytest.fixture(scope="module")
def cache() -> Path:
    """With the real default model in it, as in the image."""
    return ensure_default_model(Settings(_cli_parse_args=False).cache).parent


@contextmanager
def started(
    cache: Path, port: int, *, data: str = "rw"
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Its folder and its process. Not under pytest's folders, which are for their owner alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name in ("data", "tmp", "venv", "source", "cache", "base"):
        (folder / name).mkdir()
    os.chown(folder / "data", UID, UID)
    python = [str(folder / "venv/bin/python"), "-c", ENTRY, "serve", "--num-threads=1"]
    places = {"VENV": sys.prefix, "SOURCE": str(ROOT), "CACHE": str(cache)}
    places["BASE"] = sys.base_prefix
    environment = (
        places
        | {"DATA": data, "RUN_AS": str(UID)}
        | {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{folder}/source:{folder}/source/clients/python",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": f"{folder}/data",
            "TMPDIR": f"{folder}/tmp",
            "HF_HOME": f"{folder}/data/huggingface",
            "HF_HUB_OFFLINE": "1",
            "FOREWORD_STORE": f"{folder}/data/store",
            "FOREWORD_CACHE": f"{folder}/cache",
            "FOREWORD_PORT": str(port),
        }
    )
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", CONTAINER, "sh"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(folder), *python], env=environment, stdout=log, stderr=log
        )
        try:
            yield folder, process
        finally:
            process.kill()
            process.wait(10)
            shutil.rmtree(folder)


def wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(3000):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-3000:])


def test_the_entry_point_serves_unprivileged_on_a_read_only_root(cache: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with started(cache, port) as (folder, process):
        wait_ready(process, url, folder / "log")
        status = Path(f"/proc/{process.pid}/status").read_text()
        mounts = Path(f"/proc/{process.pid}/mounts").read_text()
        uploaded = httpx.put(f"{url}/tasks/x/prefix", json={"text": "hot -> cold\n"}, timeout=60)
        answered = httpx.post(
            f"{url}/generate?task=x", json={"prompt": "big ->", "max_tokens": 4}, timeout=60
        )
        healthy = subprocess.run(
            [sys.executable, "-I", str(ROOT / "docker/healthcheck.py")],
            env={"FOREWORD_PORT": str(port)},
            timeout=30,
        )
        process.send_signal(signal.SIGTERM)

        assert process.wait(40) == 0
        log = (folder / "log").read_text()

    assert re.findall(r"^(?:Uid|NoNewPrivs|CapEff|CapBnd):\t(\w+)", status, re.M) == [
        str(UID),
        "0" * 16,
        "0" * 16,
        "1",
    ]
    roots = [
        line.split()[3].split(",")[0] for line in mounts.splitlines() if line.split()[1] == "/"
    ]
    assert set(roots) == {"ro"}
    assert (uploaded.status_code, answered.status_code) == (201, 200), uploaded.text
    assert healthy.returncode == 0
    assert "Read-only file system" not in log
    assert shutil.which("g++") is None or "without the compiled layers" not in log


def test_without_a_volume_it_says_so_in_one_line(cache: Path) -> None:
    with started(cache, free_port(), data="ro") as (folder, process):
        assert process.wait(90) == 2
        said = (folder / "log").read_text().strip().splitlines()

    assert len(said) == 1
    assert "cannot use the store" in said[0]
    assert "Read-only file system" in said[0]
