"""Where prefixes come from: local files and folders, URLs, texts, and versions that exist."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from foreword_client import _body, types
from foreword_client._body import BESIDE, GOLDEN, PEFT_CONFIG, PEFT_WEIGHTS, Body
from foreword_client.apply import remote, tars
from foreword_client.apply.files import describe
from foreword_client.apply.models import Definition, VersionSpec
from foreword_client.apply.remote import ARTIFACT, KNOWN
from foreword_client.errors import SourceError

DEFINITION, EVALUATION = BESIDE
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_HEADER_BYTES = 1 << 20
_LABEL_CHARS = 40


class Source(Protocol):
    """Where the prefix of a version comes from."""

    @property
    def label(self) -> str:
        """How a plan names it."""
        ...

    @property
    def own(self) -> Definition | None:
        """How it says that it is asked; None if it does not."""
        ...

    def held_by(
        self, versions: Iterable[types.Manifest], tried: Sequence[Definition]
    ) -> frozenset[int]:
        """Return the versions that have this prefix. `tried` are definitions that may have been
        uploaded with it: the digest of an upload covers both."""
        ...

    def body(self, definition: Definition) -> Body | None:
        """The upload of the prefix with a definition; None if it can only be found."""
        ...


@dataclass(frozen=True, slots=True)
class StoredSource:
    """A version that exists, by its digest or the digest of its upload."""

    digest: str
    own: Definition | None = None

    @property
    def label(self) -> str:
        return self.digest[:19]

    def held_by(
        self, versions: Iterable[types.Manifest], tried: Sequence[Definition]
    ) -> frozenset[int]:
        return frozenset(v.version for v in versions if self.digest in (v.digest, v.source_digest))

    def body(self, definition: Definition) -> Body | None:
        return None


@dataclass(frozen=True, slots=True)
class ComputedSource:
    """Text or messages, from which the server computes a prefix."""

    fields: dict[str, Any]
    own: Definition | None = None

    @property
    def label(self) -> str:
        [(name, value)] = self.fields.items()
        text = json.dumps(value, ensure_ascii=False)
        return f"{name} {text if len(text) <= _LABEL_CHARS else text[:_LABEL_CHARS] + '...'}"

    def held_by(
        self, versions: Iterable[types.Manifest], tried: Sequence[Definition]
    ) -> frozenset[int]:
        bodies = [_body.of_json(self.fields), *map(self.body, tried)]
        digests = set(map(digest_of, bodies))
        return frozenset(v.version for v in versions if v.source_digest in digests)

    def body(self, definition: Definition) -> Body:
        return _body.of_json(self.fields | {"definition": definition.to_json()})


class FileSource:
    """A prefix in local files."""

    def __init__(
        self, label: str, as_is: Body, files: dict[str, Path], own: Definition | None
    ) -> None:
        """`as_is`: what `foreword push` would upload. `files`: the prefix and what lies beside it,
        by name."""
        self.label = label
        self.as_is = as_is
        self.own = own
        self._files = files

    def held_by(
        self, versions: Iterable[types.Manifest], tried: Sequence[Definition]
    ) -> frozenset[int]:
        digests = {self._digest_as_is, *map(self._digest_with, tried)}
        return frozenset(
            v.version for v in versions if v.source_digest in digests or self._is_artifact_of(v)
        )

    def body(self, definition: Definition) -> Body:
        # Without a definition of its own, an upload would take over that of the active version.
        if definition == self.own:
            return self.as_is
        return Body(tars.MEDIA_TYPE, (*self._parts, *_last_parts(definition)))

    @cached_property
    def _parts(self) -> tuple[bytes | Path, ...]:
        """The tar up to the definition, which is its last member."""
        names = (name for name in KNOWN if name in self._files and name != DEFINITION)
        return tuple(part for name in names for part in tars.member(name, self._files[name]))

    @cached_property
    def _digest_as_is(self) -> str:
        return digest_of(self.as_is)

    @cached_property
    def _hash_of_parts(self) -> Any:
        return _hash_of(Body(tars.MEDIA_TYPE, self._parts))

    def _digest_with(self, definition: Definition) -> str:
        """Return the digest of `body`. Reads the prefix once, whatever the definition."""
        if definition == self.own:
            return self._digest_as_is
        found = self._hash_of_parts.copy()
        for part in _last_parts(definition):
            found.update(part)
        return f"sha256:{found.hexdigest()}"

    def _is_artifact_of(self, version: types.Manifest) -> bool:
        """Whether the artifact is the version's, with the same golden prompts and evaluation."""
        if ARTIFACT not in self._files or version.digest != self._digest_of_artifact:
            return False
        evaluation = version.evaluation and version.evaluation.model_dump()
        golden = [prompt.model_dump() for prompt in version.golden]
        return (self._golden, self._evaluation) == (golden, evaluation)

    @cached_property
    def _digest_of_artifact(self) -> str:
        return digest_of(Body("", (self._files[ARTIFACT],)))

    @cached_property
    def _golden(self) -> list[Any]:
        lines = _read(self._files[GOLDEN]).splitlines() if GOLDEN in self._files else []
        return [_json(GOLDEN, line) for line in lines if line.strip()]

    @cached_property
    def _evaluation(self) -> Any:
        path = self._files.get(EVALUATION)
        return None if path is None else _json(EVALUATION, _read(path))


