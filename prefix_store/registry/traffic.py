"""Traffic splits between versions of a task: choosing a version, storing the weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, insert, select

from prefix_store.database.schema import activations, tasks, traffic, versions

MAX_VERSIONS = 16
MAX_WEIGHT = 1_000_000
_MAX_NAMES = 500
"""Names in one query: databases bound the number of parameters."""


class Serving(NamedTuple):
    """The versions that get a task's traffic, since an activation."""

    seq: int
    task: str
    versions: tuple[int, ...]
    is_split: bool


def choose(weights: Mapping[int, int], task: str, key: str) -> int:
    """Choose the version for a key, deterministically for given weights.

    Weighted rendezvous hashing (Thaler and Ravishankar, 1998): over many keys each version gets its
    share, and a change of weights moves as few keys as possible.
    """
    return min(weights, key=lambda version: _distance(task, key, version) / weights[version])


def _distance(task: str, key: str, version: int) -> float:
    """Return a pseudorandom draw from the exponential distribution."""
    drawn = f"{len(task)}:{task}{len(key)}:{key}{version}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(drawn, digest_size=8).digest()
    return -math.log((int.from_bytes(digest, "little") + 0.5) / 2**64)


def write(connection: Connection, seq: int, weights: Mapping[int, int]) -> None:
    """Store the weights of an activation."""
    rows = [{"seq": seq, "version": v, "weight": weight} for v, weight in weights.items()]
    if rows:
        connection.execute(insert(traffic), rows)


def read(connection: Connection, seqs: Sequence[int]) -> dict[int, dict[int, int]]:
    """Return the weights by activation and version, for activations that have any."""
    query = select(traffic).where(traffic.c.seq.in_(seqs)).order_by(traffic.c.version)
    found: dict[int, dict[int, int]] = {}
    for row in connection.execute(query):
        found.setdefault(row.seq, {})[row.version] = row.weight
    return found


def activated_since(connection: Connection, seq: int, limit: int) -> list[Serving]:
    """Return what the last `limit` tasks activated after `seq` serve, oldest first."""
    query = (
        select(activations.c.seq, activations.c.task, activations.c.version)
        .join(tasks, tasks.c.name == activations.c.task)
        .where(activations.c.seq > seq, tasks.c.active_seq == activations.c.seq)
        .order_by(activations.c.seq.desc())
        .limit(limit)
    )
    found = connection.execute(query).all()
    weights = read(connection, [row.seq for row in found])
    return [
        Serving(
            row.seq, row.task, tuple(weights.get(row.seq, {row.version: 1})), row.seq in weights
        )
        for row in reversed(found)
    ]


def alive(connection: Connection, names: Collection[str]) -> dict[str, set[int]]:
    """Return which of these tasks exist, and their versions."""
    found: dict[str, set[int]] = {}
    listed = list(names)
    for start in range(0, len(listed), _MAX_NAMES):
        some = listed[start : start + _MAX_NAMES]
        query = (
            select(tasks.c.name, versions.c.number)
            .outerjoin(
                versions, (versions.c.task == tasks.c.name) & versions.c.deleted_at.is_(None)
            )
            .where(tasks.c.name.in_(some), tasks.c.deleted_at.is_(None))
        )
        for row in connection.execute(query):
            numbers = found.setdefault(row.name, set())
            if row.number is not None:
                numbers.add(row.number)
    return found
