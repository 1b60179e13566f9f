"""Failed uploads leave no blobs, and never delete the blobs of others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from math import inf
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from prefix_store.blobs.blobs import BlobStore, FileBlobStore
from prefix_store.blobs.remote import RemoteBlobStore
from prefix_store.digest import Digest
from prefix_store.errors import QuotaExceeded, StorageFailure, StoreFull
from prefix_store.registry.quotas import Quotas
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from prefix_store.testing import draft
from tests.sqlite import new_sqlite

CONTENT = "content"
DATA = CONTENT.encode()
DIGEST = Digest.of(DATA)


@pytest.fixture(params=["files", "remote"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "files":
        return FileBlobStore(tmp_path / "blobs")
    return RemoteBlobStore(f"memory://{uuid4().hex}")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(new_sqlite(tmp_path))
    yield registry
    registry.close()


@pytest.fixture
def store(blobs: BlobStore, registry: Registry) -> PrefixStore:
    return PrefixStore(blobs, registry)


def push(store: PrefixStore) -> None:
    store.push("x", draft(CONTENT), activate=True, create=True)


def test_an_upload_that_comes_to_nothing_leaves_nothing(
    store: PrefixStore, blobs: BlobStore
) -> None:
    lease = store.lease()
    for content in (DATA, b"embeddings", DATA):
        store.put_bytes(content, lease)
    assert len({*blobs}) == 2

    lease.release()

    assert [*blobs] == []


def test_what_became_a_version_stays(store: PrefixStore, blobs: BlobStore) -> None:
    for _ in range(2):  # the second is a rehearsal of the same
        lease = store.lease()
        store.put_bytes(DATA, lease)
        push(store)
        lease.release()
    store.registry.delete_task("x")
    rehearsal = store.lease()
    store.put_bytes(DATA, rehearsal)
    rehearsal.release()

    assert [*blobs] == [DIGEST]  # requests on the deleted version may still run


def test_the_last_upload_of_the_same_bytes_deletes_them(
    store: PrefixStore, blobs: BlobStore
) -> None:
    first, second = store.lease(), store.lease()
    for lease in (first, second):
        store.put_bytes(DATA, lease)

    first.release()
    assert blobs.exists(DIGEST)
    second.release()
    assert not blobs.exists(DIGEST)


def test_a_blob_that_is_put_after_its_upload_was_cancelled_is_deleted(
    store: PrefixStore, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread cannot be interrupted while it writes."""
    lease, put = store.lease(), blobs.put

    def put_late(data: bytes) -> Digest:
        lease.release()
        return put(data)

    monkeypatch.setattr(blobs, "put", put_late)
    store.put_bytes(DATA, lease)

    assert [*blobs] == []
    assert store._leases.digests == set()


def test_blobs_of_running_uploads_count_until_they_are_versions_or_gone(
    blobs: BlobStore, tmp_path: Path
) -> None:
    registry = Registry(new_sqlite(tmp_path), quotas=Quotas(max_store_bytes=2 * len(DATA)))
    store = PrefixStore(blobs, registry)
    leases = [store.lease() for _ in range(3)]
    store.put_bytes(DATA, leases[0])
    store.put_bytes(DATA, leases[1])  # the same bytes count once
    store.check_room(len(DATA))
    store.put_bytes(b"another", leases[2])

    with pytest.raises(StoreFull):
        store.check_room(1)
    push(store)
    with pytest.raises(StoreFull):  # as a version, and not twice
        store.check_room(1)
    for lease in leases:
        lease.release()
    store.check_room(len(DATA))
    registry.close()


def test_blobs_that_a_crash_left_count_until_they_are_collected(
    blobs: BlobStore, tmp_path: Path
) -> None:
    registry = Registry(new_sqlite(tmp_path), quotas=Quotas(max_store_bytes=len(DATA)))
    PrefixStore(blobs, registry).lease().put(DATA)  # its process is killed
    store = PrefixStore(blobs, registry)

    store.collect_garbage(3600.0)
    with pytest.raises(StoreFull):
        store.check_room(1)
    assert store.collect_garbage(0.0) == 1

    store.check_room(len(DATA))
    registry.close()


