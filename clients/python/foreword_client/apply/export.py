"""Tasks of a server as a file that `apply` reads, and their prefixes beside it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from foreword_client import types
from foreword_client.apply.models import DEFINITION_FIELDS, Settings
from foreword_client.apply.state import definition_of, run_all
from foreword_client.async_client import AsyncClient
from foreword_client.errors import UnknownTaskError

Document = dict[str, Any]
PREFIXES = "prefixes"
"""Folder of the prefixes, beside the file."""

_PLAIN_LINES = re.compile(r"[!-~]([ -~]*[!-~])?(\n+[!-~]([ -~]*[!-~])?)+\n?")
"""Lines that begin and end with printable ASCII: a block scalar changes nothing about them."""


async def export(
    client: AsyncClient, names: Sequence[str], folder: Path | None, *, concurrency: int = 4
) -> Document:
    """Describe tasks, all of them without `names`, as a file of tasks does.

    With a folder, the prefixes are written into it; without, they are named by digest. Versions
    that get no traffic and are not pinned are left out. Raises `UnknownTaskError`.
    """
    found = [task.name for task in await client.tasks()]
    for name in names:
        if name not in found:
            await client.task(name)  # raises what the server says about it

    async def one(name: str) -> tuple[str, Document] | None:
        try:
            return name, await _task(client, name, folder)
        except UnknownTaskError:  # deleted since it was listed
            return None

    tasks = await run_all(one, names or found, concurrency=concurrency)
    return {"tasks": dict(task for task in tasks if task is not None)}


def to_yaml(document: Document) -> str:
    """Return a document as YAML; texts of several lines stay as they are."""
    text = io.StringIO()
    writer = YAML(pure=True)
    writer.default_flow_style = False
    writer.allow_unicode = True
    writer.width = 100
    writer.dump(_readable(document), text)
    return text.getvalue()


async def _task(client: AsyncClient, name: str, folder: Path | None) -> Document:
    task, versions = await client.task(name), await client.versions(name)
    found = _settings(task)
    kept = {version.version: version for version in _kept(task, versions)}
    shared = [await _version(client, task, version, folder) for version in kept.values()]
    weights = task.weights or {task.active_version or 0: 1}
    if len(shared) == 1:
        return found | shared[0]
    if shared:
        found["versions"] = [
            version | {"traffic": weights.get(number, 0)}
            for number, version in zip(kept, shared, strict=True)
        ]
        found |= _rule(versions) if task.weights else {}
    else:
        found |= _asked(task, None)
    return found


def _settings(task: types.Task) -> Document:
    settings = Settings.of(task.profile)
    return settings.model_dump(mode="json", exclude_defaults=True, exclude_none=True)


def _kept(task: types.Task, versions: types.Versions) -> Iterator[types.Version]:
    """Yield the active version, then those with traffic or a pin."""
    weights = task.weights or {}
    by_number = {version.version: version for version in versions.versions}
    if task.active_version is None:
        return
    yield by_number.pop(task.active_version)
    for number, version in by_number.items():
        if weights.get(number) or version.pinned:
            yield version


def _rule(versions: types.Versions) -> Document:
    rule = max(versions.history, key=lambda activation: activation.seq).rollback_if
    return {} if rule is None else {"rollback_if": rule.model_dump(exclude_defaults=True)}


async def _version(
    client: AsyncClient, task: types.Task, version: types.Version, folder: Path | None
) -> Document:
    found: Document = {"prefix": version.digest}
    if folder is not None:
        path = Path(PREFIXES) / f"{task.name}-v{version.version}.tar"
        data = await client.download(task.name, version.version, format="tar")
        (folder / PREFIXES).mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        found["prefix"] = str(path)
    return found | _asked(task, version) | ({"pinned": True} if version.pinned else {})


def _asked(task: types.Task, version: types.Version | None) -> Document:
    definition = task.profile if version is None else definition_of(version)
    data: Mapping[str, Any] = definition.model_dump(mode="json", exclude_none=True)
    return {name: data[name] for name in DEFINITION_FIELDS if data.get(name)}


def _readable(value: Any) -> Any:
    """Choose how texts are written: those of several lines as they are."""
    if isinstance(value, dict):
        return {_readable(key): _readable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_readable(one) for one in value]
    if not isinstance(value, str):
        return value
    if _PLAIN_LINES.fullmatch(value):
        return LiteralScalarString(value)
    # Written plainly, some characters would be read as the end of a line.
    return value if value.isprintable() else DoubleQuotedScalarString(value)
