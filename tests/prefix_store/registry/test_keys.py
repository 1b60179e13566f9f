"""API keys: creation, verification, revocation."""

from __future__ import annotations

import hmac
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pydantic import ValidationError
from sqlalchemy import func, select, update

from prefix_store.database.schema import metadata
from prefix_store.errors import LastAdminKey, UnknownKey
from prefix_store.manifest import Profile
from prefix_store.reference import matches
from prefix_store.registry import keys as keys_module
from prefix_store.registry.audit import Actor, AuditLog
from prefix_store.registry.keys import CACHE_S, Grant, KeyStore
from prefix_store.registry.registry import Registry

PEPPER = b"p" * 32
ADMIN = Grant(name="admin", scopes=("admin",))
READER = Grant(name="reader", scopes=("read",))


@pytest.fixture
def keys(registry: Registry) -> KeyStore:
    return KeyStore(registry.database, PEPPER)


def test_a_key_is_shown_once_and_works(keys: KeyStore) -> None:
    assert not keys.exist()

    key, text = keys.create(READER, Actor(key="me"))

    assert keys.exist()
    assert re.fullmatch(rf"fwd_{key.id}_[A-Za-z0-9_-]{{43}}_[0-9a-f]{{8}}", text)
    assert keys.list() == [key]
    assert keys.verify(text.encode()) == key
    assert (key.name, key.created_by, key.revoked_at) == ("reader", "me", None)


def test_keys_differ_and_neither_opens_the_other(keys: KeyStore) -> None:
    made = [keys.create(READER) for _ in range(50)]

    assert len({key.id for key, _ in made}) == len({text for _, text in made}) == 50
    assert all(keys.verify(text.encode()) == key for key, text in made)


def wrong_keys(text: str, other: str) -> dict[str, bytes]:
    _, id, secret = text.split("_", 2)
    flipped = text.translate({ord(text[30]): "A" if text[30] != "A" else "B"})
    whole = keys_module.zlib.crc32
    swapped = f"fwd_{id}_{other[17:60]}"
    return {
        "empty": b"",
        "truncated": text[:-1].encode(),
        "longer": text.encode() + b"0",
        "one character": flipped.encode(),
        "another's secret": f"{swapped}_{whole(swapped.encode()):08x}".encode(),
        "another's id": f"fwd_{other[4:16]}_{secret}".encode(),
        "upper case": text.upper().encode(),
        "only the id": f"fwd_{id}".encode(),
        "cyrillic": "ключ".encode(),
        "latin-1": b"\xff\xfe" * 30,
        "nul": text.encode().replace(b"_", b"\0"),
        "a line end": text.encode() + b"\n",
        "megabyte": b"fwd_" + b"a" * (1 << 20),
    }


def test_nothing_but_the_key_is_the_key(keys: KeyStore) -> None:
    (_, text), (_, other) = keys.create(READER), keys.create(READER)

    found = {name: keys.verify(wrong) for name, wrong in wrong_keys(text, other).items()}
    assert found == dict.fromkeys(found)


@pytest.mark.parametrize(
    "path", ["right", "remembered", "revoked", "expired", "unknown id", "another's secret",
             "only the id", "cyrillic", "empty", "megabyte"],
)  # fmt: skip
def test_every_attempt_costs_one_hmac_and_one_comparison(
    keys: KeyStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired = READER.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(seconds=1)})
    (key, text), (_, other) = keys.create(READER), keys.create(READER)
    if path == "remembered":
        keys.verify(text.encode())
    if path == "revoked":
        keys.revoke(key.id)
    if path == "expired":
        _, text = keys.create(expired)
    unknown = f"fwd_{'a' * 12}_{'b' * 43}"
    tried = wrong_keys(text, other) | {
        "unknown id": f"{unknown}_{keys_module.zlib.crc32(unknown.encode()):08x}".encode()
    }
    calls: Counter[str] = Counter()

    def counted(name: str) -> object:
        def call(*args: bytes) -> object:
            calls[name] += 1
            if name == "compare_digest":
                assert [len(arg) for arg in args] == [32, 32]
            return getattr(hmac, name)(*args)

        return call

    counting = {name: counted(name) for name in ("digest", "compare_digest")}
    monkeypatch.setattr(keys_module, "hmac", SimpleNamespace(**counting))
    found = keys.verify(tried.get(path, text.encode()))

    assert (found is not None) == (path in ("right", "remembered"))
    assert calls == {"digest": 1, "compare_digest": 1}


