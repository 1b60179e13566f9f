"""A store with keys and an audit log in a folder, as `create_app` takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import KeyStore
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from server.engine.ipc.messages import PrefixCompiled
from tests.server.fakes import INFO, make_prefix
from tests.sqlite import new_sqlite

PEPPER = b"pepper" * 8


class Stored(NamedTuple):
    """What `create_app` takes between the settings and the engine."""

    store: PrefixStore
    keys: KeyStore
    audit: AuditLog


@contextmanager
def open_store(folder: Path) -> Iterator[Stored]:
    """Open a store in a folder, with files and SQLite."""
    registry = Registry(new_sqlite(folder))
    try:
        store = PrefixStore(FileBlobStore(folder / "blobs"), registry)
        yield Stored(store, KeyStore(registry.database, PEPPER), AuditLog(registry.database))
    finally:
        registry.close()


def compile_into(store: PrefixStore, folder: Path) -> Callable[..., PrefixCompiled]:
    """A `FakeEngine.compile_to` that puts a random prefix into the store of a folder."""
    blobs = FileBlobStore(folder / "blobs")

    def compile_to(
        token_ids: list[int] | None, embeddings: Digest | None, origin: dict[str, str]
    ) -> PrefixCompiled:
        num_tokens = len(token_ids) if token_ids is not None else 2
        prefix = make_prefix(num_tokens, num_tokens=num_tokens, fingerprint=INFO.fingerprint)
        made = replace(prefix, origin=origin)
        is_new = not blobs.exists(Digest.of(artifact.dump(made)))
        digest, num_bytes = store.put(made)
        return PrefixCompiled(0, str(digest), num_tokens, num_bytes, is_new, blobs.put_at(digest))

    return compile_to
