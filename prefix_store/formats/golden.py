"""Golden prompts that come with an upload: `golden` in a JSON body, `golden.jsonl` in a tar."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from prefix_store import strict_json
from prefix_store.errors import InvalidArtifact
from prefix_store.formats import tar
from prefix_store.manifest import GoldenPrompt, GoldenPrompts

FILE = "golden.jsonl"
MAX_BYTES = 8 << 20
_golden = TypeAdapter[tuple[GoldenPrompt, ...]](GoldenPrompts)


def of_json(data: bytes) -> tuple[GoldenPrompt, ...]:
    """Of a body that `text.read` has taken, which checks all of it."""
    return _golden.validate_python(strict_json.parse(data).get("golden") or ())


def of_tar(data: bytes) -> tuple[GoldenPrompt, ...]:
    """One JSON object a line, if the archive has the file. Raises `InvalidArtifact`."""
    lines = tar.read_files(data, frozenset((FILE,))).get(FILE, b"")
    if len(lines) > MAX_BYTES:
        raise InvalidArtifact(f"{FILE} is above {MAX_BYTES} bytes")
    try:
        found = [strict_json.parse(line) for line in lines.splitlines() if line.strip()]
        return _golden.validate_python(found)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        where = ".".join(str(at) for at in first["loc"] if isinstance(at, int))
        raise InvalidArtifact(f"{FILE}, prompt {where or 'list'}: {first['msg']}") from None
    except ValueError as error:
        raise InvalidArtifact(f"{FILE} is not JSON, line by line: {error}") from None
