"""What somebody gets who installs the wheels, and nothing of a checkout: an empty environment, an
empty cache, none of the development extra."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.demo.tasks import TUNED_FOR
from tests.running_server import RunningServer, free_port

ROOT = Path(__file__).parents[2]
SERVER = ("foreword", "foreword_client")
CLIENTS = ("foreword_tuner", "foreword_bench")
IMPORT_ALL = """
import importlib, pkgutil, sys
for root in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(root).__path__, f"{root}."):
        if not module.name.endswith((".__main__", ".migrations.env")):  # which run when imported
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as exc:
                print(module.name, exc.name)
"""

pytestmark = pytest.mark.install


class Environment:
    """A virtual environment that knows of no checkout and no other setting of ours."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._venv = home / "venv"
        foreign = ("FOREWORD_", "PYTHON", "HF_", "OMP_", "VIRTUAL_ENV")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        self.variables = kept | {
            "FOREWORD_CACHE": str(home / "cache"),
            "HF_HOME": str(home / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.home.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", self._venv], check=True, timeout=120)

    def program(self, name: str) -> str:
        return str(self._venv / "bin" / name)

    def run(self, name: str, *args: str | Path, timeout_s: float = 120) -> str:
        """Standard output. The working directory has nothing that could be imported."""
        done = subprocess.run(
            [self.program(name), *args],
            cwd=self.home,
            env=self.variables,
            timeout=timeout_s,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *wheels: Path) -> None:
        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        constraints = ("--constraint", ROOT / "constraints.txt")
        self.run("python", *pip, "--no-compile", *constraints, *wheels, timeout_s=500)

    def not_importable(self, *packages: str) -> set[tuple[str, str]]:
        """Modules of packages, and what each misses."""
        lines = self.run("python", "-c", IMPORT_ALL, *packages).splitlines()
        return {(line.split()[0], line.split()[1]) for line in lines}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the distribution's name."""
    dist = tmp_path_factory.mktemp("dist")
    sources = [ROOT, *(ROOT / "clients" / name for name in ("python", "tuner", "bench"))]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--wheel-dir", dist, *sources], check=True, timeout=300)
    return {path.name.partition("-")[0]: path for path in dist.glob("*.whl")}


@pytest.fixture(scope="module")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("installed") / "home")
    made.install(*(wheels[name] for name in SERVER))
    return made


@pytest.fixture(scope="module")
def server(environment: Environment) -> Iterator[RunningServer]:
    """`foreword serve` as it is started the first time: without a model yet."""
    store, port = environment.home / "store", free_port()
    flags = ["--store", str(store), "--port", str(port), "--num-threads", "1"]
    with (environment.home / "log").open("wb") as log:
        process = subprocess.Popen(
            [environment.program("foreword"), "serve", *flags],
            cwd=environment.home,
            env=environment.variables,
            stdout=log,
            stderr=log,
        )
    running = RunningServer(f"http://127.0.0.1:{port}", process, store)
    try:
        running.wait_ready(timeout_s=500)
        yield running
    finally:
        running.stop()
        print((environment.home / "log").read_text()[-5000:])  # noqa: T201 -- shown if it failed


def test_every_module_finds_what_it_imports(environment: Environment) -> None:
    missing = environment.not_importable("server", "prefix_store", "foreword_client")

    assert {name for _, name in missing} <= {"pytest", "triton"}


def test_it_makes_its_model_serves_and_stops(
    environment: Environment, server: RunningServer
) -> None:
    assert any((environment.home / "cache").glob("smollm2-*"))
    environment.run("foreword", "--url", server.url, "push", "own", "--text", "hot -> cold\n")
    asked = {"prompt": "big ->", "max_tokens": 4}
    answered = httpx.post(f"{server.url}/generate?task=own", json=asked, timeout=60).json()
    info = httpx.get(f"{server.url}/info", timeout=60).json()

    assert (answered["task"], answered["version"]) == ("own", 1)
    assert answered["text"].strip()
    assert info["fingerprint"] == TUNED_FOR  # the weights that the tuned demo tasks are for
    server.stop()
    assert server.process.returncode == 0


def test_the_other_clients_install_beside_it(
    environment: Environment, wheels: dict[str, Path]
) -> None:
    environment.install(*wheels.values())

    assert environment.not_importable(*CLIENTS) <= {("foreword_bench.static_batch", "peft")}
    for command in ("serve", "tune", "evaluate", "bench"):
        assert f"foreword {command}" in environment.run("foreword", command, "--help")
