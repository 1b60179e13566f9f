"""Budgets that refuse, and turns that wait."""

from __future__ import annotations

import asyncio

import pytest

from server.budgets import ByteBudget, MemoryTurns
from server.errors import Overloaded

KIB = 1 << 10


def test_one_holder_may_go_beyond_what_all_others_share() -> None:
    budget = ByteBudget(300 * KIB, "the room")
    first, second, third = (object() for _ in range(3))

    budget.hold(first, 200 * KIB)
    budget.hold(second, 100 * KIB)
    budget.hold(second, 900 * KIB)
    budget.hold(second, 9000 * KIB)
    budget.hold(first, 300 * KIB)
    with pytest.raises(Overloaded):
        budget.hold(third, 1 * KIB)
    with pytest.raises(Overloaded, match="the room"):
        budget.hold(first, 301 * KIB)
    budget.hold(third, 300 * KIB)  # what was refused holds nothing

    budget.release(second)
    budget.hold(first, 900 * KIB)
    budget.release(third)
    budget.release(third)
    budget.hold(second, 300 * KIB)
    with pytest.raises(Overloaded):
        budget.hold(third, 1 * KIB)


class Work:
    """Work in turns, which records how much runs at once."""

    def __init__(self, max_bytes: int) -> None:
        self.turns = MemoryTurns(max_bytes)
        self.started: list[int] = []
        self.running: list[int] = []
        self.seen: list[list[int]] = []

    async def run(self, num_bytes: int) -> None:
        async with self.turns.turn(num_bytes):
            self.started.append(num_bytes)
            self.running.append(num_bytes)
            self.seen.append(sorted(self.running))
            await asyncio.sleep(0.002)
            self.running.remove(num_bytes)


async def test_turns_come_in_order_within_the_bound_and_the_largest_alone() -> None:
    work = Work(10)
    await asyncio.gather(*(work.run(n) for n in (4, 5, 90, 6, 3, 2, 11, 1)))

    assert all(sum(running) <= 10 or len(running) == 1 for running in work.seen)
    assert work.started == [4, 5, 90, 6, 3, 2, 11, 1]
    assert [4, 5] in work.seen
    assert work.running == []


async def test_who_leaves_the_queue_holds_nothing() -> None:
    work = Work(10)
    first = asyncio.ensure_future(work.run(8))
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(work.run(n)) for n in (9, 5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait({first, *waiting})
    async with asyncio.timeout(5), work.turns.turn(10):
        pass

    assert work.started == [8, 5]


async def test_failed_work_returns_its_memory() -> None:
    turns = MemoryTurns(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="failed"):
            async with turns.turn(7):
                raise ValueError("failed")
    async with asyncio.timeout(5), turns.turn(10):
        pass
