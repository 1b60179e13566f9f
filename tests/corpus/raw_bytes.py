"""HTTP requests as bytes."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
TAR = "application/x-tar"


@dataclass(frozen=True)
class Raw:
    name: str
    data: bytes
    allowed: frozenset[int]


def request(
    line: str, *headers: str | bytes, body: bytes = b"", host: str | bytes | None = "localhost"
) -> bytes:
    """A request that asks for the connection to be closed after the answer."""
    lines: list[str | bytes] = [line]
    if host is not None:
        lines.append(b"Host: " + (host.encode() if isinstance(host, str) else host))
    lines += [*headers, "Connection: close"]
    raw = [one.encode() if isinstance(one, str) else one for one in lines]
    return b"\r\n".join([*raw, b"", body])


def post(
    path: str, body: bytes, *headers: str | bytes, method: str = "POST", kind: str = JSON
) -> bytes:
    typed = [f"Content-Type: {kind}"] if kind else []
    length = f"Content-Length: {len(body)}"
    return request(f"{method} {path} HTTP/1.1", *typed, length, *headers, body=body)


def chunked(path: str, *chunks: bytes, kind: str = JSON) -> bytes:
    """Each chunk with its size in front; the last one, of size 0, is up to the caller."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return chunked_raw(path, framed, kind=kind)


def chunked_raw(path: str, framed: bytes, *headers: str, kind: str = JSON) -> bytes:
    typed = f"Content-Type: {kind}"
    line = f"POST {path} HTTP/1.1"
    return request(line, typed, "Transfer-Encoding: chunked", *headers, body=framed)


def tar_of(*names: str, content: bytes = b"") -> bytes:
    """A tar of files that all have this content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
