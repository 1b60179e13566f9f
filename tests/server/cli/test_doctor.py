"""Every check of `foreword doctor`, on a machine where it fails and on one where it does not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from transformers import BartConfig, LlamaConfig

from prefix_store.registry.registry import Registry
from server.cli import checks, doctor
from server.cli.finding import Finding
from server.engine.native import build
from server.settings import Settings
from tests.server.live import LiveServer

Make = Callable[..., Settings]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Settings of a server whose folders are not there yet."""
    folders = {"store": tmp_path / "store", "cache": tmp_path / "cache", "port": 0}
    return lambda **given: Settings(_cli_parse_args=False, **folders | given)


@pytest.fixture
def database_file(make: Make) -> Iterator[Path]:
    store = make().store
    store.mkdir()
    registry = Registry(f"sqlite:///{store / 'registry.db'}")
    yield store / "registry.db"
    registry.close()


def assert_todo(finding: Finding, status: str, *words: str) -> None:
    """It says what is wrong, and what to do."""
    assert finding.status == status
    assert finding.todo
    for word in words:
        assert word in finding.detail


def test_what_is_installed_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {f.check: f.status for f in checks.packages()} == dict.fromkeys(
        ("python", "torch", "transformers"), "ok"
    )

    monkeypatch.setattr(checks, "version", lambda name: "2.9.1+cpu")
    _, torch, transformers = checks.packages()
    assert_todo(torch, "fail", "2.9.1")
    assert_todo(transformers, "fail", "2.9.1")


def test_misspelt_options_are_a_finding() -> None:
    found = doctor.check_settings(["--prot", "1"])

    assert isinstance(found, Finding)
    assert_todo(found, "fail", "--prot", "did you mean --port?")


def test_a_missing_device(make: Make) -> None:
    assert checks.device(make()).status == "ok"
    if not checks.torch.cuda.is_available():
        assert_todo(checks.device(make(device="cuda")), "fail", "CUDA")


def test_a_machine_without_a_compiler(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "has_wide_vectors", lambda: True)
    build.library.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    try:
        assert_todo(checks.compiler(make(device="cpu")), "warn", "compiler")
        assert_todo(checks.compiler(make(device="cpu", attention="native")), "fail", "compiler")
        assert checks.compiler(make(device="cpu", attention="cpu")).status == "ok"
    finally:
        build.library.cache_clear()


def test_the_default_model_is_present_or_fetched(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make()
    assert_todo(checks.model(settings), "warn", "not fetched yet")

    checks.default_folder(settings.cache).mkdir(parents=True)
    assert checks.model(settings).status == "ok"

    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert checks.model(settings).status == "ok"
    assert_todo(checks.model(make(cache=settings.cache / "other")), "fail", "0 MB free")


def test_a_folder_that_is_not_a_model(make: Make, tmp_path: Path) -> None:
    assert_todo(checks.model(make(model=str(tmp_path / "nothing"))), "fail", "no such folder")
    assert_todo(checks.model(make(model="org/name")), "warn", "org/name")
    assert_todo(checks.model(make(model=str(tmp_path))), "fail", "config.json", "safetensors")
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert_todo(checks.model(make(model=str(tmp_path))), "fail", "config cannot be read")
    LlamaConfig().save_pretrained(tmp_path)
    assert checks.model(make(model=str(tmp_path))).status == "ok"
    BartConfig().save_pretrained(tmp_path)
    assert_todo(checks.model(make(model=str(tmp_path))), "fail", "bart", "encoder-decoder")


def test_too_little_memory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = make(kv_cache_bytes=4 << 30)
    for free, status in ((9 << 30, "ok"), (5 << 30, "warn"), (3 << 30, "fail"), (None, "warn")):
        monkeypatch.setattr(checks, "_free_bytes", lambda settings, free=free: free)
        assert checks.memory(needs).status == status


def test_a_store_that_cannot_be_written(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make()
    assert "not created yet" in checks.store(settings).detail
    assert not settings.store.exists()
    settings.store.mkdir()
    assert checks.store(settings).status == "ok"
    assert list(settings.store.iterdir()) == []

    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    full = shutil.disk_usage("/")._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: full)
        assert_todo(checks.store(settings), "warn", "0.0 GB free")
    monkeypatch.setattr(checks.tempfile, "TemporaryFile", refuse)
    assert_todo(checks.store(settings), "fail", "Permission denied")


def test_registries_new_old_from_the_future_torn_and_lost(make: Make, database_file: Path) -> None:
    settings = make()
    assert checks.registry(settings).status == "ok"
    before = database_file.read_bytes()

    with closing(sqlite3.connect(database_file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0001'")
    assert_todo(checks.registry(settings), "warn", "older")
    with closing(sqlite3.connect(database_file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    assert_todo(checks.registry(settings), "fail", "newer")

    for path in database_file.parent.glob("registry.db*"):
        path.unlink()
    database_file.write_bytes(b"no database" + before[11:])
    assert_todo(checks.registry(settings), "fail", "cannot be read")
    database_file.unlink()
    blob = settings.store / "blobs/sha256/ab/abcd"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x")
    assert_todo(checks.registry(settings), "fail", "missing")


def test_an_open_server_and_a_world_readable_pepper(make: Make, database_file: Path) -> None:
    assert checks.keys(make()).status == "ok"
    assert_todo(checks.keys(make(host="0.0.0.0")), "fail", "no key")
    assert_todo(checks.keys(make(host="0.0.0.0", insecure_no_auth=True)), "warn", "everything")

    pepper = database_file.parent / "pepper"
    pepper.write_text("x" * 64)
    pepper.chmod(0o644)
    assert_todo(checks.keys(make()), "fail", "world-readable")


def test_a_port_that_is_taken(make: Make, live: LiveServer) -> None:
    assert checks.port(make()).status == "ok"
    assert_todo(checks.port(make(port=live.port)), "fail", "a server already answers")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_todo(checks.port(make(port=port, host="127.0.0.1")), "fail")


def test_a_running_server_is_checked(live: LiveServer) -> None:
    assert checks.server(live.url).status == "ok"
    assert checks.server(f"127.0.0.1:{live.port}").status == "ok"
    assert_todo(checks.server("http://127.0.0.1:1"), "fail", "no Foreword server")
    assert_todo(checks.server("http://[broken"), "fail")


def run(*argv: str) -> object:
    try:
        doctor.doctor(argv)
    except SystemExit as ended:
        return ended.code
    return 0


def test_the_exit_code_says_whether_a_server_would_start(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(make().store)
    good = ["--store", store, "--port", "0", "--attention", "cpu", "--json"]

    assert run(*good) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {f["status"] for f in findings} <= {"ok", "warn"}
    assert run("--store", store, "--host", "0.0.0.0", "--port", "0") == 1
    assert "foreword keys create" in capsys.readouterr().out
    assert run("--prot", "0") == 1


def test_it_is_a_command_of_foreword() -> None:
    command = [str(Path(sys.executable).parent / "foreword"), "doctor", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=60)

    assert done.returncode == 0
    assert "foreword doctor" in done.stdout
