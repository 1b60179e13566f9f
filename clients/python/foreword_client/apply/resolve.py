"""From tasks of files to tasks of a plan: sources opened, and looked for on the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foreword_client.apply.changes import ActualTask, WantedTask, WantedVersion
from foreword_client.apply.files import DeclaredTask, InvalidFileError
from foreword_client.apply.models import Definition, Settings, SharedVersion, VersionSpec
from foreword_client.apply.plan import preferred
from foreword_client.apply.sources import Source, UploadSource, open_source
from foreword_client.apply.state import Found
from foreword_client.errors import SourceError


@dataclass(frozen=True, slots=True)
class OpenedTask:
    """A task of a file, with the sources of its versions."""

    declared: DeclaredTask
    sources: tuple[Source, ...]
    """Empty: the task keeps its versions."""


def open_task(declared: DeclaredTask, scratch: Path) -> OpenedTask:
    """Open the sources of a task. `scratch`: a folder for copies. Raises `InvalidFileError`."""
    spec = declared.spec
    shared = spec.versions or ()
    opened = [
        _open(one, declared, _place(declared, index, one), scratch)
        for index, one in enumerate(shared or (spec,))
    ]
    return OpenedTask(declared, tuple(source for source in opened if source is not None))


def _open(spec: VersionSpec, declared: DeclaredTask, place: str, scratch: Path) -> Source | None:
    try:
        return open_source(spec, declared.folder, scratch)
    except SourceError as exc:
        raise InvalidFileError(f"{place}: {exc}") from None
    except OSError as exc:
        raise InvalidFileError(f"{place}: {exc.strerror or exc}") from None


def resolve(task: OpenedTask, found: Found | None) -> WantedTask:
    """Look for a task's sources among the versions that exist. Reads and hashes local files.

    Raises `InvalidFileError`.
    """
    spec = task.declared.spec
    settings = Settings.of(spec)
    if not task.sources:
        return _without_source(task.declared, settings, None if found is None else found.actual)
    specs: Sequence[VersionSpec] = spec.versions or (spec,)
    versions = tuple(
        _version(one, source, _place(task.declared, index, one), found)
        for index, (one, source) in enumerate(zip(specs, task.sources, strict=True))
    )
    _check_distinct(versions, task.sources)
    return WantedTask(task.declared.name, settings, versions, rollback_if=spec.rollback_if)


def _place(declared: DeclaredTask, index: int, spec: VersionSpec) -> str:
    path: tuple[str | int, ...] = ("versions", index) if declared.spec.versions else ()
    return declared.at(*path, *spec.sources)


def _version(spec: VersionSpec, source: Source, place: str, found: Found | None) -> WantedVersion:
    manifests = () if found is None else found.manifests
    known = {} if found is None else found.actual.versions
    if isinstance(source, UploadSource):
        own = source.own or Definition()
        definition = own.with_fields(spec.definition)
        tried = [one.with_fields({"prompt": own.prompt}) for one in known.values()]
        held_by = source.held_by(manifests, [definition, *tried])
    else:
        held_by = source.held_by(manifests)
        number = None if found is None else preferred(held_by, found.actual)
        own = Definition() if number is None else known[number]
        definition = own.with_fields(spec.definition)
    return WantedVersion(
        label=source.label,
        place=place,
        definition=definition,
        held_by=held_by,
        traffic=spec.traffic if isinstance(spec, SharedVersion) else 1,
        pinned=spec.pinned,
        can_upload=isinstance(source, UploadSource),
    )


def _check_distinct(versions: Sequence[WantedVersion], sources: Sequence[Source]) -> None:
    """Refuse a version that is named twice: its traffic would be ambiguous."""
    if len(versions) == 1:
        return
    seen: list[tuple[str, Definition]] = []
    for version, source in zip(versions, sources, strict=True):
        one = source.digest(version.definition), version.definition
        if one in seen:
            raise InvalidFileError(f"{version.place}: this version is named twice")
        seen.append(one)


def _without_source(
    declared: DeclaredTask, settings: Settings, actual: ActualTask | None
) -> WantedTask:
    """Return a task that keeps its versions, asked as the file says, as far as it says."""
    spec, name = declared.spec, declared.name
    definition = actual.definition if actual is not None else Definition()
    definition = definition.with_fields(spec.definition)
    if actual is None or actual.active is None:
        if spec.pinned:
            raise InvalidFileError(f"{declared.at('pinned')}: the task has no active version")
        return WantedTask(name, settings, definition=definition)
    pinned = spec.pinned if "pinned" in spec.model_fields_set else None
    if pinned is None and not spec.definition:
        return WantedTask(name, settings)
    if actual.active not in actual.versions:
        raise InvalidFileError(f"{declared.at()}: the active version cannot be served")
    version = WantedVersion(
        label=f"v{actual.active}",
        place=declared.at(),
        definition=actual.versions[actual.active].with_fields(spec.definition),
        held_by=frozenset((actual.active,)),
        pinned=pinned,
        can_upload=False,
    )
    return WantedTask(name, settings, (version,), keeps_traffic=True)
