"""What a server holds of a shared registry: current within moments, and served in an outage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest

from prefix_store.definition import Definition
from prefix_store.errors import NothingActive, StorageFailure, UnknownTask, UnknownVersion
from prefix_store.manifest import Profile
from prefix_store.registry.keys import Grant, KeyStore
from prefix_store.registry.registry import Registry
from prefix_store.registry.replica import Replica
from prefix_store.testing import draft
from tests.postgres import Postgres

PEPPER = b"p" * 32


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.new_database()


@pytest.fixture
def here(url: str) -> Iterator[Registry]:
    registry = Registry(url)
    yield registry
    registry.close()


@contextmanager
def following(url: str, *, max_age_s: float = 3600) -> Iterator[Replica]:
    """Another server's."""
    registry = Registry(url)
    replica = Replica(registry, max_age_s=max_age_s)
    replica.start()
    yield replica
    replica.close()
    registry.close()


def seconds_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> float:
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < timeout_s, "it did not happen in time"
        time.sleep(0.001)
    return time.monotonic() - began_s


def version(replica: Replica, task: str = "x") -> int | None:
    try:
        return replica.serving_version(task, None, "").manifest.version
    except (UnknownTask, NothingActive):
        return None


def test_every_change_elsewhere_is_seen_without_asking(
    here: Registry, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefix_store.registry.replica.POLL_S", 3600)
    with following(url) as there:
        here.create_task("x", Profile())
        for number in (1, 2):
            here.add_version("x", draft(str(number)), activate=True, create=False)
            seconds_until(lambda n=number: version(there) == n)
        redefined = here.get_version("x", 2).redefined(Definition(chat=True))
        here.set_profile("x", Profile(chat=True), redefined=redefined)
        seconds_until(lambda: there.serving_version("x", None, "").manifest.definition.chat)
        here.set_traffic("x", {1: 1, 2: 1})
        seconds_until(
            lambda: (
                {there.serving_version("x", None, k).manifest.version for k in "abcdef"} == {1, 2}
            )
        )
        here.rollback("x")
        here.delete_version("x", 1)
        with pytest.raises(UnknownVersion):
            seconds_until(lambda: there.serving_version("x", 1, "") is None)
        here.delete_task("x")
        seconds_until(lambda: version(there) is None)


def test_where_no_word_comes_through_asking_is_enough(
    here: Registry, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler that lends connections by transaction."""
    monkeypatch.setattr(
        "prefix_store.database.postgres.listening", lambda _: nullcontext(time.sleep)
    )
    with following(url) as there:
        for number in (1, 2, 3):
            here.add_version("x", draft(str(number)), activate=True, create=True)
            seconds_until(lambda n=number: version(there) == n)


def test_a_change_is_held_here_when_it_returns(here: Registry) -> None:
    replica = Replica(here, max_age_s=3600)  # not started: it neither listens nor polls
    keys = KeyStore(here.database, PEPPER, replica)

    for number in range(1, 6):
        here.add_version("x", draft(str(number)), activate=True, create=True)
        assert version(replica) == number
    key, text = keys.create(Grant(name="x", scopes=("read",)))
    assert keys.exist()
    assert keys.verify(text.encode()) == key
    keys.revoke(key.id)
    assert keys.verify(text.encode()) is None


def test_keys_made_and_revoked_elsewhere_hold_here(here: Registry, url: str) -> None:
    with following(url) as there:
        elsewhere = KeyStore(here.database, PEPPER)
        keys = KeyStore(here.database, PEPPER, there)
        assert not keys.exist()
        key, text = elsewhere.create(Grant(name="x", scopes=("read",)))
        seconds_until(keys.exist)
        attempt = keys.read(text.encode())
        assert keys.check(attempt, keys.find(attempt)) == key
        elsewhere.revoke(key.id)
        seconds_until(lambda: keys.check(attempt, keys.find(attempt)) is None)


def test_an_outage_is_told_and_what_is_held_is_served(
    here: Registry, url: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefix_store.registry.replica.UNREACHABLE_AFTER_S", 1.0)
    here.add_version("x", draft(), activate=True, create=True)
    with following(url) as there:
        there.check()
        postgres.stop()
        try:
            seconds_until(lambda: there.age_s() > 1)
            assert version(there) == 1
            with pytest.raises(StorageFailure, match="as of 1 s ago"):
                there.check()
            for unknown in (("y", None), ("x", 2)):
                with pytest.raises(StorageFailure):  # it may be there by now
                    there.serving_version(*unknown, "")
            with pytest.raises(StorageFailure):
                here.activate("x", 1)
        finally:
            postgres.start()
        seconds_until(lambda: there.age_s() < 1)
        there.check()
        here.add_version("x", draft("2"), activate=True, create=False)
        seconds_until(lambda: version(there) == 2)


def test_a_database_that_hangs_holds_up_no_request(
    here: Registry, url: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefix_store.registry.replica.UNREACHABLE_AFTER_S", 1.0)
    here.add_version("x", draft(), activate=True, create=True)
    with following(url) as there:
        with postgres.frozen():
            seconds_until(lambda: there.age_s() > 1)
            began_s = time.monotonic()
            for _ in range(100):
                assert version(there) == 1
            with pytest.raises(StorageFailure, match="does not answer"):
                there.check()
            assert time.monotonic() - began_s < 10  # a request that waits does so for each
        seconds_until(lambda: there.age_s() < 1)
        there.check()


def test_what_is_too_old_is_not_served(here: Registry) -> None:
    here.add_version("x", draft(), activate=True, create=True)
    replica = Replica(here, max_age_s=2.0)
    keys = KeyStore(here.database, PEPPER, replica)
    _, text = keys.create(Grant(name="x", scopes=("read",)))

    assert version(replica) == 1
    time.sleep(2.1)
    assert replica.is_stale()
    for ask in (lambda: version(replica), lambda: keys.verify(text.encode())):
        with pytest.raises(StorageFailure, match="could not be read"):
            ask()
    replica.refresh()
    assert version(replica) == 1


def test_a_database_put_back_from_a_backup_is_read_anew(
    here: Registry, url: str, postgres: Postgres
) -> None:
    for number in range(3):
        here.add_version("x", draft(str(number)), activate=True, create=True)
    replica = Replica(here, max_age_s=3600)
    other = Registry(postgres.new_database())
    for _ in range(3):
        other.add_version("y", draft(), activate=True, create=True)
    with here.database.engine.begin() as into, other.database.engine.connect() as source:
        for table in ("audit", "audit_head", "tasks", "versions", "activations"):
            into.exec_driver_sql(f"DELETE FROM {table}")
            for row in source.exec_driver_sql(f"SELECT * FROM {table}"):
                marks = ", ".join(["%s"] * len(row))
                into.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", tuple(row))
    other.close()
    replica.refresh()

    assert (version(replica, "x"), version(replica, "y")) == (None, 3)


def test_a_row_that_this_server_cannot_read_spoils_no_other(here: Registry, url: str) -> None:
    for task in ("x", "y"):
        here.add_version(task, draft(), activate=True, create=True)
    with here.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE versions SET manifest = '{}' WHERE task = 'x'")
    replica = Replica(here, max_age_s=3600)

    assert version(replica, "y") == 1
    with pytest.raises(ValueError, match="validation error"):
        version(replica, "x")
