"""Awaitable access to the store: blocking calls run on thread pools that this module owns."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from prefix_store.registry.audit import AuditLog
from prefix_store.registry.keys import KeyStore
from prefix_store.registry.registry import Registry
from prefix_store.store import PrefixStore
from server import cancellation

P = ParamSpec("P")
T = TypeVar("T")

_Pool = Literal["checks", "requests", "readers", "writers"]
_NUM_THREADS = 4


def _method(
    pool: _Pool, method: Callable[Concatenate[Any, P], T]
) -> Callable[Concatenate[AsyncStore, P], Coroutine[Any, Any, T]]:
    """Wrap a blocking method of the store, registry, keys or audit log, to run on a pool.

    Signature and errors stay the same. A change is not cancelled when the client disconnects.
    """
    owner, _, name = method.__qualname__.partition(".")

    async def call(self: AsyncStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        blocking: Callable[P, T] = getattr(self._owners[owner], name)
        with cancellation.change() if pool == "writers" else nullcontext():
            return await self.run(pool, blocking, *args, **kwargs)

    return call


class AsyncStore:
    """The store, registry, keys and audit log as coroutines, on four thread pools.

    The pools keep fast work from waiting for slow work:

    * `checks`: health checks and key lookups, which never wait for requests;
    * `requests`: work for requests, which never waits for an unreachable database;
    * `readers`: reads of the registry and blobs, which never wait for writers;
    * `writers`: changes, which may wait for another writer.
    """

    def __init__(self, store: PrefixStore, keys: KeyStore, audit: AuditLog) -> None:
        self.blocking = store
        """The store itself, for code that already runs on a thread."""
        owners = (store, store.registry, keys, audit)
        self._owners: dict[str, Any] = {
            cls.__name__: owner for owner in owners for cls in type(owner).__mro__
        }
        self._pools: dict[_Pool, ThreadPoolExecutor] = {
            pool: ThreadPoolExecutor(_NUM_THREADS, pool)
            for pool in ("checks", "requests", "readers", "writers")
        }

    @property
    def request_executor(self) -> Executor:
        """The pool `requests`."""
        return self._pools["requests"]

    async def run(self, pool: _Pool, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function on a pool. Not started if cancelled while it is queued."""
        return await cancellation.in_thread(self._pools[pool], work, *args, **kwargs)

    def is_stale(self) -> bool:
        """Whether requests can no longer be resolved. Does not block."""
        return self.blocking.source.is_stale()

    def close(self) -> None:
        """Wait for running calls and cancel queued ones."""
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)

    # --- keys of requests ---
    keys_exist = _method("checks", KeyStore.exist)
    find_key = _method("checks", KeyStore.find)

    # --- reads ---
    get_task = _method("readers", Registry.get_task)
    list_tasks = _method("readers", Registry.list_tasks)
    get_version = _method("readers", Registry.get_version)
    list_versions = _method("readers", Registry.list_versions)
    resolve = _method("readers", Registry.resolve)
    traffic = _method("readers", Registry.traffic)
    history = _method("readers", Registry.history)
    pinned = _method("readers", Registry.pinned)
    current_activation = _method("readers", Registry.current_activation)
    activated_since = _method("readers", Registry.activated_since)
    alive = _method("readers", Registry.alive)
    guarded_splits = _method("readers", Registry.guarded_splits)
    find_answer = _method("readers", Registry.answer)
    open = _method("readers", PrefixStore.open)
    quarantined = _method("readers", PrefixStore.quarantined)
    refresh_health = _method("readers", PrefixStore.refresh_health)
    list_keys = _method("readers", KeyStore.list)
    audit_entries = _method("readers", AuditLog.entries)
    audit_head = _method("readers", AuditLog.head)

    # --- changes ---
    create_task = _method("writers", Registry.create_task)
    set_profile = _method("writers", Registry.set_profile)
    delete_task = _method("writers", Registry.delete_task)
    delete_version = _method("writers", Registry.delete_version)
    set_pinned = _method("writers", Registry.set_pinned)
    activate = _method("writers", PrefixStore.activate)
    rollback = _method("writers", PrefixStore.rollback)
    set_traffic = _method("writers", PrefixStore.set_traffic)
    end_split = _method("writers", PrefixStore.end_split)
    collect_garbage = _method("writers", PrefixStore.collect_garbage)
    create_key = _method("writers", KeyStore.create)
    revoke_key = _method("writers", KeyStore.revoke)
