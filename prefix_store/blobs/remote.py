"""Blobs in an object store such as S3, through fsspec. Knows no tensor."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from math import inf
from typing import Any

import fsspec

from prefix_store.blobs.blobs import corrupted
from prefix_store.digest import Content, Digest, pieces_of
from prefix_store.errors import PrefixStoreError, StorageFailure, UnknownDigest

logger = logging.getLogger(__name__)

# Limits of each of the five attempts that s3fs makes.
_S3 = {"connect_timeout": 5, "read_timeout": 20, "retries": {"total_max_attempts": 3}}
_OPTIONS: dict[str, dict[str, Any]] = {name: {"config_kwargs": _S3} for name in ("s3", "s3a")}


class RemoteBlobStore:
    """Blobs as objects, `<url>/sha256/ab/cdef...`, with the layout of `FileBlobStore`.

    Requires atomic object writes, as in S3, GCS and Azure. Servers that share a registry may share
    a URL. Nothing is locked between the check of an object's age and its deletion, so that the
    grace period of garbage collection must be far longer than an upload.
    """

    def __init__(self, url: str) -> None:
        """Raises `StorageFailure` if the package for this kind of URL is not installed."""
        protocol = url.partition("://")[0]
        try:
            # Cached listings would hide what other servers have written.
            found: tuple[Any, str] = fsspec.url_to_fs(
                url,
                use_listings_cache=False,
                skip_instance_cache=True,
                **_OPTIONS.get(protocol, {}),
            )
        except (ImportError, TypeError, ValueError):
            raise StorageFailure(
                f"no package for blobs at {protocol}:// is installed; s3:// needs foreword[s3]"
            ) from None
        self._fs, self._root = found[0], found[1].rstrip("/")

    def put(self, content: Content) -> Digest:
        data = b"".join(pieces_of(content))  # an object is written by one call, or not at all
        digest = Digest.of(data)
        with _refused("be written"):
            # Also if it exists: this renews an old object and repairs a corrupt one.
            self._fs.pipe_file(self._path(digest), data)
            self._remove(self._quarantine_path(digest))
        return digest

    def get(self, digest: Digest) -> bytes:
        with _refused("be read"):
            try:
                data: bytes = self._fs.cat_file(self._path(digest))
            except FileNotFoundError:
                if self._info(self._quarantine_path(digest)) is not None:
                    raise corrupted(digest) from None
                raise UnknownDigest(f"no blob {digest}") from None
        if Digest.of(data) != digest:
            with suppress(StorageFailure):  # if it cannot be moved, the next `get` tries again
                self._move_to_quarantine(digest)
            raise corrupted(digest)
        return data

    def open(self, digest: Digest) -> BytesIO:
        return BytesIO(self.get(digest))

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
        """Do nothing: no state is cached."""

    def exists(self, digest: Digest) -> bool:
        with _refused("be read"):
            return self._info(self._path(digest)) is not None

    def delete(self, digest: Digest, *, put_by: float = inf) -> bool:
        with _refused("be deleted"):
            if self._remove(self._quarantine_path(digest)):
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
                    with suppress(ValueError):  # a foreign object
                        yield Digest(f"sha256:{folder}{name}")

    def num_bytes(self, digest: Digest) -> int:
        with _refused("be read"):
            if (info := self._info(self._path(digest))) is None:
                raise UnknownDigest(f"no blob {digest}")
            return int(info["size"])

    def sweep(self) -> None:
        """Do nothing: writers leave no temporary objects."""

    def _path(self, digest: Digest) -> str:
        return f"{self._root}/sha256/{digest.hex[:2]}/{digest.hex[2:]}"

    def _quarantine_path(self, digest: Digest) -> str:
        return f"{self._root}/quarantine/{digest.hex}"

    def _move_to_quarantine(self, digest: Digest) -> None:
        """Move a corrupt blob into quarantine, unless it was put again or moved in the meantime."""
        path = self._path(digest)
        with _refused("be quarantined"), suppress(FileNotFoundError):
            data = self._fs.cat_file(path)
            if Digest.of(data) != digest:
                self._fs.pipe_file(self._quarantine_path(digest), data)
                self._remove(path)
                logger.error(
                    "the stored bytes of %s are corrupt; they were moved into quarantine", digest
                )

    def _names(self, folder: str) -> list[str]:
        try:
            return [path.rpartition("/")[2] for path in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    def _info(self, path: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._fs.info(
                path
            )  # unlike `exists`, `info` raises in an outage
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
    except Exception as error:  # types vary by backend, and messages may contain hosts
        reason = type(error).__name__
        raise StorageFailure(f"the blob store cannot {action}: {reason}") from error
