"""The store: push, garbage collection, quarantine."""

from __future__ import annotations

import subprocess
import sys
from math import inf
from pathlib import Path

import pytest

import prefix_store
from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.errors import DigestMismatch, UnknownDigest, UnknownTask
from prefix_store.manifest import Draft, Manifest, Profile
from prefix_store.prefix import Prefix
from prefix_store.registry.audit import Actor
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from prefix_store.testing import draft
from tests.prefix_store.stores import age, push

HOME = Path(prefix_store.__file__).parents[1]


def test_a_prefix_is_put_pushed_resolved_and_opened(store: PrefixStore, prefix: Prefix) -> None:
    digest, num_bytes = store.put(prefix)
    wanted = draft().model_copy(update={"digest": str(digest), "num_bytes": num_bytes})
    manifest = store.push("x", wanted, activate=True, create=True, by=Actor("me"))
    data = store.open(Digest(store.registry.resolve("x").digest))

    assert store.registry.resolve("x") == store.registry.resolve("x", 1) == manifest
    assert (manifest.version, manifest.created_by) == (1, "me")
    assert manifest == Manifest.model_validate_json(manifest.model_dump_json())
    assert len(data) == num_bytes
    assert artifact.dump(artifact.read(data)) == data


def test_a_manifest_begins_with_its_identity(store: PrefixStore) -> None:
    push(store, "1")

    assert list(store.registry.resolve("x").model_dump())[:3] == ["task", "version", "digest"]


def test_a_version_without_its_blob_is_not_pushed(store: PrefixStore) -> None:
    with pytest.raises(UnknownDigest):
        store.push("x", draft("never put"), activate=True, create=True)
    with pytest.raises(UnknownTask):
        store.registry.get_task("x")


def test_the_door_leads_to_the_whole_registry(store: PrefixStore) -> None:
    assert store.outages() == {}
    store.registry.create_task("x", Profile())
    store.registry.set_profile("x", Profile(description="d"))
    for content in "12":
        push(store, content)
    store.activate("x", 1)
    store.rollback("x")

    assert store.registry.get_task("x") == store.registry.list_tasks()[0]
    assert store.registry.get_version("x", 1) == store.registry.list_versions("x")[0]
    assert [line.version for line in store.registry.history("x")] == [2, 1, 2, 1]
    store.registry.delete_version("x", 1)
    store.registry.delete_task("x")
    assert store.registry.list_tasks() == []


def test_garbage_is_what_no_version_refers_to_and_is_old(
    store: PrefixStore, blobs: FileBlobStore, root: Path
) -> None:
    kept = push(store, "kept")
    store.put_bytes(b"garbage")
    age(root)
    young = store.put_bytes(b"young")

    assert store.collect_garbage(grace_s=60) == 1
    assert set(blobs) == {kept, young}


def test_a_deleted_version_keeps_its_blob_for_the_grace(
    store: PrefixStore, blobs: FileBlobStore, root: Path
) -> None:
    first, second = push(store, "1"), push(store, "2")
    age(root)
    store.registry.delete_version("x", 1)

    assert store.collect_garbage(grace_s=60) == 0
    assert store.collect_garbage(grace_s=0) == 1
    assert list(blobs) == [second]
    assert not blobs.exists(first)


def test_a_deleted_task_leaves_no_blob_behind(store: PrefixStore, blobs: FileBlobStore) -> None:
    for content in "12":
        push(store, content)
    store.registry.delete_task("x")

    assert store.collect_garbage(grace_s=0) == 2
    assert list(blobs) == []


def test_a_blob_of_two_tasks_stays_until_the_last_is_gone(
    store: PrefixStore, blobs: FileBlobStore
) -> None:
    for task in "xy":
        push(store, "shared", task)
    store.registry.delete_task("x")

    assert store.collect_garbage(grace_s=0) == 0
    store.registry.delete_task("y")
    assert store.collect_garbage(grace_s=0) == 1


def test_a_put_during_the_collection_is_spared(
    store: PrefixStore, blobs: FileBlobStore, root: Path
) -> None:
    """The collector has listed an old blob as garbage when the same bytes are put again."""
    digest = store.put_bytes(b"again")
    age(root)

    class Interrupted(FileBlobStore):
        def delete(self, digest: Digest, *, put_by: float = inf) -> bool:
            blobs.put(b"again")
            return super().delete(digest, put_by=put_by)

    registry = Registry(f"sqlite:///{root}/registry.db")

    assert PrefixStore(Interrupted(root), registry).collect_garbage(grace_s=60) == 0
    assert blobs.get(digest) == b"again"
    registry.close()


def test_garbage_in_quarantine_is_collected(
    store: PrefixStore, blobs: FileBlobStore, root: Path
) -> None:
    kept, lost = push(store, "kept"), push(store, "lost", task="y")
    for digest in (kept, lost):
        (root / "sha256" / digest.hex[:2] / digest.hex[2:]).write_bytes(b"rotten")
        with pytest.raises(DigestMismatch):
            store.open(digest)
    store.registry.delete_task("y")

    assert store.collect_garbage(grace_s=0) == 1
    assert store.quarantined() == {kept}


@pytest.mark.parametrize(
    "module",
    [
        "prefix_store",
        "prefix_store.store",
        "prefix_store.registry.registry",
        "prefix_store.blobs.blobs",
        "prefix_store.reference",
    ],
)
def test_what_is_no_prefix_needs_no_tensor(module: str) -> None:
    code = f"import sys, {module}; sys.exit(int('torch' in sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], cwd=HOME, check=False).returncode == 0


def test_a_draft_and_a_manifest_refuse_what_they_do_not_know() -> None:
    assert issubclass(Manifest, Draft)
    with pytest.raises(ValueError, match="extra"):
        Draft.model_validate(draft().model_dump() | {"surprise": 1})