def test_garbage_collection_spares_the_blobs_of_running_uploads(
    store: PrefixStore, blobs: BlobStore
) -> None:
    """However long their golden prompts take."""
    lease = store.lease()
    store.put_bytes(DATA, lease)

    assert store.collect_garbage(0.0) == 0
    push(store)
    lease.release()

    assert [*blobs] == [DIGEST]


def test_what_was_there_before_is_not_ours_to_delete(store: PrefixStore, blobs: BlobStore) -> None:
    blobs.put(DATA)  # an upload of another server, say
    lease = store.lease()
    store.put_bytes(DATA, lease)

    lease.release()

    assert blobs.exists(DIGEST)


def test_what_somebody_has_put_since_is_his(tmp_path: Path, registry: Registry) -> None:
    blobs = FileBlobStore(tmp_path / "blobs")
    lease = PrefixStore(blobs, registry).lease()
    lease.put(DATA)
    [path] = (tmp_path / "blobs").glob("sha256/??/*")
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 5))  # as a `put` does

    lease.release()

    assert blobs.exists(DIGEST)


def test_what_the_engine_has_put_goes_too_also_where_it_put_it_twice(
    store: PrefixStore, blobs: BlobStore
) -> None:
    first, second = store.lease(), store.lease()
    blobs.put(DATA)
    first.adopt(DIGEST, blobs.put_at(DIGEST), len(DATA), is_new=True)
    blobs.put(DATA)
    second.adopt(DIGEST, blobs.put_at(DIGEST), len(DATA), is_new=False)

    first.release()
    assert blobs.exists(DIGEST)
    second.release()
    assert not blobs.exists(DIGEST)


def test_what_the_engine_has_put_for_another_upload_stays_until_that_acquires_it(
    store: PrefixStore, blobs: BlobStore
) -> None:
    first, second = store.lease(), store.lease()
    blobs.put(DATA)
    put_at = blobs.put_at(DIGEST)
    while blobs.put_at(DIGEST) == put_at:
        blobs.put(DATA)
    first.adopt(DIGEST, put_at, len(DATA), is_new=True)

    first.release()
    assert blobs.exists(DIGEST)
    second.adopt(DIGEST, blobs.put_at(DIGEST), len(DATA), is_new=False)
    second.release()
    assert not blobs.exists(DIGEST)


def test_an_outage_leaves_it_to_garbage_collection(
    store: PrefixStore, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = store.lease()
    store.put_bytes(DATA, lease)

    def away(digest: Digest, *, put_by: float = inf) -> bool:
        raise StorageFailure("away")

    with monkeypatch.context() as outage:
        outage.setattr(blobs, "delete", away)
        lease.release()

    assert blobs.exists(DIGEST)
    assert store.collect_garbage(0.0) == 1


def test_racing_uploads_never_take_a_blob_from_a_version(tmp_path: Path) -> None:
    """Some come to nothing, some are pushed; what a version refers to is there, all else is not."""
    registry = Registry(
        f"sqlite:///{tmp_path}/registry.db", quotas=Quotas(max_versions_per_task=12)
    )
    blobs = FileBlobStore(tmp_path / "blobs")
    store = PrefixStore(blobs, registry)

    def upload(seed: int) -> None:
        random = Random(seed)
        for _ in range(25):
            content, lease = f"content {random.randrange(3)}", store.lease()
            digest = store.put_bytes(content.encode(), lease)
            if random.random() < 0.1:
                try:
                    store.push(content[-1], draft(content), activate=False, create=True)
                except QuotaExceeded:
                    pass
                else:
                    assert blobs.exists(digest)
            lease.release()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(upload, range(6)))

    assert {*blobs} == registry.digests()
    registry.close()


def test_what_another_process_puts_while_a_deletion_waits_stays(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large upload holds the lock that deletions wait for; meanwhile, the same bytes again."""
    blobs, other = FileBlobStore(tmp_path / "blobs"), FileBlobStore(tmp_path / "blobs")
    lease = PrefixStore(blobs, registry).lease()
    lease.put(DATA)
    locked = blobs._locked

    def slowly_locked(kind: int) -> AbstractContextManager[None]:
        time.sleep(0.05)
        other.put(DATA)
        return locked(kind)

    monkeypatch.setattr(blobs, "_locked", slowly_locked)
    lease.release()

    assert other.exists(DIGEST)
