"""What an upload can be, one file per source format."""

from __future__ import annotations

from prefix_store import artifact
from prefix_store.digest import Digest
from prefix_store.errors import InvalidArtifact, UnsupportedMediaType
from prefix_store.formats import golden, json_files, peft, tar, text
from prefix_store.manifest import Definition, Evaluation, GoldenPrompt
from prefix_store.prefix import BaseModelSpec, Prefix, SoftPrompt, TextPrompt
from prefix_store.safetensors_gate import read_tensors

Upload = Prefix | SoftPrompt | TextPrompt

SAFETENSORS = "application/vnd.safetensors"
OCTET_STREAM = "application/octet-stream"
TAR = ("application/x-tar", "application/tar")
JSON = "application/json"
MAX_JSON_BYTES = 16 << 20
"""Of a body of text: four million characters, unless they are escaped one and all."""
MEDIA_TYPES = (SAFETENSORS, OCTET_STREAM, *TAR, JSON)

ARTIFACT = "prefix.safetensors"
"""An artifact's name in a tar, beside its `foreword.json`."""


def read(data: bytes, media_type: str, base: BaseModelSpec, *, max_prefix_tokens: int) -> Upload:
    """Turn an upload's body into a prefix that fits `base`, or into what one forward makes one of.

    `media_type` is the Content-Type, parameters and all; an empty one, which is what `curl -T`
    sends, means octet-stream: a tar or safetensors file. Raises subclasses of `InvalidUpload`.
    """
    kind = media_type.partition(";")[0].strip().lower() or OCTET_STREAM
    if kind not in MEDIA_TYPES:
        raise UnsupportedMediaType(f"an upload's media type is one of {', '.join(MEDIA_TYPES)}")
    if not data:
        raise InvalidArtifact("the body is empty")
    if kind == JSON:
        return text.read(data)
    if kind in TAR or (kind == OCTET_STREAM and tar.is_tar(data)):
        return _read_tar(data, base, max_prefix_tokens=max_prefix_tokens)
    return _read_safetensors(data, base, max_prefix_tokens=max_prefix_tokens)


def read_golden(data: bytes, media_type: str) -> tuple[GoldenPrompt, ...]:
    """The golden prompts of a body that `read` has taken. Raises `InvalidArtifact`."""
    kind = media_type.partition(";")[0].strip().lower()
    if kind == JSON:
        return golden.of_json(data)
    return golden.of_tar(data) if tar.is_tar(data) else ()


def read_evaluation(data: bytes) -> Evaluation | None:
    """What a body that `read` has taken says about its prefix. Raises `InvalidArtifact`."""
    return json_files.evaluation(data) if tar.is_tar(data) else None


def read_definition(data: bytes) -> Definition | None:
    """How a body that `read` has taken says its prefix is asked. Raises `InvalidArtifact`."""
    return json_files.definition(data) if tar.is_tar(data) else None


def write_tar(artifact_bytes: bytes, definition: Definition) -> bytes:
    """An artifact and how it is asked, as an upload takes them."""
    return tar.write(
        {ARTIFACT: artifact_bytes, json_files.DEFINITION: json_files.write(definition)}
    )


def write_peft(prefix: Prefix, base: BaseModelSpec, definition: Definition) -> bytes:
    """A directory that PEFT loads, and how it is asked. Raises `IncompatiblePrefix`."""
    beside = {json_files.DEFINITION: json_files.write(definition)}
    return tar.write(peft.write(prefix, base) | beside)


def _read_tar(data: bytes, base: BaseModelSpec, *, max_prefix_tokens: int) -> Prefix | SoftPrompt:
    found = tar.read_files(data, frozenset((ARTIFACT, peft.CONFIG)))
    if ARTIFACT in found and peft.CONFIG in found:
        raise InvalidArtifact(
            f"the tar contains both {ARTIFACT} and {peft.CONFIG}: send one of them"
        )
    if ARTIFACT in found:
        return artifact.load(found[ARTIFACT], base, max_prefix_tokens=max_prefix_tokens)
    return peft.read_tar(data, base, max_prefix_tokens=max_prefix_tokens)


def _read_safetensors(data: bytes, base: BaseModelSpec, *, max_prefix_tokens: int) -> Upload:
    tensors, _ = read_tensors(data)
    if any(name.startswith("layers.") for name in tensors):
        del tensors  # one copy in memory at a time
        return artifact.load(data, base, max_prefix_tokens=max_prefix_tokens)
    return peft.read_tensors(
        tensors, None, base, max_prefix_tokens=max_prefix_tokens, source=Digest.of(data)
    )
