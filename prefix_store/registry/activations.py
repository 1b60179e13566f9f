"""The registry's activations: which versions get a task's traffic, now and before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from typing import NamedTuple

from sqlalchemy import select

from prefix_store.database.schema import activations, tasks
from prefix_store.digest import Digest
from prefix_store.errors import NothingActive, NothingToRollBack
from prefix_store.manifest import Activation
from prefix_store.registry import answers, audit, rows, traffic
from prefix_store.registry.audit import NOBODY, Actor
from prefix_store.registry.preconditions import UNCONDITIONAL, CurrentActivation, Preconditions
from prefix_store.registry.tasks import TaskRegistry
from prefix_store.registry.traffic import Serving
from prefix_store.rollback import Condition, RollbackRule

_ENDED_BY: dict[Condition, audit.Action] = {
    "error_rate": "rollback_error_rate",
    "first_token_p95": "rollback_first_token_p95",
    "total_p95": "rollback_total_p95",
    "golden": "rollback_golden",
}
"""What the audit calls the end of a split, by the condition that was met."""


class GuardedSplit(NamedTuple):
    """A split in force that has a rule."""

    task: str
    activation: Activation


class ActivationRegistry(TaskRegistry):
    """Activates versions, rolls back, and splits traffic."""

    def activate(
        self,
        task: str,
        number: int,
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
        unusable: Set[Digest] = frozenset(),
    ) -> Activation:
        """Make a version the active one, with all the traffic.

        Returns the activation in force if nothing changes. Raises `UnknownTask`,
        `PreconditionFailed`, `UnknownVersion`, and `VersionQuarantined` if the version's blob is in
        `unusable`.
        """
        with self._write() as connection:
            top = rows.activation(connection, rows.lock(connection, task, preconditions).active_seq)
            rows.check_version(connection, task, number, unusable)
            parent = None if top is None else top.seq
            if top is not None and top.version == number:
                if not traffic.read(connection, [top.seq]):
                    return answers.keep(connection, preconditions, rows.as_activation(top))
                parent = top.parent
            made = rows.set_active(connection, task, number, "activate", parent=parent, by=by.key)
            audit.append(connection, by, "activate", task=task, version=number)
            return answers.keep(connection, preconditions, made)

    def rollback(
        self,
        task: str,
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
        unusable: Set[Digest] = frozenset(),
    ) -> Activation:
        """Activate the version that was active before; a second rollback goes further back.

        If the traffic is split, the active version alone gets it again. Deleted versions are
        skipped. Raises `UnknownTask`, `PreconditionFailed`, `NothingToRollBack`,
        `VersionQuarantined`.
        """
        with self._write() as connection:
            top = rows.activation(connection, rows.lock(connection, task, preconditions).active_seq)
            is_split = top is not None and bool(traffic.read(connection, [top.seq]))
            target = top if is_split else rows.previous_activation(connection, top)
            if target is None:
                raise NothingToRollBack(f"{task} has no earlier version to go back to")
            rows.check_version(connection, task, target.version, unusable)
            made = rows.set_active(
                connection, task, target.version, "rollback", parent=target.parent, by=by.key
            )
            audit.append(connection, by, "rollback", task=task, version=target.version)
            return answers.keep(connection, preconditions, made)

    def set_traffic(
        self,
        task: str,
        weights: Mapping[int, int],
        by: Actor = NOBODY,
        preconditions: Preconditions = UNCONDITIONAL,
        unusable: Set[Digest] = frozenset(),
        rollback_if: RollbackRule | None = None,
    ) -> Activation:
        """Split the traffic in proportion to weights, until the next activation or rollback.

        Without weights the active version gets all of it. `rollback_if` is stored with the split.
        Raises `UnknownTask`, `PreconditionFailed`, `NothingActive`, `UnknownVersion`,
        `VersionQuarantined`.
        """
        with self._write() as connection:
            top = rows.activation(connection, rows.lock(connection, task, preconditions).active_seq)
            if top is None:
                raise NothingActive(f"{task} has no active version")
            for number in weights:
                rows.check_version(connection, task, number, unusable)
            if not weights and not traffic.read(connection, [top.seq]):
                return answers.keep(connection, preconditions, rows.as_activation(top))
            made = rows.set_active(
                connection,
                task,
                top.version,
                "traffic",
                parent=top.parent,
                by=by.key,
                rollback_if=rollback_if,
            )
            traffic.write(connection, made.seq, weights)
            audit.append(connection, by, "set_traffic", task=task)
            made = made.model_copy(update={"weights": dict(weights) or None})
            return answers.keep(connection, preconditions, made)

    def traffic(self, task: str) -> dict[int, int] | None:
        """Return the weights by version if the traffic is split. Raises `UnknownTask`."""
        query = select(tasks.c.active_seq).where(tasks.c.name == task)
        with self._read() as connection:
            rows.read_task(connection, task)
            seq = connection.scalar(query)
            return None if seq is None else traffic.read(connection, [seq]).get(seq)

    def current_activation(self, task: str) -> CurrentActivation:
        """Return the activation in force; an empty one for a task that does not exist."""
        query = select(tasks.c.active_seq).where(tasks.c.name == task, tasks.c.deleted_at.is_(None))
        with self._read() as connection:
            return CurrentActivation(connection.scalar(query))

    def history(self, task: str, limit: int = 100) -> list[Activation]:
        """Return a task's last activations, newest first. Raises `UnknownTask`."""
        query = (
            select(activations)
            .join(tasks, tasks.c.name == activations.c.task)
            .where(activations.c.task == task, activations.c.seq > tasks.c.since_seq)
            .order_by(activations.c.seq.desc())
            .limit(limit)
        )
        with self._read() as connection:
            rows.read_task(connection, task)
            found = connection.execute(query).all()
            weights = traffic.read(connection, [row.seq for row in found])
            return [rows.as_activation(row, weights.get(row.seq)) for row in found]

    def end_split(
        self,
        task: str,
        condition: Condition,
        reason: str,
        preconditions: Preconditions,
        unusable: Set[Digest] = frozenset(),
    ) -> Activation:
        """Give the active version all traffic back, because the split's rule applies.

        Raises `UnknownTask`, `ActivationOvertaken`, and `VersionQuarantined` if the active version
        cannot take it.
        """
        with self._write() as connection:
            top = rows.activation(connection, rows.lock(connection, task, preconditions).active_seq)
            if top is None:
                raise NothingActive(f"{task} has no active version")
            rows.check_version(connection, task, top.version, unusable)
            made = rows.set_active(
                connection,
                task,
                top.version,
                "rollback",
                parent=top.parent,
                by=None,
                reason=reason,
            )
            audit.append(connection, NOBODY, _ENDED_BY[condition], task=task, version=top.version)
            return made

    def guarded_splits(self) -> list[GuardedSplit]:
        """Return the splits in force that have a rule."""
        query = (
            select(activations)
            .join(tasks, tasks.c.active_seq == activations.c.seq)
            .where(activations.c.rollback_if.is_not(None), tasks.c.deleted_at.is_(None))
        )
        with self._read() as connection:
            found = connection.execute(query).all()
            weights = traffic.read(connection, [row.seq for row in found])
            return [
                GuardedSplit(row.task, rows.as_activation(row, weights.get(row.seq)))
                for row in found
            ]

    def activated_since(self, seq: int, limit: int) -> list[Serving]:
        """Return what the last `limit` tasks activated after `seq` serve, oldest first."""
        with self._read() as connection:
            return traffic.activated_since(connection, seq, limit)

    def alive(self, tasks: Collection[str]) -> dict[str, set[int]]:
        """Return which of these tasks exist, and their versions."""
        with self._read() as connection:
            return traffic.alive(connection, tasks)
