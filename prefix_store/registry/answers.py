"""What was answered to requests that may come again, in the registry's own database."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError

from prefix_store.errors import IdempotencyMismatch, RequestInProgress
from prefix_store.registry import rows
from prefix_store.registry.preconditions import Once, Terms
from prefix_store.registry.schema import answers

T = TypeVar("T")


def find(connection: Connection, once: Once) -> str | None:
    """The answer, if this request was answered before. Raises `IdempotencyMismatch`."""
    query = select(answers).where(
        *(answers.c[name] == value for name, value in _name(once).items())
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.request_digest != str(once.request_digest):
        raise IdempotencyMismatch("the idempotency key was used for another request")
    answer: str = row.answer
    return answer


def keep(connection: Connection, terms: Terms, result: T) -> T:
    """Write down the answer that `result` makes, if the terms ask for that; returns `result`.

    Raises `RequestInProgress` where the same request was answered in the meantime.
    """
    if (once := terms.once) is not None:
        fields = {
            "request_digest": str(once.request_digest),
            "answer": once.answer(result),
            "created_at": rows.now(),
        }
        try:
            connection.execute(insert(answers).values(**_name(once), **fields))
        except IntegrityError:
            raise RequestInProgress("another request with this idempotency key is first") from None
    return result


def forget(connection: Connection, older_than_s: float) -> int:
    """Delete answers of that age; their number."""
    before = rows.now() - timedelta(seconds=older_than_s)
    return connection.execute(delete(answers).where(answers.c.created_at < before)).rowcount


def _name(once: Once) -> dict[str, str]:
    return {"principal": once.principal, "route": once.route, "task": once.task, "key": once.key}
