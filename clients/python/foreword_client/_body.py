"""Request bodies: JSON, or a prefix streamed from disk. The length is known before sending."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread

from foreword_client.errors import SourceError

Source = str | os.PathLike[str] | bytes
Progress = Callable[[int, int], None]
"""Called with the number of bytes sent so far, and the total."""

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
GOLDEN = "golden.jsonl"
BESIDE = ("foreword.json", "evaluation.json")
"""Optional files of a folder that are sent too: the definition, and evaluation scores."""

_CHUNK_BYTES = 1 << 20
_JSON = "application/json"
_TAR = "application/x-tar"
_SAFETENSORS = "application/vnd.safetensors"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: bytes and whole files in sequence. Can be sent more than once."""

    media_type: str
    parts: tuple[bytes | Path, ...]
    progress: Progress | None = None

    @property
    def num_bytes(self) -> int:
        return sum(len(p) if isinstance(p, bytes) else p.stat().st_size for p in self.parts)

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": self.media_type, "Content-Length": str(self.num_bytes)}

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes; a file in pieces of 1 MiB."""
        num_sent = 0
        for chunk in self._read():
            yield chunk
            num_sent += len(chunk)
            self._tell(num_sent)

    async def async_chunks(self) -> AsyncIterator[bytes]:
        """Like `chunks`; files are read off the event loop."""
        num_sent, chunks = 0, self._read()
        while (chunk := await anyio.to_thread.run_sync(next, chunks, None)) is not None:
            yield chunk
            num_sent += len(chunk)
            self._tell(num_sent)

    def _read(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
                continue
            with part.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk

    def _tell(self, num_sent: int) -> None:
        if self.progress is not None:
            self.progress(num_sent, self.num_bytes)


def of_json(value: object) -> Body:
    """Encode a value as JSON. Raises `ValueError` for NaN, which JSON lacks."""
    return Body(_JSON, (json.dumps(value, allow_nan=False).encode(),))


def of_prefix(
    source: Source | None,
    text: str | None,
    messages: Sequence[Mapping[str, str]] | None,
    golden: Sequence[Mapping[str, Any]] = (),
) -> Body:
    """The upload of a prefix from a source, text or messages. Raises `SourceError`."""
    if sum(given is not None for given in (source, text, messages)) != 1:
        raise SourceError("give exactly one of: a source, text=..., messages=...")
    beside = {"golden": [dict(prompt) for prompt in golden]} if golden else {}
    if text is not None:
        return of_json({"text": text, **beside})
    if messages is not None:
        return of_json({"messages": [dict(message) for message in messages], **beside})
    assert source is not None
    if not isinstance(source, bytes) and Path(source).is_dir():
        return _of_folder(Path(source), golden)
    if golden:
        raise SourceError("golden prompts go with a folder, text or messages, not with a file")
    if isinstance(source, bytes):
        return Body(_media_type(source[:512], "the bytes"), (source,))
    return _of_file(Path(source))


def _of_file(path: Path) -> Body:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise SourceError(f"no such file or folder: {path} (a text is given as `text`)") from None
    except OSError as exc:
        raise SourceError(f"cannot read {path}: {exc.strerror}") from None
    return Body(_media_type(head, str(path)), (path,))


def _media_type(head: bytes, name: str) -> str:
    """The media type, by the content and not the name. Raises `SourceError`."""
    if not head:
        raise SourceError(f"{name}: empty")
    if head.startswith(_COMPRESSED):
        raise SourceError(f"{name}: compressed; send it as it is (a .tar or .safetensors)")
    if head.startswith(_PICKLED):
        raise SourceError(
            f"{name}: a pickled file, which is never read; save the prefix as safetensors "
            "(PEFT: save_pretrained(..., safe_serialization=True))"
        )
    return _TAR if head[257:262] == b"ustar" or name.endswith(".tar") else _SAFETENSORS


def _of_folder(folder: Path, golden: Sequence[Mapping[str, Any]]) -> Body:
    """A PEFT folder as an uncompressed tar, built while it is sent: configuration, weights, the
    golden prompts given or else the folder's own, and the optional files.

    Raises `SourceError`.
    """
    files = [folder / PEFT_CONFIG, folder / PEFT_WEIGHTS]
    missing = [file.name for file in files if not file.is_file()]
    if PEFT_WEIGHTS in missing and (folder / "adapter_model.bin").is_file():
        raise SourceError(
            f"{folder} holds its weights as a pickle (adapter_model.bin), which is never read; "
            "save it again with safe_serialization=True"
        )
    if missing:
        raise SourceError(f"{folder} is no PEFT folder: it has no {' and no '.join(missing)}")
    parts = [part for file in files for part in _tar_member(file.name, file)]
    lines = "".join(f"{json.dumps(dict(prompt))}\n" for prompt in golden).encode()
    if lines or (folder / GOLDEN).is_file():
        parts += _tar_member(GOLDEN, lines or folder / GOLDEN)
    for name in BESIDE:
        if (folder / name).is_file():
            parts += _tar_member(name, folder / name)
    return Body(_TAR, (*parts, bytes(2 * tarfile.BLOCKSIZE)))


def _tar_member(name: str, content: bytes | Path) -> tuple[bytes | Path, ...]:
    """Header, content, and zeros up to a whole block. Owner and time are left out."""
    member = tarfile.TarInfo(name)
    member.size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return member.tobuf(), content, bytes(-member.size % tarfile.BLOCKSIZE)
