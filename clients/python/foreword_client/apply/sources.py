"""Where prefixes come from: local files and folders, URLs, texts, and versions that exist."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from foreword_client import _tar, types
from foreword_client._body import Body, Part, size
from foreword_client._upload import ARTIFACT, DEFINITION, GOLDEN, Upload
from foreword_client.apply import remote
from foreword_client.apply.files import describe
from foreword_client.apply.models import Definition, VersionSpec
from foreword_client.errors import SourceError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAR = "application/x-tar"
_LABEL_CHARS = 40
_MADE_FOR = ("base_model", "fingerprint")
"""Fields of a `foreword.json` that are no part of the definition, and that the server checks."""


class StoredSource:
    """A version that exists, by its digest or the digest of its upload."""

    def __init__(self, digest: str) -> None:
        self.label = digest[:19]
        self._digest = digest

    def digest(self, definition: Definition) -> str:
        return self._digest

    def held_by(self, versions: Iterable[types.Manifest]) -> frozenset[int]:
        """Return the versions of this digest."""
        return frozenset(v.version for v in versions if self._digest in (v.digest, v.source_digest))


class UploadSource:
    """A prefix to upload, unless a version has it: from a file, a folder, text or messages."""

    def __init__(self, label: str, upload: Upload) -> None:
        """`label`: how a plan names it. Raises `SourceError`."""
        self.label = label
        self._plain = upload
        self._made_for: dict[str, Any] = {}
        self.own = self._read_own(upload.own_definition())
        """How it says itself that it is asked, if it does."""
        self._begin: tuple[Part, ...] = ()
        self._hash_of_begin = sha256()
        self._digest_as_is = self._digest(upload.body())

    def upload(self, definition: Definition) -> Upload:
        """Return the upload with a definition.

        One without would take over that of the active version.
        """
        asked = definition.to_json() | self._made_for
        return replace(self._plain, definition=asked)

    def digest(self, definition: Definition) -> str:
        """Return the digest of the upload, which its manifest would have as `source_digest`."""
        return self._digest(self.upload(definition).body())

    def held_by(
        self, versions: Iterable[types.Manifest], tried: Sequence[Definition]
    ) -> frozenset[int]:
        """Return the versions that have this prefix. `tried` are definitions that may have been
        uploaded with it: the digest of an upload covers both."""
        digests = {self._digest_as_is, *map(self.digest, tried)}
        return frozenset(
            v.version for v in versions if v.source_digest in digests or self._is_artifact_of(v)
        )

    def _read_own(self, found: dict[str, Any] | None) -> Definition | None:
        if found is None:
            return None
        self._made_for = {name: found[name] for name in _MADE_FOR if found.get(name) is not None}
        data = _renamed({name: found[name] for name in found.keys() - set(_MADE_FOR)})
        try:
            return Definition.model_validate_json(json.dumps(data))
        except ValidationError as exc:
            raise SourceError(f"{DEFINITION}: {describe(exc, data)}") from None

    def _digest(self, body: Body) -> str:
        """Return the digest of a body. Its largest part, which is the prefix, is read once."""
        num_begin = 1 + max(range(len(body.parts)), key=lambda index: size(body.parts[index]))
        begin, end = body.parts[:num_begin], body.parts[num_begin:]
        if begin != self._begin:
            self._begin, self._hash_of_begin = begin, _hashed(sha256(), begin)
        return f"sha256:{_hashed(self._hash_of_begin.copy(), end).hexdigest()}"

    def _is_artifact_of(self, version: types.Manifest) -> bool:
        """Whether it is the version's artifact, with the same golden prompts."""
        if version.digest != self._digest_of_artifact:
            return False
        return self._golden == [prompt.model_dump() for prompt in version.golden]

    @cached_property
    def _digest_of_artifact(self) -> str | None:
        source = self._plain.source
        if source is None:
            return None
        if (artifact := _beside(source, ARTIFACT)) is not None:
            return f"sha256:{sha256(artifact).hexdigest()}"
        return self._digest_as_is

    @cached_property
    def _golden(self) -> list[Any]:
        assert self._plain.source is not None, "only files are compared by their artifact"
        lines = (_beside(self._plain.source, GOLDEN) or b"").splitlines()
        try:
            return [json.loads(line) for line in lines if line.strip()]
        except ValueError:
            raise SourceError(f"{GOLDEN} is not JSON, line by line") from None


Source = StoredSource | UploadSource
"""Where the prefix of a version comes from."""


def open_source(spec: VersionSpec, folder: Path, scratch: Path) -> Source | None:
    """Open the source of a version; None if the file of tasks names none.

    `folder`: what paths are relative to. `scratch`: where copies are kept. Raises `SourceError`.
    """
    if spec.text is not None:
        return UploadSource(_label("text", spec.text), Upload(text=spec.text))
    if spec.messages is not None:
        messages = [message.model_dump() for message in spec.messages]
        return UploadSource(_label("messages", messages), Upload(messages=messages))
    if spec.prefix is None:
        return None
    if _DIGEST.fullmatch(spec.prefix):
        return StoredSource(spec.prefix)
    if spec.prefix.startswith("sha256:"):
        raise SourceError("a digest is `sha256:` and 64 hexadecimal digits")
    if remote.is_url(spec.prefix):
        copy = remote.fetch(spec.prefix, Path(tempfile.mkdtemp(dir=scratch)))
        return UploadSource(remote.shown(spec.prefix), Upload(copy))
    return UploadSource(spec.prefix, Upload(folder / Path(spec.prefix).expanduser()))


def _label(name: str, value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"{name} {text if len(text) <= _LABEL_CHARS else text[:_LABEL_CHARS] + '...'}"


def _hashed(found: Any, parts: tuple[Part, ...]) -> Any:
    for chunk in Body("", parts).chunks():
        found.update(chunk)
    return found


def _beside(source: Any, name: str) -> bytes | None:
    """Read a file of a folder or a tar; None if there is none."""
    path = Path(source)
    if path.is_dir():
        return (path / name).read_bytes() if (path / name).is_file() else None
    return _tar.read(path, name) if Upload(path).body().media_type == _TAR else None


def _renamed(definition: dict[str, Any]) -> dict[str, Any]:
    """Read the names that `rank` had in files up to 0.1.1."""
    defaults = definition.get("defaults")
    if not isinstance(defaults, dict) or not defaults.keys() & {"choices", "rank_by"}:
        return definition
    rest = {name: defaults[name] for name in defaults.keys() - {"choices", "rank_by"}}
    if (texts := defaults.get("choices")) is not None:
        rest["rank"] = {"texts": texts, "by": defaults.get("rank_by") or "sum"}
    return definition | {"defaults": rest}
