"""Traffic splits between versions of a task: choosing a version, storing the weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, insert, select

from prefix_store.database.schema import traffic

MAX_VERSIONS = 16
MAX_WEIGHT = 1_000_000


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
