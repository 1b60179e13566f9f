"""Shares of the clients: tokens of a step, places in the batch and pages. No tensors here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from heapq import nsmallest

from server.engine.scheduler.queues import Queues
from server.engine.scheduler.resources import Resources
from server.engine.scheduler.sequence import Sequence


class ClientShares:
    """Decides what a client leaves to others that want it too. A client is an API key.

    Nothing is limited while only one client has sequences, as on a server without keys.

    A sequence is preempted for another client only if its own client then still has as much, for
    its weight, as the other one gets. The exchange is therefore never reversed, and no client loses
    its last running sequence.
    """

    def __init__(
        self, queues: Queues, resources: Resources, max_num_seqs: int, extra_tokens: int
    ) -> None:
        self._queues = queues
        self._resources = resources
        self._max_num_seqs = max_num_seqs
        self._extra_tokens = extra_tokens

    @property
    def is_contended(self) -> bool:
        return self._queues.num_clients > 1

    def token_limits(self, running: list[Sequence], budget: int) -> dict[int, int]:
        """Return the most tokens that a step of `budget` tokens may compute, by client.

        Empty: no limit.
        """
        wanted: Counter[int] = Counter()
        for seq in running:
            wanted[seq.queue.client] += seq.num_unscheduled
        for key in self._queues.weights:
            wanted[key.client] += self._queues.num_waiting_tokens(key, budget)
        weights = self._queues.client_weights
        return token_limits(+wanted, weights, budget=budget, extra=self._extra_tokens)

    def make_room(self, waiting: Sequence, running: list[Sequence]) -> list[Sequence] | None:
        """Return the sequences to preempt so that `waiting` can start before those of others.

        None if its client is not below its share, or if room cannot be made.
        """
        newest = _newest_of_largest(waiting.queue.client, running, self._queues.client_weights)
        if newest is not None and self._queues.task(waiting.queue.task).is_full:
            newest = self._newest_in_task(waiting, running)
        elif newest is not None and len(running) < self._max_num_seqs:
            return self._with_pages(waiting, running, [])
        return None if newest is None else self._with_pages(waiting, running, [newest])

    def that_wait_for(self, waiting: Sequence, running: list[Sequence]) -> set[int]:
        """Return the clients that leave the free pages to `waiting`, for which there are too few.

        Its own is one of them. Those with fewer pages for their weight are not.
        """
        weights, pages = self._queues.client_weights, _num_pages(running)
        loads = {client: pages[client] / weights[client] for client in weights}
        return {client for client in loads if loads[client] >= loads[waiting.queue.client]}

    def lowest(self, running: list[Sequence]) -> Sequence:
        """Return the sequence to preempt when pages run out.

        It is the newest of the client with most pages for its weight, unless it has only that one;
        then the newest of all. The oldest of all is therefore never preempted.
        """
        if not self.is_contended:
            return running[-1]
        weights, pages = self._queues.client_weights, _num_pages(running)
        largest = max(pages, key=lambda client: pages[client] / weights[client])
        own = [seq for seq in running if seq.queue.client == largest]
        return own[-1] if len(own) > 1 else running[-1]

    def _newest_in_task(self, waiting: Sequence, running: list[Sequence]) -> Sequence | None:
        """Return the sequence whose place within the task's limit `waiting` may have."""
        task = waiting.queue.task
        in_task = [seq for seq in running if seq.queue.task == task]
        return _newest_of_largest(waiting.queue.client, in_task, self._queues.client_weights)

    def _with_pages(
        self, waiting: Sequence, running: list[Sequence], preempted: list[Sequence]
    ) -> list[Sequence] | None:
        """Extend `preempted` until there are enough pages for `waiting`; None if that fails."""
        missing = self._resources.num_missing_pages(waiting)
        missing -= sum(map(self._resources.num_own_pages, preempted))
        left = [seq for seq in running if seq not in preempted]
        load = (_num_pages(left)[waiting.queue.client] + max(0, missing)) / (
            self._queues.client_weights[waiting.queue.client]
        )
        while missing > 0:
            newest = self._newest_with_pages(left, waiting.queue.client, load)
            if newest is None:
                return None
            preempted.append(newest)
            left.remove(newest)
            missing -= self._resources.num_own_pages(newest)
        return preempted

    def _newest_with_pages(
        self, running: list[Sequence], client: int, load: float
    ) -> Sequence | None:
        """Return the newest sequence of the other client that has most pages for its weight without
        it. None if that is less than `load`."""
        weights, pages = self._queues.client_weights, _num_pages(running)
        counts = Counter(seq.queue.client for seq in running)
        newest = {seq.queue.client: seq for seq in running if seq.queue.client != client}
        loads = {
            other: (pages[other] - len(seq.pages)) / weights[other]
            for other, seq in newest.items()
            if counts[other] > 1
        }
        largest = max(loads, key=loads.__getitem__, default=None)
        return None if largest is None or loads[largest] < load else newest[largest]


def token_limits(
    wanted: Mapping[int, int], weights: Mapping[int, float], *, budget: int, extra: int
) -> dict[int, int]:
    """Return the most tokens of each client in a step; empty with fewer than two clients.

    A client may compute as many tokens as any other one wants, and `extra` more, in proportion to
    their weights. If all together want more than `budget`, that is divided by weight.
    """
    if len(wanted) < 2:
        return {}
    levels = {client: (num + extra) / weights[client] for client, num in wanted.items()}
    lowest, second = nsmallest(2, levels, key=levels.__getitem__)
    weight_left, limits = sum(weights[client] for client in wanted), dict[int, int]()
    for client in sorted(wanted, key=lambda client: wanted[client] / weights[client]):
        weight = weights[client]
        share = budget * weight / weight_left
        level = levels[second if client == lowest else lowest]
        limits[client] = max(1, int(min(share, weight * level)))
        weight_left -= weight
        budget -= min(wanted[client], limits[client])
    return limits


def _newest_of_largest(
    client: int, running: list[Sequence], weights: Mapping[int, float]
) -> Sequence | None:
    """Return the newest sequence of the other client with most of them for its weight.

    None if that client would then have fewer, for its weight, than `client` with one more.
    """
    counts = Counter(seq.queue.client for seq in running)
    loads = {other: (n - 1) / weights[other] for other, n in counts.items() if other != client}
    largest = max(loads, key=loads.__getitem__, default=None)
    if largest is None or loads[largest] < (counts[client] + 1) / weights[client]:
        return None
    return next(seq for seq in reversed(running) if seq.queue.client == largest)


def _num_pages(running: list[Sequence]) -> Counter[int]:
    """Return the number of pages that each client's sequences hold."""
    pages: Counter[int] = Counter()
    for seq in running:
        pages[seq.queue.client] += len(seq.pages)
    return pages
