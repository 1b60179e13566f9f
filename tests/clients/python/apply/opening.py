"""Sources as `apply` opens them, and their uploads as a server reads them."""

from __future__ import annotations

from pathlib import Path

from foreword_client.apply import sources
from foreword_client.apply.models import Definition, VersionSpec
from foreword_client.apply.sources import UploadSource
from prefix_store import formats
from tests.server.fakes import BASE


def opened(prefix: str, folder: Path) -> UploadSource:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    source = sources.open_source(VersionSpec(prefix=prefix), folder, scratch)
    assert isinstance(source, UploadSource)
    return source


def uploaded(source: UploadSource, definition: Definition) -> bytes:
    return b"".join(source.upload(definition).body().chunks())


def read(data: bytes) -> formats.Upload:
    return formats.read(data, "", BASE, max_prefix_tokens=100)
