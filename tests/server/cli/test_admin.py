from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from prefix_store.errors import StorageFailure
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import Grant
from prefix_store.registry.registry import Registry
from server.cli import admin, start
from server.cli.app import StartError
from server.settings import Settings
from server.storage import open_keys


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a server whose store does not exist yet."""
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    return Settings(_cli_parse_args=False)


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    settings.store.mkdir()
    registry = Registry(f"sqlite:///{settings.store / 'registry.db'}")
    yield registry
    registry.close()


def test_the_first_key_is_created_before_there_is_a_server(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--scope generate --scope read --task support-* --expires 30d --name ci"
    limits = "--requests-per-s 5 --burst 9 --max-concurrency 2"

    admin.keys(["create", *options.split(), *limits.split()])
    out, err = capsys.readouterr()
    admin.keys(["list"])

    registry = Registry(f"sqlite:///{settings.store / 'registry.db'}")
    key = open_keys(settings, registry).verify(out.strip().encode())
    (row,) = AuditLog(registry.database).entries()
    registry.close()
    assert key is not None
    assert (key.scopes, key.tasks, key.name) == (("generate", "read"), ("support-*",), "ci")
    assert (key.requests_per_s, key.burst, key.max_concurrency) == (5, 9, 2)
    assert (key.expires_at - key.created_at).days in (29, 30)  # type: ignore[operator]
    assert (row.action, row.key, row.by, row.peer) == ("create_key", key.id, None, "command line")
    assert out.strip() not in err
    assert key.id in capsys.readouterr().out


@pytest.mark.parametrize("tasks", [(), ("support-*",)])
def test_a_key_without_scopes_is_an_owners(
    settings: Settings, capsys: pytest.CaptureFixture[str], tasks: tuple[str, ...]
) -> None:
    admin.keys(["create", "--name", "me", "--json", *(f"--task={task}" for task in tasks)])

    key = json.loads(capsys.readouterr().out)

    everything = ["generate", "read", "write", "promote", "delete", "admin"]
    assert key["scopes"] == (everything[:-1] if tasks else everything)
    assert key["tasks"] == list(tasks or ("*",))


def test_a_key_is_revoked(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    admin.keys(["create", "--scope", "read", "--name", "x"])
    id = capsys.readouterr().out.split("_")[1]

    admin.keys(["revoke", id])
    admin.keys(["list", "--store", str(settings.store)])

    assert "revoked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["list"], "there is no registry in"),
        (["create"], "--name"),
        (["create", "--name", "x", "--scope", "root"], "root"),
        (["create", "--name", "x", "--scope", "admin", "--task", "a"], "is for all tasks"),
        (["create", "--name", "x", "--scope", "read", "--task", "../x"], "tasks"),
        (["create", "--name", "x", "--scope", "read", "--expires", "soon"], "30d"),
        (["create", "--name", "x", "--scope", "read", "--burst", "0"], "burst"),
        (["create", "--name", "", "--scope", "read"], "name"),
        ([], "Missing command"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    with pytest.raises(SystemExit) as ended:
        admin.keys(argv)

    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not settings.store.exists()


@pytest.mark.parametrize("url", ["mysql://u:hunter2@h/d", "postgresql+psycopg://u:hunter2@h/d"])
@pytest.mark.parametrize("command", [admin.keys, admin.audit])
def test_a_wrong_setting_is_one_line_without_the_password(
    command: Callable[[list[str]], None],
    url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second URL is right, and lacks the pepper that a shared registry needs."""
    monkeypatch.setenv("FOREWORD_REGISTRY", url)

    with pytest.raises(SystemExit) as ended:
        command(["list" if command is admin.keys else "verify"])

    output = capsys.readouterr()
    assert ended.value.code == 2
    assert output.err.startswith("error: ")
    assert len(output.err.splitlines()) == 1
    assert "hunter2" not in output.err + output.out
    with pytest.raises(ValueError, match=r"registry|pepper") as refused:
        Settings(_cli_parse_args=False)
    assert "hunter2" not in str(refused.value)


