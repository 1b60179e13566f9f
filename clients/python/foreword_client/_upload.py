"""What a push uploads: a prefix from one source, and what goes beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from foreword_client import _tar
from foreword_client._body import Body, Part, Slice, of_json
from foreword_client.errors import SourceError
from foreword_client.types import Definition, Evaluation

Source = str | os.PathLike[str] | bytes

ARTIFACT = "prefix.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
DEFINITION = "foreword.json"
GOLDEN = "golden.jsonl"
EVALUATION = "evaluation.json"
BESIDE = (DEFINITION, GOLDEN, EVALUATION)
"""Optional files beside a prefix."""

_TAR = "application/x-tar"
_SAFETENSORS = "application/vnd.safetensors"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class Upload:
    """A prefix from exactly one source. What goes beside it replaces what the source has."""

    source: Source | None = None
    text: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    prefix_of: int | None = None
    """A version of the task whose prefix is used again."""
    definition: Definition | Mapping[str, Any] | None = None
    golden: Sequence[Mapping[str, Any]] = ()
    evaluation: Evaluation | Mapping[str, Any] | None = None

    def body(self) -> Body:
        """The request's body. Raises `SourceError`."""
        computed = {
            "text": self.text,
            "messages": None if self.messages is None else [dict(m) for m in self.messages],
            "prefix_of": self.prefix_of,
        }
        given = {name: value for name, value in computed.items() if value is not None}
        if len(given) + (self.source is not None) != 1:
            raise SourceError(
                "give exactly one of: a source, text=..., messages=..., prefix_of=..."
            )
        if self.source is None:
            return of_json(given | self._fields())
        if isinstance(self.source, bytes):
            return self._of_file(self.source)
        path = Path(self.source)
        return self._of_folder(path) if path.is_dir() else self._of_file(path)

    def asked(self, base: Mapping[str, Any], changes: Mapping[str, Any]) -> Self:
        """Return a copy with the definition `base`, changed; None restores a default."""
        changed = {k: v for k, v in _merged(base, changes).items() if v is not None}
        if isinstance(defaults := changed.get("defaults"), Mapping):
            changed["defaults"] = {k: v for k, v in defaults.items() if v is not None}
        return replace(self, definition=changed)

    def own_definition(self) -> dict[str, Any] | None:
        """The definition that the upload has so far. Raises `SourceError`."""
        if self.definition is not None:
            return _plain(self.definition)
        if self.source is None:
            return None
        data = self._read_beside(DEFINITION)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except ValueError:
            raise SourceError(f"the {DEFINITION} of the source is not JSON") from None
        if not isinstance(found, dict):
            raise SourceError(f"the {DEFINITION} of the source is not a JSON object")
        return found

    def _read_beside(self, name: str) -> bytes | None:
        assert self.source is not None
        source = self.source if isinstance(self.source, bytes) else Path(self.source)
        if isinstance(source, Path) and source.is_dir():
            return (source / name).read_bytes() if (source / name).is_file() else None
        return _tar.read(source, name) if _kind(source) == _TAR else None

    def _fields(self) -> dict[str, Any]:
        """What goes beside a prefix, as fields of a JSON body."""
        fields = {
            "definition": None if self.definition is None else _plain(self.definition),
            "golden": [dict(prompt) for prompt in self.golden],
            "evaluation": None if self.evaluation is None else _plain(self.evaluation),
        }
        return {name: value for name, value in fields.items() if value not in (None, [])}

    def _files(self) -> dict[str, bytes]:
        """What goes beside a prefix, as files of a tar."""
        files = {}
        fields = self._fields()
        if "definition" in fields:
            files[DEFINITION] = _json(fields["definition"])
        if "golden" in fields:
            files[GOLDEN] = b"".join(_json(prompt) for prompt in fields["golden"])
        if "evaluation" in fields:
            files[EVALUATION] = _json(fields["evaluation"])
        return files

    def _of_file(self, source: bytes | Path) -> Body:
        """A tar or safetensors file; the latter becomes a tar if anything goes beside it."""
        kind, files = _kind(source), self._files()
        if kind == _TAR:
            return Body(_TAR, _tar.replaced(source, files))
        content = source if isinstance(source, bytes) else Slice.whole(source)
        if not files:
            return Body(kind, (content,))
        return Body(_TAR, _tar.of({ARTIFACT: content, **files}))

    def _of_folder(self, folder: Path) -> Body:
        """A folder as an uncompressed tar, built while it is sent: a prefix as PEFT or a download
        wrote it, and what goes beside it. Raises `SourceError`."""
        names = [ARTIFACT] if (folder / ARTIFACT).is_file() else [PEFT_CONFIG, PEFT_WEIGHTS]
        if names == [ARTIFACT] and (folder / PEFT_CONFIG).is_file():
            raise SourceError(f"{folder} holds both {ARTIFACT} and {PEFT_CONFIG}: remove one")
        missing = [name for name in names if not (folder / name).is_file()]
        if PEFT_WEIGHTS in missing and (folder / "adapter_model.bin").is_file():
            raise SourceError(
                f"{folder} holds its weights as a pickle (adapter_model.bin), which is never read; "
                "save it again with safe_serialization=True"
            )
        if missing:
            raise SourceError(f"{folder} is no PEFT folder: it has no {' and no '.join(missing)}")
        names += [name for name in BESIDE if (folder / name).is_file()]
        files: dict[str, Part] = {name: Slice.whole(folder / name) for name in names}
        return Body(_TAR, _tar.of(files | self._files()))


def _plain(value: Definition | Evaluation | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    return value.model_dump(mode="json", exclude_none=True)


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A definition with changed fields; `defaults` are changed one by one."""
    defaults = changes.get("defaults")
    if defaults is not None:
        changes = {**changes, "defaults": {**(base.get("defaults") or {}), **defaults}}
    return {**base, **changes}


def _kind(source: bytes | Path) -> str:
    """The media type of a file or its bytes. Raises `SourceError`."""
    if isinstance(source, bytes):
        return _media_type(source[:512], "the bytes")
    return _media_type(_head(source), str(source))


def _head(path: Path) -> bytes:
    """The first block of a file. Raises `SourceError`."""
    try:
        with path.open("rb") as file:
            return file.read(512)
    except FileNotFoundError:
        raise SourceError(f"no such file or folder: {path} (a text is given as `text`)") from None
    except OSError as exc:
        raise SourceError(f"cannot read {path}: {exc.strerror}") from None


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
