"""Downloads of versions, in formats that an upload accepts, a piece at a time."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase

from prefix_store import formats
from prefix_store.digest import Data
from prefix_store.errors import DigestMismatch, StorageFailure
from prefix_store.manifest import Manifest
from prefix_store.prefix import BaseModelSpec, Prefix
from server.cancellation import in_thread
from server.errors import BaseModelMismatch
from server.publishing.reader import PrefixReader
from server.publishing.spool import PIECE_BYTES, Spool, SpoolFile


@dataclass(frozen=True, slots=True)
class Download:
    """The bytes of an answer, of which a few are in memory at a time. Has to be closed."""

    num_bytes: int
    _pieces: Iterator[Data]
    close: Callable[[], object]
    """Close the file. Idempotent; a thread may still read it."""
    _executor: Executor

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Read the bytes, once. Raises `DigestMismatch`, `StorageFailure`."""
        while (piece := await in_thread(self._executor, next, self._pieces, None)) is not None:
            yield bytes(piece)


class Downloads:
    """Opens versions for download."""

    def __init__(self, reader: PrefixReader, spool: Spool, *, executor: Executor) -> None:
        """`executor` reads the pieces."""
        self._reader = reader
        self._spool = spool
        self._executor = executor

    async def artifact(self, manifest: Manifest) -> Download:
        """Return the artifact. Raises `UnknownDigest`, `DigestMismatch`, `StorageFailure`."""
        return await self._around(manifest, b"", b"")

    async def tar(self, manifest: Manifest) -> Download:
        """Return a tar of the artifact with definition, golden prompts and evaluation.

        Raises like `artifact`.
        """
        return await self._around(manifest, *formats.write_tar(manifest.num_bytes, manifest))

    async def peft(self, manifest: Manifest) -> Download:
        """Return a tar of a directory that PEFT loads, with the files that `tar` has.

        Raises `IncompatiblePrefix` if PEFT cannot express the prefix, `BaseModelMismatch`,
        `Overloaded`, and like `artifact`.
        """
        base = self._reader.base()
        if manifest.fingerprint != base.fingerprint:
            raise BaseModelMismatch("the version was made for another base model")
        file = self._spool.open()
        try:
            file.reserve(manifest.num_bytes)
            await self._reader.read(manifest, partial(_write_peft, file, base, manifest))
        except BaseException:
            file.discard()
            raise
        return Download(file.num_bytes, file.pieces(), file.discard, self._executor)

    async def _around(self, manifest: Manifest, before: bytes, after: bytes) -> Download:
        file = await self._reader.open_file(manifest)
        num_bytes = len(before) + manifest.num_bytes + len(after)
        pieces = _checked(file, manifest, before, after)
        close = partial(self._executor.submit, file.close)
        return Download(num_bytes, pieces, close, self._executor)


def _write_peft(file: SpoolFile, base: BaseModelSpec, manifest: Manifest, prefix: Prefix) -> None:
    file.write(formats.write_peft(prefix, base, manifest))


def _checked(
    file: BufferedIOBase, manifest: Manifest, before: bytes, after: bytes
) -> Iterator[Data]:
    """Read a verified artifact. Its last piece is held back until the bytes that were read have
    been verified again: the disk may have failed in the meantime.

    Raises `DigestMismatch`, `StorageFailure`.
    """
    yield before
    hashed = hashlib.sha256()
    last = b""
    while piece := _read(file):
        if last:
            yield last
        hashed.update(piece)
        last = piece
    if f"sha256:{hashed.hexdigest()}" != manifest.digest:
        raise DigestMismatch(f"the stored bytes of {manifest.digest} changed while they were sent")
    yield last
    yield after


def _read(file: BufferedIOBase) -> bytes:
    try:
        return file.read(PIECE_BYTES)
    except OSError as error:
        raise StorageFailure("the blob store cannot be read") from error
