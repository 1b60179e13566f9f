from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.errors import DigestMismatch, StorageFailure, UnknownDigest
from prefix_store.testing import BlobStoreContract


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def blobs(root: Path) -> FileBlobStore:
    return FileBlobStore(root)


class TestFileBlobStore(BlobStoreContract):
    @pytest.fixture
    def corrupt(self, root: Path) -> Callable[[Digest, bytes], None]:
        return lambda digest, data: _write(file_of(root, digest), data)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def file_of(root: Path, digest: Digest) -> Path:
    return root / "sha256" / digest.hex[:2] / digest.hex[2:]


def test_a_blob_is_an_ordinary_file(blobs: FileBlobStore, root: Path) -> None:
    path = file_of(root, blobs.put(b"hello"))
    umask = os.umask(0)
    os.umask(umask)

    assert path.read_bytes() == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert list((root / "tmp").iterdir()) == []


def test_a_rotten_blob_is_not_served(blobs: FileBlobStore, root: Path) -> None:
    digest = blobs.put(b"hello")
    file_of(root, digest).write_bytes(b"jello")

    with pytest.raises(DigestMismatch):
        blobs.get(digest)


def test_a_rotten_blob_is_set_aside_until_it_is_put_again(blobs: FileBlobStore, root: Path) -> None:
    digest, other = blobs.put(b"hello"), blobs.put(b"other")
    file_of(root, digest).write_bytes(b"jello")
    (root / "quarantine" / "README").write_text("hi")

    assert blobs.quarantined() == set()
    for _ in range(2):
        with pytest.raises(DigestMismatch):
            blobs.get(digest)
    assert blobs.quarantined() == {digest}
    assert (root / "quarantine" / digest.hex).read_bytes() == b"jello"
    assert (list(blobs), blobs.exists(digest), blobs.get(other)) == ([other], False, b"other")

    blobs.put(b"hello")
    assert (blobs.quarantined(), blobs.get(digest)) == (set(), b"hello")


def test_a_blob_in_quarantine_can_be_deleted(blobs: FileBlobStore, root: Path) -> None:
    digest = blobs.put(b"hello")
    file_of(root, digest).write_bytes(b"jello")
    with pytest.raises(DigestMismatch):
        blobs.get(digest)

    assert blobs.delete(digest)
    assert blobs.quarantined() == set()
    with pytest.raises(UnknownDigest):
        blobs.get(digest)


@pytest.mark.parametrize("rotten", [b"jello", b"hell", b""])
def test_putting_a_rotten_blob_again_mends_it(
    blobs: FileBlobStore, root: Path, rotten: bytes
) -> None:
    digest = blobs.put(b"hello")
    file_of(root, digest).write_bytes(rotten)
    inode = file_of(root, digest).stat().st_ino
    blobs.put(b"hello")

    assert blobs.get(digest) == b"hello"
    assert file_of(root, digest).stat().st_ino != inode  # replaced, never written in place


def test_putting_a_blob_again_makes_it_young(blobs: FileBlobStore, root: Path) -> None:
    digest = blobs.put(b"hello")
    os.utime(file_of(root, digest), (0, 0))

    assert time.time() - blobs.put_at(digest) > 3600
    blobs.put(b"hello")
    assert time.time() - blobs.put_at(digest) < 60


def test_foreign_files_are_not_blobs(blobs: FileBlobStore, root: Path) -> None:
    digest = blobs.put(b"hello")
    (file_of(root, digest).parent / "README").write_text("hi")

    assert list(blobs) == [digest]


def test_a_new_store_sweeps_what_is_stale_and_spares_what_is_being_written(root: Path) -> None:
    FileBlobStore(root)
    stale, fresh = root / "tmp" / "stale", root / "tmp" / "fresh"
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (time.time() - 4000, time.time() - 4000))
    FileBlobStore(root)

    assert [path.name for path in (root / "tmp").iterdir()] == ["fresh"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_disk_that_refuses_is_a_storage_failure_and_leaves_nothing(
    blobs: FileBlobStore, root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(root))

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", refuse)
        elif call == "replace":
            patch.setattr(Path, "replace", refuse)
        else:
            patch.setattr(Path, "open", refuse)
        with pytest.raises(StorageFailure, match="No space left") as refusal:
            blobs.put(b"hello")

    assert str(root) not in str(refusal.value)
    assert list((root / "tmp").iterdir()) == []
    assert list(blobs) == []
    assert blobs.get(blobs.put(b"hello")) == b"hello"


def test_the_file_is_durable_before_its_name_and_the_name_before_the_answer(
    blobs: FileBlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        at = Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(root)
        steps.append(f"fsync {at.parts[0] if at.parts[0] == 'tmp' else at}")
        fsync(descriptor)

    def spy_replace(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    folder = blobs.put(b"hello").hex[:2]

    assert steps == ["fsync tmp", "rename", f"fsync sha256/{folder}", "fsync sha256"]
