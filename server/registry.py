"""The registry and its keys, as the settings name them. For the server, and for who runs it."""

from __future__ import annotations

from prefix_store.blobs import FileBlobStore
from prefix_store.keys import KeyStore, keys_exist, load_pepper
from prefix_store.quotas import Quotas
from prefix_store.registry import Registry
from server.settings import Settings


def open_blobs(settings: Settings) -> FileBlobStore:
    """Raises `StorageFailure`."""
    return FileBlobStore(settings.store / "blobs")


def open_registry(settings: Settings) -> Registry:
    """Raises `StorageFailure`."""
    # A database that got lost must not be replaced by an empty one, and its blobs be collected.
    is_new = next(iter(open_blobs(settings)), None) is None
    quotas = Quotas(settings.max_tasks, settings.max_versions_per_task, settings.max_store_bytes)
    url = f"sqlite:///{settings.store / 'registry.db'}"
    return Registry(url, may_create=is_new, quotas=quotas)


def open_keys(settings: Settings, registry: Registry) -> KeyStore:
    """With the pepper that belongs to them. Raises `StorageFailure`."""
    path = settings.key_pepper_file or settings.store / "pepper"
    # Beside keys that are there already, a new pepper would make all of them invalid.
    is_first = settings.key_pepper_file is None and not keys_exist(registry.database)
    return KeyStore(registry.database, load_pepper(path, create=is_first))
