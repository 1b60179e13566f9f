"""Weights of queues and of clients."""

from __future__ import annotations

import pytest

from server.engine.params import QueueKey
from server.engine.scheduler.queues import Queues
from tests.server.engine.scheduler_setup import make_scheduler, sequence, step

CLIENT = 1


def test_a_step_does_not_sum_up_weights_for_every_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Queues.weights
    calls = list[Queues]()

    def counted(queues: Queues) -> dict[QueueKey, float]:
        calls.append(queues)
        return weights.__get__(queues)  # type: ignore[no-any-return]

    monkeypatch.setattr(Queues, "weights", property(counted))
    s, _ = make_scheduler(max_num_seqs=4)
    for i in range(60):
        s.add(sequence(i, 2, max_tokens=9, client=i % 2 + 1, queue=i))

    step(s)

    assert len(calls) < 10


def test_the_weight_of_a_client_follows_its_tasks() -> None:
    queues = Queues(lambda _: True)
    seqs = [
        sequence(i, 2, client=CLIENT, queue=i % 2, weight=weight)
        for i, weight in enumerate((1, 4, 7))
    ]
    seen = list[float]()
    for seq in seqs:
        queues.add(seq)
        seen.append(queues.client_weights[CLIENT])
    queues.remove(seqs[1])

    assert [*seen, queues.client_weights[CLIENT]] == [1, 2.5, 5.5, 7]
