"""Queries that resolve a request's task, and list tasks: searched, filtered and sorted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    exists,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from prefix_store.database.schema import activations, tasks, traffic, versions
from prefix_store.errors import InvalidName
from prefix_store.manifest import Task
from prefix_store.reference import check_task_name

Sort = Literal["name", "-name", "created", "-created", "updated", "-updated"]
"""Order of a list of tasks; `-` reverses it."""
State = Literal["active", "split", "inactive"]
"""A version is active; versions share the traffic; no version is active."""

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


def page_of_tasks(
    after: str | None,
    limit: int,
    globs: Sequence[str],
    search: str,
    state: State | None,
    sort: Sort,
) -> Select[Any]:
    """Select one page of tasks. Raises `InvalidName` if `after` is not a cursor of this order.

    The page's names are selected first, so that what is joined is read for these tasks only.
    """
    column = _SORTED[sort.removeprefix("-")]
    wanted = and_(
        tasks.c.deleted_at.is_(None),
        matches(globs),
        _contains(search),
        true() if state is None else _STATES[state],
        true() if after is None else _is_after(after, sort),
    )
    order = [one.desc() if sort.startswith("-") else one.asc() for one in (column, tasks.c.name)]
    names = select(tasks.c.name).where(wanted).order_by(*order).limit(limit)
    return TASKS.where(tasks.c.name.in_(names)).order_by(*order)


def cursor(task: Task, sort: Sort) -> str:
    """Return the `after` of the page that follows a task: its name, and the time of its order."""
    if sort in ("name", "-name"):
        return task.name
    at = task.created_at if "created" in sort else task.updated_at
    return f"{task.name}@{at.isoformat().replace('+00:00', 'Z')}"


def _is_after(after: str, sort: Sort) -> ColumnElement[bool]:
    """Match tasks that follow a cursor. The time of the order is in it, so that a change of the
    task which it names does not move the page."""
    name, _, at = after.partition("@")
    check_task_name(name)
    follows = tasks.c.name < name if sort.startswith("-") else tasks.c.name > name
    if sort in ("name", "-name"):
        check_task_name(after)
        return follows
    column, time = _SORTED[sort.removeprefix("-")], _time(at)
    return or_(
        column < time if sort.startswith("-") else column > time, and_(column == time, follows)
    )


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = datetime.min
    if found.tzinfo is None:
        raise InvalidName("`after` is not the `next_after` of a page in this order")
    return found


def _contains(search: str) -> ColumnElement[bool]:
    if not search:
        return true()
    return or_(
        tasks.c.name.icontains(search, autoescape=True),
        _Description(tasks.c.profile).icontains(search, autoescape=True),
    )


_SORTED: dict[str, ColumnElement[Any]] = {
    "name": tasks.c.name,
    "created": tasks.c.created_at,
    "updated": tasks.c.updated_at,
}
_STATES: dict[State, ColumnElement[bool]] = {
    "active": tasks.c.active_seq.is_not(None),
    "split": exists().where(traffic.c.seq == tasks.c.active_seq),
    "inactive": tasks.c.active_seq.is_(None),
}


class _Description(FunctionElement[str]):
    """The description in a profile's JSON, which the database takes out."""

    type = String()
    inherit_cache = True


@compiles(_Description, "sqlite")
def _in_sqlite(element: _Description, compiler: Any, **options: Any) -> str:
    return f"json_extract({_without_nul(element, compiler, options)}, '$.description')"


@compiles(_Description, "postgresql")
def _in_postgresql(element: _Description, compiler: Any, **options: Any) -> str:
    return f"(CAST({_without_nul(element, compiler, options)} AS json) ->> 'description')"


def _without_nul(element: _Description, compiler: Any, options: dict[str, Any]) -> str:
    """Replace escaped NULs: PostgreSQL has no text with NUL, in SQLite it would end there."""
    profile = compiler.process(element.clauses, **options)
    return f"replace({profile}, '\\u0000', '\\ufffd')"
