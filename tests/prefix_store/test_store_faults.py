"""The store with corrupt blobs, several processes, and kills."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

import prefix_store
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.errors import DigestMismatch, VersionQuarantined
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from tests.prefix_store.stores import push


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


def test_processes_share_a_folder(root: Path) -> None:
    """Two servers share a folder: no gaps in version numbers, and no live blob is collected."""
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
