"""Stored answers to idempotent requests, in the registry's own database."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError

from prefix_store.database.schema import answers
from prefix_store.errors import IdempotencyMismatch, RequestInProgress
from prefix_store.registry import rows
from prefix_store.registry.preconditions import IdempotentRequest, Preconditions

T = TypeVar("T")


def find(connection: Connection, request: IdempotentRequest) -> str | None:
    """Return the stored answer to a request, if any. Raises `IdempotencyMismatch`."""
    query = select(answers).where(
        *(answers.c[name] == value for name, value in _name(request).items())
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.request_digest != str(request.request_digest):
        raise IdempotencyMismatch("the idempotency key was used for another request")
    answer: str = row.answer
    return answer


def keep(connection: Connection, preconditions: Preconditions, result: T) -> T:
    """Store the answer for `result` if the request is idempotent; return `result`.

    Raises `RequestInProgress` if the same request has been answered in the meantime.
    """
    if (request := preconditions.idempotent) is not None:
        fields = {
            "request_digest": str(request.request_digest),
            "answer": request.answer(result),
            "created_at": rows.now(),
        }
        try:
            connection.execute(insert(answers).values(**_name(request), **fields))
        except IntegrityError:
            raise RequestInProgress("another request with this idempotency key was first") from None
    return result


def forget(connection: Connection, older_than_s: float) -> int:
    """Delete answers older than that; return their number."""
    before = rows.now() - timedelta(seconds=older_than_s)
    return connection.execute(delete(answers).where(answers.c.created_at < before)).rowcount


def _name(request: IdempotentRequest) -> dict[str, str]:
    return {
        "principal": request.principal,
        "route": request.route,
        "task": request.task,
        "key": request.key,
    }
