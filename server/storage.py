"""Opening the registry, blobs and keys from the settings, for the server and the CLI."""

from __future__ import annotations

from dataclasses import dataclass

from prefix_store.blobs.blobs import BlobStore
from prefix_store.blobs.cached import open_blobs as open_blobs_at
from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import KeyStore, keys_exist, load_pepper
from prefix_store.registry.quotas import Quotas
from prefix_store.registry.registry import Registry
from prefix_store.registry.replica import Replica
from prefix_store.store import PrefixStore
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Storage:
    """The server's persistent state."""

    store: PrefixStore
    keys: KeyStore
    audit: AuditLog
    replica: Replica | None
    """Set if the registry is shared; resolves requests and keys without the database."""
    registry: Registry

    def close(self) -> None:
        """Close the idle connections."""
        self.registry.close()


def open_storage(settings: Settings) -> Storage:
    """Open everything; the replica is not started yet. Raises `StorageFailure`."""
    registry = open_registry(settings)
    replica = None
    if settings.registry is not None:
        replica = Replica(registry, max_age_s=settings.max_registry_age_s)
    return Storage(
        PrefixStore(open_blobs(settings), registry, replica),
        open_keys(settings, registry, replica),
        AuditLog(registry.database),
        replica,
        registry,
    )


def where_blobs_are(settings: Settings) -> str:
    """Return the folder or URL of the blobs."""
    return settings.blobs or str(settings.store / "blobs")


def open_blobs(settings: Settings) -> BlobStore:
    """Open the blob store. Raises `StorageFailure`."""
    cache = settings.store / "blob-cache"
    return open_blobs_at(where_blobs_are(settings), cache, settings.blob_cache_bytes)


def open_registry(settings: Settings, *, create: bool = True) -> Registry:
    """Open the registry; `create` a missing one. Raises `StorageFailure`."""
    # An empty registry in place of a lost one would let garbage collection delete all blobs.
    is_new = create and next(iter(open_blobs(settings)), None) is None
    quotas = Quotas(settings.max_tasks, settings.max_versions_per_task, settings.max_store_bytes)
    return Registry(_url(settings), may_create=is_new, quotas=quotas)


def open_keys(settings: Settings, registry: Registry, replica: Replica | None = None) -> KeyStore:
    """Open the keys and their pepper. Raises `StorageFailure`."""
    path = settings.key_pepper_file or settings.store / "pepper"
    # A new pepper would invalidate all existing keys.
    is_first = settings.key_pepper_file is None and not keys_exist(registry.database)
    return KeyStore(registry.database, load_pepper(path, create=is_first), replica)


def _url(settings: Settings) -> str:
    if settings.registry is not None:
        return settings.registry.get_secret_value()
    return f"sqlite:///{settings.store / 'registry.db'}"