def test_an_unknown_key_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    admin.keys(["create", "--scope", "admin", "--name", "x"])
    id = capsys.readouterr().out.split("_")[1]

    for wrong, said in (("nope", "there is no such key"), (id, "the last valid admin key")):
        with pytest.raises(SystemExit) as ended:
            admin.keys(["revoke", wrong])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_the_audit_is_verified_and_exported(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        admin.keys(["create", "--scope", "read", "--name", name])
    capsys.readouterr()

    admin.audit(["verify"])
    head = capsys.readouterr().out.split()[-1]
    admin.audit(["verify", "--head", head])
    admin.audit(["export"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]
    with closing(sqlite3.connect(settings.store / "registry.db")) as database, database:
        database.execute("UPDATE audit SET peer = 'else' WHERE seq = 2")
    with pytest.raises(SystemExit) as ended:
        admin.audit(["verify"])

    assert [row["seq"] for row in rows] == [1, 2, 3]
    assert f"{rows[-1]['seq']}:{rows[-1]['hash']}" == head
    assert ended.value.code == 1
    assert capsys.readouterr().out == "row 2: the row does not match its hash\n"


def test_no_torch_is_loaded_to_create_a_key() -> None:
    code = "import sys, server.cli.admin; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# --- beyond loopback ---


def test_a_server_without_keys_does_not_listen_beyond_loopback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(
        [*command, "--store", str(tmp_path), "--model", str(tmp_path)],
        capture_output=True,
        timeout=100,
    )

    said = done.stderr.decode()
    assert (done.returncode, said.count("\n")) == (2, 1), said
    assert "0.0.0.0 is not loopback" in said
    assert "foreword keys create" in said
    assert "--insecure-no-auth" in said


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_needs_no_key(address: str, settings: Settings, registry: Registry) -> None:
    start.check_not_open(settings, address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.1"])
def test_beyond_loopback_a_key_or_an_option_is_needed(
    address: str, settings: Settings, registry: Registry
) -> None:
    with pytest.raises(StartError):
        start.check_not_open(settings, address)

    insecure = settings.model_copy(update={"insecure_no_auth": True})
    start.check_not_open(insecure, address)
    open_keys(settings, registry).create(Grant(name="x", scopes=("read",)))
    start.check_not_open(settings, address)


# --- the pepper ---


def test_a_lost_pepper_is_not_replaced_while_there_are_keys(
    settings: Settings, registry: Registry
) -> None:
    open_keys(settings, registry).create(Grant(name="x", scopes=("read",)))
    (settings.store / "pepper").unlink()

    with pytest.raises(StorageFailure, match="cannot read the pepper"):
        open_keys(settings, registry)
    assert not (settings.store / "pepper").exists()


def test_a_configured_pepper_is_shared_and_never_created(
    settings: Settings, registry: Registry, tmp_path: Path
) -> None:
    mine = settings.model_copy(update={"key_pepper_file": tmp_path / "mine"})
    with pytest.raises(StorageFailure):
        open_keys(mine, registry)
    (tmp_path / "mine").write_text("x" * 40)
    (tmp_path / "mine").chmod(0o600)

    _, text = open_keys(mine, registry).create(Grant(name="x", scopes=("read",)))

    assert open_keys(mine, registry).verify(text.encode()) is not None
    assert not (settings.store / "pepper").exists()


def test_all_web_pages_need_a_key_but_listed_ones_do_not(
    settings: Settings, registry: Registry
) -> None:
    origins = {"cors_origins": "https://app.example,*", "insecure_no_auth": True}
    every = settings.model_copy(update=origins)
    with pytest.raises(StartError, match="every web page"):
        start.check_not_open(every, "127.0.0.1")

    listed = settings.model_copy(update={"cors_origins": "https://app.example"})
    start.check_not_open(listed, "127.0.0.1")
    open_keys(settings, registry).create(Grant(name="x", scopes=("read",)))
    start.check_not_open(every, "127.0.0.1")
