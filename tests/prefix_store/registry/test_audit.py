from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete, insert, select

from prefix_store.database.schema import audit, metadata
from prefix_store.digest import Digest
from prefix_store.errors import PrefixStoreError, StorageFailure
from prefix_store.manifest import Profile
from prefix_store.registry.audit import Actor, AuditLog, Broken, Entry, Head
from prefix_store.registry.keys import Grant, KeyStore
from prefix_store.registry.registry import Registry
from prefix_store.registry.rows import profile_json
from prefix_store.testing import draft

ME = Actor("key1", "10.0.0.1", "request-1")


@pytest.fixture
def log(registry: Registry) -> AuditLog:
    return AuditLog(registry.database)


def execute(registry: Registry, statement: str, *values: object) -> int:
    """Past everything that is ours."""
    engine = registry.database.engine
    mark = "?" if engine.dialect.paramstyle == "qmark" else "%s"
    with engine.begin() as connection:
        return connection.exec_driver_sql(statement.replace("?", mark), values).rowcount


def fill(registry: Registry, num_rows: int) -> None:
    for i in range(num_rows):
        registry.add_version("x", draft(str(i)), activate=bool(i % 2), create=True, by=ME)


def test_an_empty_audit_is_whole(log: AuditLog) -> None:
    assert log.entries() == []
    assert log.head() == Head(0, "0" * 64)
    assert log.verify() is None


def changes(registry: Registry) -> list[tuple[str, Callable[[], object]]]:
    """Every change there is, in an order in which each one works."""
    keys = KeyStore(registry.database, b"p" * 32)
    profile = Profile(template="{prompt}")
    grant = Grant(name="x", scopes=("read",))
    return [
        ("create_task", lambda: registry.create_task("x", Profile(), ME)),
        ("set_profile", lambda: registry.set_profile("x", profile, by=ME)),
        ("push_and_activate",
         lambda: registry.add_version("x", draft("1"), activate=True, create=False, by=ME)),
        ("push", lambda: registry.add_version("x", draft("2"), activate=False, create=True, by=ME)),
        ("push", lambda: registry.add_version("y", draft("2"), activate=False, create=True, by=ME)),
        ("activate", lambda: registry.activate("x", 2, ME)),
        ("rollback", lambda: registry.rollback("x", ME)),
        ("delete_version", lambda: registry.delete_version("x", 2, by=ME)),
        ("delete_task", lambda: registry.delete_task("x", by=ME)),
        ("create_key", lambda: keys.create(grant, ME)),
        ("revoke_key", lambda: keys.revoke(keys.list()[0].id, ME)),
    ]  # fmt: skip


def test_every_change_is_one_row_that_says_who_and_what(registry: Registry, log: AuditLog) -> None:
    for number, (action, change) in enumerate(changes(registry), start=1):
        change()
        rows = log.entries()
        assert len(rows) == number, action
        row = rows[-1]
        assert (row.action, row.by, row.peer, row.request_id) == (action, *astuple(ME))
        assert row.seq == number
    tasks = [(row.task, row.version) for row in rows]
    assert tasks == [
        ("x", None), ("x", None), ("x", 1), ("x", 2), ("y", 1), ("x", 2), ("x", 1), ("x", 2),
        ("x", None), (None, None), (None, None),
    ]  # fmt: skip
    assert rows[2].digest == draft("1").digest
    profile = profile_json(Profile(template="{prompt}")).encode()
    assert rows[1].digest == str(Digest.of(profile))
    assert rows[-1].key == rows[-2].key is not None
    assert log.verify() is None


def astuple(actor: Actor) -> tuple[str | None, ...]:
    return actor.key, actor.peer, actor.request_id


@pytest.mark.parametrize("index", range(11))
def test_a_change_that_cannot_be_audited_does_not_happen(
    registry: Registry, log: AuditLog, index: int
) -> None:
    for _, change in changes(registry)[:index]:
        change()
    head = log.head()
    execute(registry, "DELETE FROM audit_head")
    before = dump(registry)

    with pytest.raises(StorageFailure, match="the end of the audit is missing"):
        changes(registry)[index][1]()

    assert dump(registry) == before
    execute(registry, "INSERT INTO audit_head VALUES (1, ?, ?)", head.seq, head.hash)
    changes(registry)[index][1]()
    assert len(log.entries()) == index + 1


def dump(registry: Registry) -> list[object]:
    with registry.database.read() as connection:
        return [sorted(connection.execute(select(table))) for table in metadata.sorted_tables]


def test_what_is_refused_or_changes_nothing_leaves_no_row(
    registry: Registry, log: AuditLog
) -> None:
    fill(registry, 2)
    registry.activate("x", 2, ME)  # it is active
    for refused in (
        lambda: registry.create_task("x", Profile(), ME),
        lambda: registry.set_profile("nope", Profile(), by=ME),
        lambda: registry.delete_version("x", 2, by=ME),
        lambda: registry.rollback("x", ME),
        lambda: registry.activate("x", 9, ME),
    ):
        with pytest.raises(PrefixStoreError):
            refused()

    assert len(log.entries()) == 2


