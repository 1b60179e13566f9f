"""Versions of a task that share its traffic: who gets what, and where it is written down."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, insert, select

from prefix_store.registry.schema import traffic

MAX_VERSIONS = 16
MAX_WEIGHT = 1_000_000


def choose(weights: Mapping[int, int], task: str, key: str) -> int:
    """The version that requests with this key get: always the same one for the same weights.

    Weighted rendezvous hashing (Thaler and Ravishankar, 1998): over many keys each version gets
    its part, and where weights change only those keys move that the new parts ask for.
    """
    return min(weights, key=lambda version: _distance(task, key, version) / weights[version])


def _distance(task: str, key: str, version: int) -> float:
    """A draw from the exponential distribution."""
    drawn = f"{len(task)}:{task}{len(key)}:{key}{version}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(drawn, digest_size=8).digest()
    return -math.log((int.from_bytes(digest, "little") + 0.5) / 2**64)


def write(connection: Connection, seq: int, weights: Mapping[int, int]) -> None:
    """The weights that hold while an activation is in force."""
    rows = [{"seq": seq, "version": v, "weight": weight} for v, weight in weights.items()]
    if rows:
        connection.execute(insert(traffic), rows)


def read(connection: Connection, seqs: Sequence[int]) -> dict[int, dict[int, int]]:
    """The weights of those of these activations that have any, by activation and version."""
    query = select(traffic).where(traffic.c.seq.in_(seqs)).order_by(traffic.c.version)
    found: dict[int, dict[int, int]] = {}
    for row in connection.execute(query):
        found.setdefault(row.seq, {})[row.version] = row.weight
    return found
