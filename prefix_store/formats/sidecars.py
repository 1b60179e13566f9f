"""Optional files next to a prefix in a tar: definition, golden prompts, evaluation."""

from __future__ import annotations

import io
from itertools import islice
from typing import TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from prefix_store import strict_json, wording
from prefix_store.definition import (
    MAX_GOLDEN_PROMPTS,
    Definition,
    Evaluation,
    GoldenPrompt,
    GoldenPrompts,
)
from prefix_store.errors import InvalidArtifact, WrongBaseModel
from prefix_store.formats.names import DEFINITION, EVALUATION, GOLDEN
from prefix_store.formats.tar import Archive
from prefix_store.manifest import Draft
from prefix_store.prefix import BaseModelSpec
from prefix_store.safetensors_gate import shown

MAX_BYTES = {DEFINITION: 8 << 20, GOLDEN: 8 << 20, EVALUATION: 1 << 16}
_golden = TypeAdapter[tuple[GoldenPrompt, ...]](GoldenPrompts)

M = TypeVar("M", bound=BaseModel)


class DefinitionFile(Definition):
    """The content of `foreword.json`: a definition, and what the prefix was made for."""

    base_model: str | None = Field(None, max_length=1000)
    """Name of the base model. For people: the fingerprint decides."""
    fingerprint: str | None = Field(None, max_length=100)
    """Fingerprint of the base model's weights."""


def read_definition(archive: Archive, base: BaseModelSpec) -> Definition | None:
    """Read `foreword.json`, if the archive has one. Raises `InvalidArtifact`, `WrongBaseModel`."""
    if (file := _read_json(archive, DEFINITION, DefinitionFile)) is None:
        return None
    if file.fingerprint not in (None, base.fingerprint):
        raise WrongBaseModel(
            f"{DEFINITION} says that the prefix was made for another base model"
            + (f" ({shown(file.base_model)})" if file.base_model else "")
        )
    given = file.model_fields_set & Definition.model_fields.keys()
    return Definition.model_validate({name: getattr(file, name) for name in given})


def read_evaluation(archive: Archive) -> Evaluation | None:
    """Read `evaluation.json`, if the archive has one. Raises `InvalidArtifact`."""
    return _read_json(archive, EVALUATION, Evaluation)


def read_golden(archive: Archive) -> tuple[GoldenPrompt, ...]:
    """Read `golden.jsonl`, one JSON object per line, if the archive has one.

    Raises `InvalidArtifact`.
    """
    lines = filter(bytes.strip, io.BytesIO(_read(archive, GOLDEN) or b""))
    try:
        # One more than allowed, which is then refused: a file may have millions of lines.
        found = [strict_json.parse(line) for line in islice(lines, MAX_GOLDEN_PROMPTS + 1)]
        return _golden.validate_python(found)
    except ValidationError as error:
        raise InvalidArtifact(f"{GOLDEN}: {wording.first(error, 'file')}") from None
    except ValueError as error:
        raise InvalidArtifact(f"{GOLDEN} is not JSON, line by line: {error}") from None


def write(draft: Draft) -> dict[str, bytes]:
    """Return the files that describe a version, by name."""
    definition = DefinitionFile(
        **dict(draft.definition), base_model=draft.base_model, fingerprint=draft.fingerprint
    )
    files = {DEFINITION: definition.model_dump_json(indent=2, exclude_none=True) + "\n"}
    if draft.golden:
        files[GOLDEN] = "".join(prompt.model_dump_json() + "\n" for prompt in draft.golden)
    if draft.evaluation is not None:
        files[EVALUATION] = draft.evaluation.model_dump_json() + "\n"
    return {name: text.encode() for name, text in files.items()}


def _read_json(archive: Archive, name: str, kind: type[M]) -> M | None:
    if (found := _read(archive, name)) is None:
        return None
    try:
        return kind.model_validate(strict_json.parse(found))
    except ValidationError as error:
        raise InvalidArtifact(f"{name}: {wording.first(error, 'file')}") from None
    except ValueError as error:
        raise InvalidArtifact(f"{name} is not JSON: {error}") from None


def _read(archive: Archive, name: str) -> bytes | None:
    found = archive.files(frozenset((name,))).get(name)
    if found is not None and len(found) > MAX_BYTES[name]:
        raise InvalidArtifact(f"{name} is larger than {MAX_BYTES[name]} bytes")
    return None if found is None else bytes(found)