def test_threads_that_change_at_once_make_one_chain(registry: Registry, log: AuditLog) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: registry.create_task(f"t{i}", Profile(), ME), range(40)))

    assert [row.seq for row in log.entries()] == list(range(1, 41))
    assert log.verify() is None


def test_entries_come_in_pages(registry: Registry, log: AuditLog) -> None:
    fill(registry, 5)

    assert [row.seq for row in log.entries(limit=2)] == [1, 2]
    assert [row.seq for row in log.entries(after=2, limit=9)] == [3, 4, 5]


def test_a_hundred_random_tamperings_are_found_a_hundred_times(
    registry: Registry, log: AuditLog
) -> None:
    num_rows = 30
    fill(registry, num_rows)
    with registry.database.read() as connection:
        whole = [row._asdict() for row in connection.execute(select(audit))]
    found = 0
    for seed in range(100):
        rng = random.Random(seed)
        seq = rng.randint(1, num_rows)
        tamper = rng.choice([change_a_field, delete_a_row, swap_two_rows, insert_a_row, rehash])
        first = tamper(registry, rng, seq, num_rows)
        broken = log.verify()
        assert broken is not None, (seed, tamper.__name__)
        assert broken.seq == first, (seed, tamper.__name__, broken)
        found += 1
        with registry.database.engine.begin() as connection:
            connection.execute(delete(audit))
            connection.execute(insert(audit), whole)
        assert log.verify() is None
    assert found == 100


def change_a_field(registry: Registry, rng: random.Random, seq: int, num_rows: int) -> int:
    column = rng.choice([name for name in Entry.model_fields if name != "seq"])
    other = {"version": 99, "hash": "f" * 64, "prev_hash": "e" * 64}.get(column, "else")
    value = rng.choice([other, None]) if column in ("by", "peer", "request_id") else other
    assert execute(registry, f'UPDATE audit SET "{column}" = ? WHERE seq = ?', value, seq) == 1
    return seq


def delete_a_row(registry: Registry, rng: random.Random, seq: int, num_rows: int) -> int:
    execute(registry, "DELETE FROM audit WHERE seq = ?", seq)
    if rng.random() < 0.5:  # and close the gap
        for later in range(seq + 1, num_rows + 1):
            execute(registry, "UPDATE audit SET seq = ? WHERE seq = ?", later - 1, later)
    return seq


def swap_two_rows(registry: Registry, rng: random.Random, seq: int, num_rows: int) -> int:
    other = seq % num_rows + 1
    for old, new in ((seq, 1000), (other, seq), (1000, other)):
        execute(registry, "UPDATE audit SET seq = ? WHERE seq = ?", new, old)
    return min(seq, other)


def insert_a_row(registry: Registry, rng: random.Random, seq: int, num_rows: int) -> int:
    execute(
        registry,
        "INSERT INTO audit SELECT ?, at, by, peer, request_id, action, task, version, digest, "
        '"key", prev_hash, hash FROM audit WHERE seq = ?',
        num_rows + 1,
        seq,
    )
    return num_rows + 1


def rehash(registry: Registry, rng: random.Random, seq: int, num_rows: int) -> int:
    """Cut off the end, from a row on; the rest is a whole chain."""
    execute(registry, "DELETE FROM audit WHERE seq >= ?", seq)
    return seq


def test_types_that_nobody_expects_are_a_broken_row(registry: Registry, log: AuditLog) -> None:
    if registry.database.engine.dialect.name != "sqlite":
        pytest.skip("other databases keep to the types of their columns")
    fill(registry, 3)
    execute(registry, "UPDATE audit SET task = x'ff00', version = 1.5 WHERE seq = 2")

    assert log.verify() == Broken(2, "the row does not match its hash")
    assert len(log.entries()) == 3


def test_without_its_end_the_chain_is_broken(registry: Registry, log: AuditLog) -> None:
    fill(registry, 3)
    execute(registry, "DELETE FROM audit_head")

    assert log.verify() == Broken(1, "the end of the audit is missing")
    with pytest.raises(StorageFailure):
        log.head()


def test_only_an_anchor_shows_that_the_end_was_cut_off_together_with_its_record(
    registry: Registry, log: AuditLog
) -> None:
    fill(registry, 5)
    anchor = log.head()
    rows = log.entries()
    execute(registry, "DELETE FROM audit WHERE seq > 3")
    execute(registry, "UPDATE audit_head SET seq = 3, hash = ?", rows[2].hash)

    assert log.verify() is None  # as documented: write access to the database permits that
    assert log.verify(anchor) == Broken(4, "the anchor is row 5")
    fill(registry, 2)
    assert log.verify(anchor) == Broken(5, "the row does not match the anchor")
    assert log.verify(Head(3, rows[2].hash)) is None
