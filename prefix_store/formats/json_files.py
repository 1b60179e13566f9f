"""JSON files beside a prefix in a tar: `foreword.json` and `evaluation.json`."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from prefix_store import strict_json
from prefix_store.errors import InvalidArtifact
from prefix_store.formats import tar
from prefix_store.manifest import Definition, Evaluation
from prefix_store.safetensors_gate import shown

DEFINITION = "foreword.json"
MAX_DEFINITION_BYTES = 8 << 20
EVALUATION = "evaluation.json"
MAX_EVALUATION_BYTES = 1 << 16

M = TypeVar("M", bound=BaseModel)


def definition(data: bytes) -> Definition | None:
    """How the archive's prefix is asked, if it says so. Raises `InvalidArtifact`."""
    return _read(data, DEFINITION, Definition, MAX_DEFINITION_BYTES)


def evaluation(data: bytes) -> Evaluation | None:
    """What was measured of the archive's prefix, if it says so. Raises `InvalidArtifact`."""
    return _read(data, EVALUATION, Evaluation, MAX_EVALUATION_BYTES)


def write(found: Definition) -> bytes:
    """A `foreword.json`."""
    return found.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"


def _read(data: bytes, name: str, kind: type[M], max_bytes: int) -> M | None:
    found = tar.read_files(data, frozenset((name,))).get(name)
    if found is None:
        return None
    if len(found) > max_bytes:
        raise InvalidArtifact(f"{name} is above {max_bytes} bytes")
    try:
        return kind.model_validate(strict_json.parse(found))
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        where = ".".join(shown(at).strip("'") for at in first["loc"])
        raise InvalidArtifact(f"{name}: {where + ': ' if where else ''}{first['msg']}") from None
    except ValueError as error:
        raise InvalidArtifact(f"{name} is not JSON: {error}") from None
