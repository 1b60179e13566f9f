"""A shared registry as people name it: what is refused at once, and that no password is shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy.exc import ProgrammingError

from prefix_store.errors import StorageFailure
from prefix_store.registry.keys import Grant
from server.cli.admin import audit, keys
from server.cli.app import StartError
from server.cli.options import read_settings
from server.settings import Settings
from server.storage import open_blobs, open_storage
from tests.postgres import PASSWORD, Postgres, running_postgres

URL = "postgresql+psycopg://foreword:hush-hush@127.0.0.1:1/foreword"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def pepper(tmp_path: Path) -> Path:
    path = tmp_path / "pepper"
    path.write_text("p" * 32)
    path.chmod(0o600)
    return path


@pytest.fixture
def shared(postgres: Postgres, pepper: Path, tmp_path: Path) -> Settings:
    url = postgres.new_database(is_migrated=False)
    return Settings(
        _cli_parse_args=False, store=tmp_path / "store", registry=url, key_pepper_file=pepper
    )


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///hush-hush.db",
        "mysql://me:hush-hush@host/db",
        "hush-hush",
        URL.replace(":1/", ":hush/"),
    ],
)
def test_what_is_no_postgresql_or_has_no_pepper_is_refused_unshown(url: str) -> None:
    with pytest.raises(StartError) as refusal:
        read_settings(["--registry", url])

    assert "hush" not in str(refusal.value)


def test_settings_do_not_show_the_password(pepper: Path) -> None:
    settings = read_settings(["--registry", URL, "--key-pepper-file", str(pepper)])

    assert "hush" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert settings.registry is not None


def test_a_registry_that_cannot_be_opened_is_one_line_without_the_password(
    pepper: Path, tmp_path: Path
) -> None:
    variables = {"FOREWORD_REGISTRY": URL, "FOREWORD_KEY_PEPPER_FILE": str(pepper)}
    ended = subprocess.run(
        [sys.executable, "-m", "server", "--store", str(tmp_path / "store")],
        env=os.environ | variables, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "hush" not in ended.stderr + ended.stdout


def test_an_outage_is_logged_without_the_password(
    shared: Settings, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_storage(shared)) as storage:
        assert storage.replica is not None
        postgres.stop()
        try:
            with pytest.raises(StorageFailure) as refusal:
                storage.keys.create(Grant(name="x", scopes=("read",)))
            with pytest.raises(StorageFailure):
                open_storage(shared)
            storage.replica.start()
            storage.replica.close()
        finally:
            postgres.start()

    assert "served from the replica" in caplog.text
    assert PASSWORD not in caplog.text + str(refusal.value)
    assert PASSWORD.replace(" ", "%20") not in caplog.text + str(refusal.value)


def test_keys_and_audit_from_the_command_line(
    shared: Settings,
    pepper: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert shared.registry is not None
    monkeypatch.setenv("FOREWORD_REGISTRY", shared.registry.get_secret_value())
    monkeypatch.setenv("FOREWORD_KEY_PEPPER_FILE", str(pepper))
    monkeypatch.setenv("FOREWORD_STORE", str(shared.store))
    keys(["create", "--name", "admin", "--scope", "admin"])
    text = capsys.readouterr().out.strip()
    keys(["list"])
    audit(["verify"])
    audit(["export"])

    out = capsys.readouterr().out
    with closing(open_storage(shared)) as storage:
        assert storage.keys.verify(text.encode()) is not None
    assert "1 rows, none changed" in out
    assert json.loads(out.splitlines()[-1])["action"] == "create_key"


def test_a_lost_database_is_not_replaced_by_an_empty_one(
    shared: Settings, postgres: Postgres
) -> None:
    shared.store.mkdir()
    open_blobs(shared).put(b"hello")

    with pytest.raises(StorageFailure, match="missing or empty"):
        open_storage(shared)


def test_a_role_that_cannot_rewrite_the_audit_is_enough(
    shared: Settings, postgres: Postgres
) -> None:
    """As docs/operations.md grants it."""
    assert shared.registry is not None
    open_storage(shared).close()
    url = shared.registry.get_secret_value()
    documented = Path(__file__).parents[2] / "docs" / "operations.md"
    block = re.search(r"^```sql.*?\n(.*?)```", documented.read_text(), re.M | re.S)
    assert block is not None
    grants = block[1]
    postgres.execute(url, f"CREATE ROLE modest LOGIN PASSWORD '{PASSWORD}'")
    postgres.execute(url, re.sub("(TO|FROM) foreword", r"\1 modest", grants))

    other = SecretStr(url.replace("//foreword", "//modest"))
    modest = shared.model_copy(update={"registry": other})
    grant = Grant(name="x", scopes=("admin",))
    with closing(open_storage(modest)) as storage:
        key, _ = storage.keys.create(grant)
        storage.keys.create(grant)
        storage.keys.revoke(key.id)
        storage.store.collect_garbage(3600)
        assert storage.audit.verify() is None
        for forbidden in ("UPDATE audit SET action = 'nothing'", "DELETE FROM audit"):
            with (
                storage.registry.database.engine.connect() as connection,
                pytest.raises(ProgrammingError, match="permission denied"),
            ):
                connection.exec_driver_sql(forbidden)
