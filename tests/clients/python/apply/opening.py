"""Sources as `apply` opens them, and their uploads as a server reads them."""

from __future__ import annotations

from pathlib import Path

from foreword_client.apply import sources
from foreword_client.apply.models import Definition, VersionSpec
from foreword_client.apply.sources import FileSource, Source
from prefix_store import formats
from tests.server.fakes import BASE


def opened(prefix: str, folder: Path) -> FileSource:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    source = sources.open_source(VersionSpec(prefix=prefix), folder, scratch)
    assert isinstance(source, FileSource)
    return source


def uploaded(source: Source, definition: Definition) -> bytes:
    body = source.body(definition)
    assert body is not None
    return b"".join(body.chunks())


def read(data: bytes) -> formats.Upload:
    return formats.read(data, "", BASE, max_prefix_tokens=100)