def test_a_key_ends_when_it_says(keys: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = datetime(2030, 1, 1, tzinfo=UTC)
    _, text = keys.create(READER.model_copy(update={"expires_at": ends}))

    valid = []
    for seconds in (-3600, -1, 0, 1, 365 * 86400):  # also while it is remembered
        monkeypatch.setattr(
            "prefix_store.registry.rows.now", lambda s=seconds: ends + timedelta(seconds=s)
        )
        valid.append(keys.verify(text.encode()) is not None)
    assert valid == [True, True, False, False, False]


def test_a_revoked_key_is_refused_here_at_once_and_elsewhere_soon(
    keys: KeyStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_registry = Registry(database_url)
    elsewhere = KeyStore(other_registry.database, PEPPER)
    key, text = keys.create(READER)
    now_s = keys_module.time.monotonic()
    assert keys.verify(text.encode()) == elsewhere.verify(text.encode()) == key

    keys.revoke(key.id)

    assert keys.verify(text.encode()) is None
    assert elsewhere.verify(text.encode()) == key  # it is remembered
    assert CACHE_S <= 10
    monkeypatch.setattr(keys_module.time, "monotonic", lambda: now_s + CACHE_S + 1)
    assert elsewhere.verify(text.encode()) is None
    other_registry.close()


def test_no_more_than_so_many_keys_are_remembered(
    keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "_MAX_REMEMBERED", 3)
    made = [keys.create(READER)[1].encode() for _ in range(6)]

    assert all(keys.verify(text) for text in made)
    assert len(keys._remembered) == 3
    assert keys.remembered(keys.read(made[0])) is None
    assert keys.remembered(keys.read(made[-1])) is not None


def test_a_revocation_is_for_good_and_counts_once(keys: KeyStore, registry: Registry) -> None:
    key, _ = keys.create(READER)

    keys.revoke(key.id)
    first = keys.list()[0].revoked_at
    keys.revoke(key.id)

    assert keys.list()[0].revoked_at == first is not None
    assert [e.action for e in AuditLog(registry.database).entries()] == ["create_key", "revoke_key"]
    assert keys.exist()  # the server stays closed
    with pytest.raises(UnknownKey):
        keys.revoke("a" * 12)


def test_the_last_admin_key_stays(keys: KeyStore) -> None:
    ended = ADMIN.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(days=1)})
    keys.create(ended)
    keys.create(READER)
    first, _ = keys.create(ADMIN)

    with pytest.raises(LastAdminKey):
        keys.revoke(first.id)
    second, _ = keys.create(ADMIN)
    keys.revoke(first.id)
    with pytest.raises(LastAdminKey):
        keys.revoke(second.id)


def test_of_two_admins_that_revoke_each_other_one_stays(keys: KeyStore) -> None:
    ids = [keys.create(ADMIN)[0].id for _ in range(8)]

    def revoke(id: str) -> bool:
        try:
            keys.revoke(id)
        except LastAdminKey:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(revoke, ids)) == 7


def test_the_database_holds_no_key_and_another_pepper_opens_none(
    keys: KeyStore, registry: Registry
) -> None:
    made = [keys.create(READER)[1] for _ in range(5)]
    for text in made:
        keys.verify(text.encode())

    with registry.database.read() as connection:
        tables = [connection.execute(select(table)).all() for table in metadata.sorted_tables]
    dump = repr(tables).encode()
    assert keys.list()[0].id.encode() in dump
    for text in made:
        assert text.encode() not in dump
        assert text.split("_", 2)[2][:43].encode() not in dump
    stolen = KeyStore(registry.database, b"q" * 32)
    assert [stolen.verify(text.encode()) for text in made] == [None] * 5


@pytest.mark.parametrize(
    "grant",
    [
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": ["admin"], "tasks": ["a-*"]},
        {"tasks": []},
        {"tasks": ["../*"]},
        {"tasks": ["[a]"]},
        {"tasks": ["a\n"]},
        {"name": ""},
        {"expires_at": "2030-01-01T00:00:00"},
        {"requests_per_s": 0},
        {"requests_per_s": 5e-324},
        {"requests_per_s": float("nan")},
        {"burst": 0},
        {"max_concurrency": -1},
        {"root": True},
    ],
)
def test_a_grant_that_makes_no_sense_is_refused(grant: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Grant.model_validate({"name": "x", "scopes": ["read"]} | grant)


def test_a_rate_that_is_too_small_to_be_made_now_is_still_read(
    keys: KeyStore, registry: Registry
) -> None:
    made, text = keys.create(Grant(name="x", scopes=("read",), requests_per_s=1))
    table = metadata.tables["keys"]
    with registry.database.write() as connection:
        grant = table.c.grant
        connection.execute(update(table).values(grant=func.replace(grant, "1.0", "5e-324")))

    found = keys.verify(text.encode())

    assert found == made.model_copy(update={"requests_per_s": 5e-324}) == keys.list()[0]


NAMES = ["a", "b", "ab", "a_b", "axb", "a-b", "abc", "b-a", "0"]


@given(globs=st.lists(st.text("ab_*?-", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_database_and_the_code_agree_on_globs(globs: list[str], many: Registry) -> None:
    expected = sorted(name for name in NAMES if matches(globs, name))

    assert [task.name for task in many.list_tasks(globs=globs)] == expected


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    registry = Registry(f"sqlite:///{tmp_path_factory.mktemp('many') / 'registry.db'}")
    for name in NAMES:
        registry.create_task(name, Profile())
    yield registry
    registry.close()
