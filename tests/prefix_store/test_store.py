from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from math import inf
from pathlib import Path
from random import Random

import pytest

import prefix_store
from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.errors import DigestMismatch, UnknownDigest, UnknownTask, VersionQuarantined
from prefix_store.manifest import Draft, Manifest, Profile
from prefix_store.prefix import Prefix
from prefix_store.registry.audit import Actor
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from prefix_store.testing import draft
from tests.sqlite import new_sqlite


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def blobs(root: Path) -> FileBlobStore:
    return FileBlobStore(root)


@pytest.fixture
def store(root: Path, blobs: FileBlobStore) -> Iterator[PrefixStore]:
    registry = Registry(new_sqlite(root))
    yield PrefixStore(blobs, registry)
    registry.close()


def age(root: Path) -> None:
    """Make every blob an hour and more old."""
    for path in root.glob("sha256/??/*"):
        os.utime(path, (0, 0))


def push(store: PrefixStore, content: str, task: str = "x") -> Digest:
    digest = store.put_bytes(content.encode())
    store.push(task, draft(content), activate=True, create=True)
    return digest


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


def test_two_hundred_faults_and_never_other_bytes(
    store: PrefixStore, blobs: FileBlobStore, root: Path
) -> None:
    """Flipped bits, lost ends, zeroed and foreign blocks: the version is refused, others serve."""
    random = Random(0)
    digests = [push(store, f"{i} " * 2000, task=f"t{i}") for i in range(10)]
    wanted = [blobs.get(digest) for digest in digests]
    for _ in range(200):
        hit = random.randrange(10)
        path = root / "sha256" / digests[hit].hex[:2] / digests[hit].hex[2:]
        path.write_bytes(damaged(wanted[hit], random))
        for i, digest in enumerate(digests):
            if i == hit:
                with pytest.raises(DigestMismatch):
                    store.open(digest)
            else:
                assert store.open(Digest(store.registry.resolve(f"t{i}").digest)) == wanted[i]
        assert store.quarantined() == {digests[hit]}
        with pytest.raises(VersionQuarantined):
            store.activate(f"t{hit}", 1)
        assert store.registry.resolve(f"t{hit}").digest == str(digests[hit])
        assert store.put_bytes(wanted[hit]) == digests[hit]
        assert store.open(digests[hit]) == wanted[hit]


def damaged(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    flipped = bytearray(data)
    flipped[at] ^= 1 << random.randrange(8)
    zeroed = data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]
    return random.choice([bytes(flipped), data[:at], zeroed, data + b"\0"])


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


def test_processes_share_a_folder(root: Path) -> None:
    """Two servers on one folder: numbers without a gap, and nobody's blobs are collected."""
    FileBlobStore(root)
    Registry(f"sqlite:///{root}/registry.db").close()
    command = [sys.executable, "-c", SHARER, str(root)]
    with ExitStack() as stack:
        sharers = [
            stack.enter_context(subprocess.Popen([*command, str(i)], cwd=HOME)) for i in range(3)
        ]
        assert [sharer.wait(60) for sharer in sharers] == [0, 0, 0]
    registry, blobs = Registry(f"sqlite:///{root}/registry.db"), FileBlobStore(root)
    manifests = registry.list_versions("x")

    assert [manifest.version for manifest in manifests] == list(range(1, 61))
    assert all(blobs.get(Digest(manifest.digest)) for manifest in manifests)
    assert set(blobs) == registry.digests()
    registry.close()


SHARER = """
import sys
from pathlib import Path
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from prefix_store.testing import draft

root = Path(sys.argv[1])
store = PrefixStore(FileBlobStore(root), Registry(f"sqlite:///{root}/registry.db"))
for i in range(20):
    content = f"{sys.argv[2]}.{i}" * 5000
    store.put_bytes(content.encode())
    store.collect_garbage(grace_s=60)
    store.push("x", draft(content), activate=True, create=True)
"""

HOME = Path(prefix_store.__file__).parents[1]
PUSHER = """
import sys
from pathlib import Path
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.registry.registry import Registry
from prefix_store.testing import draft

root = Path(sys.argv[1])
blobs, registry = FileBlobStore(root), Registry(f"sqlite:///{root}/registry.db")
for i in range(1000):
    content = f"{sys.argv[2]}.{i}" * 5000
    blobs.put(content.encode())
    manifest = registry.add_version("x", draft(content), activate=True, create=True)
    print(manifest.version, manifest.digest, flush=True)
"""


def test_what_was_acknowledged_survives_kills(root: Path) -> None:
    acknowledged: dict[int, str] = {}
    for run in range(4):
        command = [sys.executable, "-c", PUSHER, str(root), str(run)]
        with subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, text=True) as pusher:
            assert pusher.stdout is not None
            for _ in range(3 + 5 * run):
                number, digest = pusher.stdout.readline().split()
                acknowledged[int(number)] = digest
            pusher.kill()
            for line in pusher.stdout:
                if line.endswith("\n"):
                    number, digest = line.split()
                    acknowledged[int(number)] = digest
    registry, blobs = Registry(f"sqlite:///{root}/registry.db"), FileBlobStore(root)
    stored = {manifest.version: manifest.digest for manifest in registry.list_versions("x")}

    assert acknowledged.items() <= stored.items()
    assert sorted(stored) == list(range(1, len(stored) + 1))
    assert all(blobs.get(Digest(digest)) for digest in stored.values())
    assert registry.resolve("x").version == registry.history("x")[0].version == len(stored)
    registry.close()


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
