"""The threads of the compiled layers, more than there are cores, so that some are always late."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from server.engine.native import build

FOLDER = Path(build.__file__).parent


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("team") / "stress"
    source = Path(__file__).parent / "team_stress.cpp"
    try:
        compiler = build.compiler()
    except build.NativeUnavailable as exc:
        pytest.skip(str(exc))
    command = [*compiler, "-std=c++20", "-O2", "-pthread", f"-I{FOLDER}", str(source)]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=120)
    return program


@pytest.mark.parametrize("num_threads", [1, 2, 8])
def test_a_phase_begins_after_the_previous_one_has_ended(stress: Path, num_threads: int) -> None:
    done = subprocess.run(
        [str(stress), str(num_threads), "3000"], capture_output=True, text=True, timeout=120
    )

    assert (done.returncode, done.stdout) == (0, "")
