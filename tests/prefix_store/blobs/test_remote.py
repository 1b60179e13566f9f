"""Blobs in an object store, and the copies that outlast its outages."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from prefix_store.blobs.blobs import BlobStore, FileBlobStore
from prefix_store.blobs.cached import CachedBlobStore, open_blobs
from prefix_store.blobs.remote import RemoteBlobStore
from prefix_store.digest import Digest
from prefix_store.errors import StorageFailure, UnknownDigest
from prefix_store.testing import BlobStoreContract
from tests.s3 import BUCKET, S3, running_s3

Corrupt = Callable[[Digest, bytes], None]
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server:
        yield server


@pytest.fixture(params=["s3", "memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://{BUCKET}/{next(_NUMBERS)}"
    return f"file://{tmp_path}/blobs" if request.param == "file" else f"memory://{tmp_path}"


def name_of(digest: Digest) -> str:
    return f"sha256/{digest.hex[:2]}/{digest.hex[2:]}"


class TestByUrl(BlobStoreContract):
    """As the settings name them; remote ones with copies."""

    @pytest.fixture
    def blobs(self, url: str, tmp_path: Path) -> BlobStore:
        return open_blobs(url, tmp_path / "cache", 1 << 20)

    @pytest.fixture
    def corrupt(self, url: str, blobs: BlobStore, tmp_path: Path) -> Corrupt:
        def corrupt(digest: Digest, data: bytes) -> None:
            with fsspec.open(f"{url}/{name_of(digest)}", "wb") as file:
                file.write(data)
            (tmp_path / "cache" / name_of(digest)).unlink(missing_ok=True)

        return corrupt


@pytest.fixture
def cache(tmp_path: Path) -> FileBlobStore:
    return FileBlobStore(tmp_path / "cache")


def test_two_servers_see_each_others_blobs(s3: S3, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/{next(_NUMBERS)}"
    here, there = (open_blobs(url, tmp_path / name, 1 << 20) for name in ("here", "there"))
    assert (list(here), list(there)) == ([], [])
    digest = here.put(b"hello")

    assert (list(there), there.get(digest)) == ([digest], b"hello")
    assert there.delete(digest)
    assert not here.exists(digest)


def test_the_names_are_those_of_files(s3: S3) -> None:
    """So that a store is moved by copying it."""
    digest = RemoteBlobStore(f"s3://{BUCKET}/names").put(b"hello")

    [found] = s3.client.list_objects_v2(Bucket=BUCKET, Prefix="names/")["Contents"]
    assert found["Key"] == f"names/{name_of(digest)}"


def test_copies_outlast_an_outage_and_it_is_told(tmp_path: Path, cache: FileBlobStore) -> None:
    with running_s3() as s3:
        blobs = CachedBlobStore(RemoteBlobStore(f"s3://{BUCKET}/x"), cache, 1 << 20)
        held = blobs.put(b"held")
        cache.delete(other := blobs.put(b"other"))
        s3.stop()

        assert blobs.get(held) == b"held"
        blobs.check()  # not asked yet
        for ask in (
            lambda: blobs.get(other),
            lambda: blobs.put(b"new"),
            lambda: blobs.exists(held),
        ):
            with pytest.raises(StorageFailure, match="the blob store cannot"):
                ask()
        blobs.refresh_health()
        with pytest.raises(StorageFailure, match="the blob store cannot be listed"):
            blobs.check()
        assert (blobs.get(held), blobs.quarantined()) == (b"held", set())
        s3.start()
        blobs.refresh_health()
        blobs.check()


def test_a_store_that_does_not_answer_is_away(
    cache: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteBlobStore("memory://silent")
    blobs = CachedBlobStore(remote, cache, 1 << 20)
    monkeypatch.setattr("prefix_store.blobs.cached.UNREACHABLE_AFTER_S", 0.0)

    def silent() -> set[Digest]:
        time.sleep(0.01)
        with pytest.raises(StorageFailure, match="does not answer"):
            blobs.check()
        return set()

    monkeypatch.setattr(remote, "quarantined", silent)
    blobs.refresh_health()
    blobs.check()


def test_a_rotten_copy_is_not_served_but_fetched_anew(tmp_path: Path, cache: FileBlobStore) -> None:
    blobs = CachedBlobStore(RemoteBlobStore(f"memory://{tmp_path}"), cache, 1 << 20)
    digest = blobs.put(b"hello")
    (tmp_path / "cache" / name_of(digest)).write_bytes(b"jello")

    assert blobs.get(digest) == b"hello"
    assert cache.get(digest) == b"hello"
    assert blobs.quarantined() == set()


def test_copies_not_read_for_longest_make_room(tmp_path: Path, cache: FileBlobStore) -> None:
    blobs = CachedBlobStore(RemoteBlobStore(f"memory://{tmp_path}"), cache, 250)
    digests = [blobs.put(bytes([i]) * 100) for i in range(2)]
    for age_s, digest in zip((60, 30), digests, strict=True):
        path = tmp_path / "cache" / name_of(digest)
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    blobs.get(digests[0])
    third = blobs.put(b"x" * 100)

    assert set(cache) == {digests[0], third}
    assert blobs.get(digests[1]) == bytes([1]) * 100


def test_a_copy_that_cannot_be_kept_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FileBlobStore(tmp_path / "cache")
    blobs = CachedBlobStore(RemoteBlobStore(f"memory://{tmp_path}"), cache, 250)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    digest = blobs.put(b"hello")
    assert blobs.get(digest) == b"hello"
    with pytest.raises(UnknownDigest):
        cache.get(digest)


@pytest.mark.parametrize("url", ["nonsense://x", "gs://x", "github://x"])
def test_what_nothing_is_installed_for_is_said(url: str, tmp_path: Path) -> None:
    with pytest.raises(StorageFailure, match="is installed"):
        open_blobs(url, tmp_path, 1)
