"""Formats of uploads, one module per source format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from prefix_store import artifact
from prefix_store.definition import Definition, Evaluation, GoldenPrompt
from prefix_store.digest import Data, Digest
from prefix_store.errors import InvalidArtifact, UnsupportedMediaType
from prefix_store.formats import peft, sidecars, tar, text
from prefix_store.formats.names import ARTIFACT, KNOWN, PEFT_CONFIG, PEFT_WEIGHTS
from prefix_store.manifest import Draft
from prefix_store.prefix import BaseModelSpec, Prefix, PrefixOf, SoftPrompt, TextPrompt
from prefix_store.safetensors_gate import read_tensors

Source = Prefix | SoftPrompt | TextPrompt | PrefixOf

SAFETENSORS = "application/vnd.safetensors"
OCTET_STREAM = "application/octet-stream"
TAR = ("application/x-tar", "application/tar")
JSON = "application/json"
MAX_JSON_BYTES = 16 << 20
"""Limit of a JSON body: four million characters, unless all of them are escaped."""
MEDIA_TYPES = (SAFETENSORS, OCTET_STREAM, *TAR, JSON)


@dataclass(frozen=True, slots=True)
class Upload:
    """A parsed upload."""

    source: Source
    """A prefix that fits the base model, what one forward turns into a prefix, or the version
    whose prefix is used again."""
    digest: Digest
    """Digest of the uploaded bytes."""
    golden: tuple[GoldenPrompt, ...] | None = ()
    """None: those of the version whose prefix is used again."""
    evaluation: Evaluation | None = None
    definition: Definition | None = None


def read(data: Data, media_type: str, base: BaseModelSpec, *, max_prefix_tokens: int) -> Upload:
    """Parse an upload's body and validate it against the base model.

    `media_type` is the Content-Type with its parameters. An empty one, as sent by `curl -T`, means
    octet-stream: a tar or safetensors file. Raises subclasses of `InvalidUpload`.
    """
    kind = check_media_type(media_type)
    if not data:
        raise InvalidArtifact("the body is empty")
    digest = Digest.of(data)
    if kind == JSON:
        body = text.read(bytes(data))
        return Upload(body.source(), digest, body.golden, body.evaluation, body.definition)
    if kind in TAR or (kind == OCTET_STREAM and tar.is_tar(data)):
        return _read_tar(data, digest, base, max_prefix_tokens)
    source = _read_safetensors(data, digest, base, max_prefix_tokens)
    return Upload(source, digest)


def check_media_type(media_type: str) -> str:
    """Return the media type without parameters. Raises `UnsupportedMediaType`."""
    kind = media_type.partition(";")[0].strip().lower() or OCTET_STREAM
    if kind not in MEDIA_TYPES:
        raise UnsupportedMediaType(f"an upload's media type is one of {', '.join(MEDIA_TYPES)}")
    return kind


def write_tar(num_bytes: int, draft: Draft) -> tuple[bytes, bytes]:
    """Return a tar of a version's artifact, of `num_bytes`, and the files that describe it: the
    parts before and after the artifact. `read` accepts it."""
    return tar.around(ARTIFACT, num_bytes, {}, sidecars.write(draft))


def write_peft(prefix: Prefix, base: BaseModelSpec, draft: Draft) -> Iterator[Data]:
    """Write a tar of a PEFT directory and the files that describe a version, piece by piece.

    Raises `IncompatiblePrefix` at once.
    """
    config, weights = peft.to_files(prefix, base)
    before, after = tar.around(
        PEFT_WEIGHTS, weights.num_bytes, {PEFT_CONFIG: config}, sidecars.write(draft)
    )
    return chain((before,), weights, (after,))


def _read_tar(data: Data, digest: Digest, base: BaseModelSpec, max_prefix_tokens: int) -> Upload:
    archive = tar.Archive(data, KNOWN)
    files = archive.files(frozenset((ARTIFACT, PEFT_CONFIG)))
    if ARTIFACT in files and PEFT_CONFIG in files:
        raise InvalidArtifact(
            f"the tar contains both {ARTIFACT} and {PEFT_CONFIG}: send one of them"
        )
    source: Source
    if ARTIFACT in files:
        source = _read_safetensors(files[ARTIFACT], digest, base, max_prefix_tokens)
    else:
        files = archive.files(frozenset((PEFT_CONFIG, PEFT_WEIGHTS)))
        source = peft.read_files(files, base, max_prefix_tokens=max_prefix_tokens, source=digest)
    return Upload(
        source,
        digest,
        golden=sidecars.read_golden(archive),
        evaluation=sidecars.read_evaluation(archive),
        definition=sidecars.read_definition(archive, base),
    )


def _read_safetensors(
    data: Data, digest: Digest, base: BaseModelSpec, max_prefix_tokens: int
) -> Source:
    tensors, _ = read_tensors(data)
    if any(name.startswith("layers.") for name in tensors):
        del tensors  # the copy of `data` that they are views of, if it is not writable
        return artifact.load(data, base, max_prefix_tokens=max_prefix_tokens)
    return peft.read_tensors(
        tensors, None, base, max_prefix_tokens=max_prefix_tokens, source=digest
    )
