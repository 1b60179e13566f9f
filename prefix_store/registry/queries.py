"""Queries that resolve a request's task and list tasks."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Integer, bindparam, func, or_, select

from prefix_store.database.schema import activations, tasks, traffic, versions

_ASKED = bindparam("number", type_=Integer)
_NUMBER = func.coalesce(_ASKED, traffic.c.version, activations.c.version)
RESOLVED = (
    select(
        tasks.c.active_seq,
        tasks.c.profile,
        versions.c.manifest,
        versions.c.definition,
        versions.c.number,
        traffic.c.weight,
    )
    .outerjoin(activations, activations.c.seq == tasks.c.active_seq)
    .outerjoin(traffic, (traffic.c.seq == tasks.c.active_seq) & _ASKED.is_(None))
    .outerjoin(
        versions,
        (versions.c.task == tasks.c.name)
        & (versions.c.number == _NUMBER)
        & versions.c.deleted_at.is_(None),
    )
    .where(tasks.c.name == bindparam("task"), tasks.c.deleted_at.is_(None))
)
"""Resolves a task to the version with a number, the active version, or the versions that share its
traffic: one row per version, with a null manifest if there is none."""

_NUM_VERSIONS = (
    select(func.count())
    .select_from(versions)
    .where(versions.c.task == tasks.c.name, versions.c.deleted_at.is_(None))
    .scalar_subquery()
)
_ACTIVE = versions.alias("active")
TASKS = (
    select(tasks, activations.c.version, _ACTIVE.c.definition, _NUM_VERSIONS.label("num_versions"))
    .outerjoin(activations, activations.c.seq == tasks.c.active_seq)
    .outerjoin(
        _ACTIVE, (_ACTIVE.c.task == tasks.c.name) & (_ACTIVE.c.number == activations.c.version)
    )
    .where(tasks.c.deleted_at.is_(None))
)


def matches(globs: Sequence[str]) -> ColumnElement[bool]:
    """Match a task's name against globs: the SQL equivalent of `reference.matches`."""
    table = str.maketrans({"*": "%", "?": "_", "_": r"\_"})
    return or_(*(tasks.c.name.like(glob.translate(table), escape="\\") for glob in globs))
