"""The evaluation that comes with an upload: `evaluation.json` in a tar."""

from __future__ import annotations

from pydantic import ValidationError

from prefix_store import strict_json
from prefix_store.errors import InvalidArtifact
from prefix_store.formats import tar
from prefix_store.manifest import Evaluation

FILE = "evaluation.json"
MAX_BYTES = 1 << 16


def of_tar(data: bytes) -> Evaluation | None:
    """None where the archive has no such file. Raises `InvalidArtifact`."""
    found = tar.read_files(data, frozenset((FILE,))).get(FILE)
    if found is None:
        return None
    if len(found) > MAX_BYTES:
        raise InvalidArtifact(f"{FILE} is above {MAX_BYTES} bytes")
    try:
        return Evaluation.model_validate(strict_json.parse(found))
    except ValidationError as error:
        raise InvalidArtifact(f"{FILE}: {error.errors()[0]['msg']}") from None
    except ValueError as error:
        raise InvalidArtifact(f"{FILE} is not JSON: {error}") from None