def open_source(spec: VersionSpec, folder: Path, scratch: Path) -> Source | None:
    """Open the source of a version; None if the file of tasks names none.

    `folder`: what paths are relative to. `scratch`: where copies are kept. Raises `SourceError`.
    """
    if spec.text is not None:
        return ComputedSource({"text": spec.text})
    if spec.messages is not None:
        return ComputedSource({"messages": [message.model_dump() for message in spec.messages]})
    if spec.prefix is None:
        return None
    if _DIGEST.fullmatch(spec.prefix):
        return StoredSource(spec.prefix)
    if spec.prefix.startswith("sha256:"):
        raise SourceError("a digest is `sha256:` and 64 hexadecimal digits")
    if remote.is_url(spec.prefix):
        copy = remote.fetch(spec.prefix, Path(tempfile.mkdtemp(dir=scratch)))
        return open_files(copy, scratch, label=remote.shown(spec.prefix))
    return open_files(folder / Path(spec.prefix).expanduser(), scratch, label=spec.prefix)


def open_files(path: Path, scratch: Path, *, label: str) -> FileSource:
    """Open a folder, a .safetensors file or a .tar. Raises `SourceError`."""
    if path.is_dir():
        files = {name: path / name for name in KNOWN if (path / name).is_file()}
        has_artifact = ARTIFACT in files and not {PEFT_CONFIG, PEFT_WEIGHTS} & files.keys()
        as_is = tars.write(files) if has_artifact else _body.of_prefix(path, None, None)
    else:
        as_is = _body.of_prefix(path, None, None)
        is_tar = as_is.media_type == tars.MEDIA_TYPE
        files = _unpacked(path, scratch) if is_tar else _bare(path)
    own = _definition(files[DEFINITION]) if DEFINITION in files else None
    return FileSource(label, as_is, files, own)


def digest_of(body: Body) -> str:
    """Return the digest of a body's bytes, which a manifest has as `source_digest`."""
    return f"sha256:{_hash_of(body).hexdigest()}"


def _hash_of(body: Body) -> Any:
    found = sha256()
    for chunk in body.chunks():
        found.update(chunk)
    return found


def _last_parts(definition: Definition) -> Iterator[bytes]:
    content = json.dumps(definition.to_json(), indent=2).encode() + b"\n"
    for part in tars.member(DEFINITION, content):
        assert isinstance(part, bytes)
        yield part
    yield tars.END


def _unpacked(path: Path, scratch: Path) -> dict[str, Path]:
    files = tars.unpack(path, Path(tempfile.mkdtemp(dir=scratch)))
    if not {ARTIFACT, PEFT_WEIGHTS} & files.keys():
        raise SourceError(f"the tar has neither {ARTIFACT} nor {PEFT_WEIGHTS}")
    return files


def _bare(path: Path) -> dict[str, Path]:
    """Return an artifact as the file of a folder. Raises `SourceError` for other safetensors."""
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        header = file.read(min(num_bytes, _MAX_HEADER_BYTES))
    names = _json("the header of the file", header)
    if not isinstance(names, dict) or not any(name.startswith("layers.") for name in names):
        raise SourceError(f"weights alone: give the folder, which has the {PEFT_CONFIG} too")
    return {ARTIFACT: path}


def _definition(path: Path) -> Definition:
    data = _json(DEFINITION, _read(path))
    try:
        return Definition.model_validate(data)
    except ValidationError as exc:
        raise SourceError(f"{DEFINITION}: {describe(exc, data)}") from None


def _json(name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise SourceError(f"{name} is not JSON") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise SourceError(f"{path.name}: {exc.strerror}") from None
