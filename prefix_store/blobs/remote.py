"""Blobs in an object store, by whatever URL fsspec knows; S3 above all. Knows no tensor."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Any

import fsspec

from prefix_store.blobs.blobs import rotten
from prefix_store.digest import Digest
from prefix_store.errors import PrefixStoreError, StorageFailure, UnknownDigest

logger = logging.getLogger(__name__)

# Each of the five tries that s3fs makes.
_S3 = {"connect_timeout": 5, "read_timeout": 20, "retries": {"total_max_attempts": 3}}
_OPTIONS: dict[str, dict[str, Any]] = {name: {"config_kwargs": _S3} for name in ("s3", "s3a")}


class RemoteBlobStore:
    """Blobs as objects, `<url>/sha256/ab/cdef...`: the names that `FileBlobStore` gives its files.

    For stores that show an object whole or not at all, as S3, GCS and Azure do. Any number of
    servers may share a URL, and one registry. Between a look at an object's age and its deletion
    nothing is locked: the grace of a garbage collection has to be far longer than an upload.
    """

    def __init__(self, url: str) -> None:
        """Raises `StorageFailure` for a kind of URL that nothing is installed for."""
        protocol = url.partition("://")[0]
        try:
            # Listings that are kept would hide what other servers have written.
            found: tuple[Any, str] = fsspec.url_to_fs(
                url,
                use_listings_cache=False,
                skip_instance_cache=True,
                **_OPTIONS.get(protocol, {}),
            )
        except (ImportError, TypeError, ValueError):
            raise StorageFailure(
                f"nothing is installed for blobs at {protocol}://; for s3:// that is foreword[s3]"
            ) from None
        self._fs, self._root = found[0], found[1].rstrip("/")

    def put(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        with _refused("be written"):
            # Always: it makes an old object young, and a rotten one sound.
            self._fs.pipe_file(self._path(digest), data)
            self._remove(self._aside(digest))
        return digest

    def get(self, digest: Digest) -> bytes:
        with _refused("be read"):
            try:
                data: bytes = self._fs.cat_file(self._path(digest))
            except FileNotFoundError:
                if self._info(self._aside(digest)) is not None:
                    raise rotten(digest) from None
                raise UnknownDigest(f"no blob {digest}") from None
        if Digest.of(data) != digest:
            with suppress(StorageFailure):  # where nothing can be moved, it is found again
                self._set_aside(digest)
            raise rotten(digest)
        return data

    def quarantined(self) -> set[Digest]:
        found = set()
        with _refused("be listed"):
            for name in self._names(f"{self._root}/quarantine"):
                with suppress(ValueError):
                    found.add(Digest(f"sha256:{name}"))
        return {digest for digest in found if not self.exists(digest)}

    def check(self) -> None:
        with _refused("be listed"):
            self._names(f"{self._root}/quarantine")

    def refresh_health(self) -> None:
        """Nothing is remembered."""

    def exists(self, digest: Digest) -> bool:
        with _refused("be read"):
            return self._info(self._path(digest)) is not None

    def delete(self, digest: Digest, *, put_by: float = inf) -> bool:
        with _refused("be deleted"):
            if self._remove(self._aside(digest)):
                return True
            with suppress(UnknownDigest):
                return self.put_at(digest) <= put_by and self._remove(self._path(digest))
        return False

    def put_at(self, digest: Digest) -> float:
        with _refused("be read"):
            if self._info(self._path(digest)) is None:
                raise UnknownDigest(f"no blob {digest}")
            written_at: float = self._fs.modified(self._path(digest)).timestamp()
        return written_at

    def __iter__(self) -> Iterator[Digest]:
        with _refused("be listed"):
            for folder in self._names(f"{self._root}/sha256"):
                for name in self._names(f"{self._root}/sha256/{folder}"):
                    with suppress(ValueError):  # an object that somebody else put there
                        yield Digest(f"sha256:{folder}{name}")

    def sweep(self) -> None:
        """Writers that died have left nothing: an object is there whole or not at all."""

    def _path(self, digest: Digest) -> str:
        return f"{self._root}/sha256/{digest.hex[:2]}/{digest.hex[2:]}"

    def _aside(self, digest: Digest) -> str:
        return f"{self._root}/quarantine/{digest.hex}"

    def _set_aside(self, digest: Digest) -> None:
        """Unless somebody has put the blob again, or set it aside, since it was read."""
        path = self._path(digest)
        with _refused("be put aside"), suppress(FileNotFoundError):
            data = self._fs.cat_file(path)
            if Digest.of(data) != digest:
                self._fs.pipe_file(self._aside(digest), data)
                self._remove(path)
                logger.error("the stored bytes of %s have changed; they are in quarantine", digest)

    def _names(self, folder: str) -> list[str]:
        try:
            return [path.rpartition("/")[2] for path in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    def _info(self, path: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._fs.info(path)  # unlike `exists`, it raises in an outage
        except FileNotFoundError:
            return None
        return found

    def _remove(self, path: str) -> bool:
        if self._info(path) is None:
            return False
        with suppress(FileNotFoundError):
            self._fs.rm_file(path)
        return True


@contextmanager
def _refused(action: str) -> Iterator[None]:
    try:
        yield
    except PrefixStoreError:
        raise
    except Exception as error:  # every library behind fsspec has its own; its words may name hosts
        reason = type(error).__name__
        raise StorageFailure(f"the blob store cannot {action}: {reason}") from error
