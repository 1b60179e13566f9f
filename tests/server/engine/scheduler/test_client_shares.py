"""What one client can do to another: times of a victim beside an attacker, in costs of steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.scheduler.client_shares import token_limits
from server.engine.scheduler.scheduler import Scheduler
from server.engine.scheduler.sequence import Sequence
from tests.server.engine.scheduler_setup import make_scheduler, sequence, step

VICTIM, ATTACKER = 1, 2
STEP_COST = 16
"""Cost of an empty step in tokens. On a CPU one sequence takes 12 ms, and 32 take 36 ms."""
MAX_STEPS = 1500
NUM_WAITING = 100

Make = Callable[..., Sequence]


def request(prompt: int, max_tokens: int, **fixed: int) -> Make:
    """Return a function that makes such a sequence, from its id and its client."""

    def make(i: int, client: int) -> Sequence:
        return sequence(i, prompt, max_tokens=max_tokens, client=client, **fixed)  # type: ignore[arg-type]

    return make


@dataclass
class Clock:
    """A scheduler with requests of victim and attacker, and the time that its steps take."""

    scheduler: Scheduler
    now: int = 0
    ids: count[int] = field(default_factory=lambda: count(1))
    began: dict[int, int] = field(default_factory=dict)
    """When the victim's running requests were sent."""
    times: list[int] = field(default_factory=list)
    """How long the victim's finished ones took."""
    others: set[int] = field(default_factory=set)

    def run(self, victim: Make, attack: list[Make], clients: tuple[int, int]) -> None:
        """Keep 4 requests of the victim and `NUM_WAITING` of the attacker until 60 finished."""
        for _ in range(MAX_STEPS):
            while attack and len(self.others) < NUM_WAITING:
                i = next(self.ids)
                self.scheduler.add(attack[i % len(attack)](i, clients[1]))
                self.others.add(i)
            while len(self.began) < 4:
                i = next(self.ids)
                self.scheduler.add(victim(i, clients[0]))
                self.began[i] = self.now
            self._step()
            if len(self.times) >= 60:
                return
        self.times += [self.now - began for began in self.began.values()]

    def _step(self) -> None:
        batch = self.scheduler.schedule()
        self.now += STEP_COST + sum(chunk.num_tokens for chunk in batch.chunks)
        for delta in self.scheduler.commit(batch, [7] * len(batch.sampled)):
            if delta.finish_reason is not None:
                self.others.discard(delta.request_id)
                if delta.request_id in self.began:
                    self.times.append(self.now - self.began.pop(delta.request_id))
        self.scheduler.check()


SLABS = (64, 2000)
PAGES = (400, 16)
SHORT = request(32, 16)


def p99(
    victim: Make,
    attack: list[Make],
    clients: tuple[int, int] = (VICTIM, ATTACKER),
    pool: tuple[int, int] = SLABS,
) -> int:
    """Return the victim's p99, without the first requests. `pool`: number and size of pages."""
    num_pages, page_size = pool
    scheduler, _ = make_scheduler(
        num_pages=num_pages, page_size=page_size, max_num_seqs=64, budget=512
    )
    clock = Clock(scheduler)
    clock.run(victim, attack, clients)
    times = sorted(clock.times[4:])
    return times[int(0.99 * (len(times) - 1))]


ATTACKS = {
    "short": [SHORT],
    "long prompts": [request(1000, 1)],
    "long completions": [request(16, 900)],
    "both": [request(1000, 1), request(16, 900)],
    "another task": [request(1000, 200, queue=7)],
    "eight tasks": [request(16, 900, queue=i) for i in range(8)],
    "high priority": [request(16, 900, priority=-100)],
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("pool", [SLABS, PAGES], ids=["slabs", "pages"])
def test_a_client_at_its_limits_does_not_double_the_times_of_another(
    name: str, pool: tuple[int, int]
) -> None:
    assert p99(SHORT, ATTACKS[name], pool=pool) <= 2 * p99(SHORT, [], pool=pool)


@pytest.mark.parametrize("name", ["long prompts", "long completions"])
@pytest.mark.parametrize("victim", [request(600, 8), request(16, 100)], ids=["prompts", "texts"])
def test_nor_those_of_another_with_long_requests(victim: Make, name: str) -> None:
    assert p99(victim, ATTACKS[name]) <= 2 * p99(victim, [])


@pytest.mark.parametrize("name", ["short", "long prompts", "long completions", "eight tasks"])
def test_if_only_tasks_had_shares_it_would(name: str) -> None:
    """The negative control: all requests are of one client."""
    assert p99(SHORT, ATTACKS[name], clients=(1, 1)) > 2 * p99(SHORT, [])


def test_a_place_is_taken_from_the_client_that_has_more() -> None:
    s, _ = make_scheduler(max_num_seqs=4)
    for i in range(6):
        s.add(sequence(i, 2, max_tokens=9, client=ATTACKER))
    step(s)
    for i in range(10, 14):
        s.add(sequence(i, 2, max_tokens=9, client=VICTIM))

    step(s)

    assert [seq.request_id for seq in s.running] == [0, 1, 10, 11]
    for _ in range(5):
        step(s)
    assert s.num_preemptions == 2, "nothing is taken back"


def test_a_place_within_a_tasks_limit_is_taken_too() -> None:
    s, _ = make_scheduler(max_num_seqs=8)
    for i in range(4):
        s.add(sequence(i, 2, max_tokens=9, queue=1, client=ATTACKER, limit=2))
    s.add(sequence(4, 2, max_tokens=9, queue=2, client=ATTACKER))
    step(s)
    s.add(sequence(10, 2, max_tokens=9, queue=1, client=VICTIM, limit=2))

    step(s)

    assert [seq.request_id for seq in s.running] == [0, 4, 10]


def test_the_only_place_within_a_tasks_limit_goes_round() -> None:
    s, _ = make_scheduler()
    for i in range(20):
        client = ATTACKER if i < 10 else VICTIM
        s.add(sequence(i, 2, max_tokens=2, queue=1, client=client, limit=1))

    clients = [chunk.seq.queue.client for _ in range(16) for chunk in step(s).chunks]

    assert Counter(clients) == {ATTACKER: 8, VICTIM: 8}


def test_a_client_that_has_its_share_takes_no_place() -> None:
    s, _ = make_scheduler(max_num_seqs=3)
    for i in range(3):
        s.add(sequence(i, 2, max_tokens=9, client=ATTACKER if i else VICTIM))
    step(s)
    s.add(sequence(10, 2, max_tokens=9, client=VICTIM))

    step(s)

    assert [seq.request_id for seq in s.running] == [0, 1, 2]


def test_pages_are_taken_from_the_client_that_has_more() -> None:
    s, _ = make_scheduler(num_pages=12, page_size=4, budget=64)
    for i in range(4):
        s.add(sequence(i, 10, max_tokens=9, client=ATTACKER))
    step(s)
    s.add(sequence(10, 15, max_tokens=9, client=VICTIM))

    step(s)

    assert [seq.request_id for seq in s.running] == [0, 1, 10]


@pytest.mark.parametrize(
    ("wanted", "limits"),
    [
        ({1: 4}, {}),
        ({1: 4, 2: 60}, {1: 72, 2: 16}),
        ({1: 4, 2: 30, 3: 60}, {1: 42, 2: 16, 3: 16}),
        ({1: 400, 2: 300}, {1: 256, 2: 256}),
        ({1: 100, 2: 800}, {1: 256, 2: 112}),
    ],
)
def test_a_client_may_compute_what_another_wants_and_some_more(
    wanted: dict[int, int], limits: dict[int, int]
) -> None:
    weights = dict.fromkeys(wanted, 1.0)

    assert token_limits(wanted, weights, budget=512, extra=12) == limits


@given(
    st.dictionaries(st.integers(0, 9), st.integers(1, 600), min_size=2),
    st.lists(st.sampled_from((0.01, 0.5, 1.0, 4.0)), min_size=10, max_size=10),
)
@settings(max_examples=100, deadline=None)
def test_the_client_that_wants_least_for_its_weight_gets_it(
    wanted: dict[int, int], weights: list[float]
) -> None:
    of_each = dict(enumerate(weights))

    limits = token_limits(wanted, of_each, budget=512, extra=12)

    least = min(wanted, key=lambda client: wanted[client] / of_each[client])
    fair = 512 * of_each[least] / sum(of_each[client] for client in wanted)
    assert min(limits.values()) >= 1
    assert limits[least] >= min(wanted[least], int(fair))
    assert sum(min(wanted[c], limits[c]) for c in wanted) <= 512 + len(wanted)


@pytest.mark.parametrize("weight", [1, 8])
def test_a_sequence_that_waits_for_pages_holds_up_no_client_with_fewer(weight: int) -> None:
    s, _ = make_scheduler(num_pages=60, page_size=16, max_num_seqs=8, budget=512)
    s.add(sequence(0, 600, max_tokens=300, client=ATTACKER, weight=weight, queue=1))
    step(s)
    step(s)
    s.add(sequence(1, 640, max_tokens=1, client=ATTACKER, weight=weight, queue=1))
    s.add(sequence(10, 15, max_tokens=9, client=VICTIM))

    step(s)

    assert [seq.request_id for seq in s.running] == [0, 10]


def test_short_requests_of_a_client_leave_pages_to_the_long_one_of_another() -> None:
    s, _ = make_scheduler(num_pages=60, page_size=16, max_num_seqs=64, budget=512)
    for i in range(100):
        s.add(sequence(i, 32, max_tokens=16, client=ATTACKER))
    step(s)
    s.add(sequence(1000, 900, max_tokens=30, client=VICTIM))
    for i in range(200, 400):
        step(s)
        s.add(sequence(i, 32, max_tokens=16, client=ATTACKER))
        if 1000 in [seq.request_id for seq in s.running]:
            return
    pytest.fail("it never starts")


def test_tasks_of_a_client_share_by_weight() -> None:
    s, _ = make_scheduler(num_pages=4000, page_size=16, max_num_seqs=512, budget=64)
    for i in range(600):
        s.add(sequence(i, 16, max_tokens=1, client=ATTACKER, queue=i % 2, weight=1 + 3 * (i % 2)))
        s.add(sequence(1000 + i, 16, max_tokens=1, client=VICTIM))

    served: Counter[tuple[int, int]] = Counter()
    for _ in range(120):
        for chunk in step(s).chunks:
            served[chunk.seq.queue] += chunk.num_tokens

    mine, light, heavy = served[0, VICTIM], served[0, ATTACKER], served[1, ATTACKER]
    assert heavy / light == pytest.approx(4, rel=0.25)
    assert (light + heavy) / mine == pytest.approx(2.5, rel=0.1), "the mean of its weights"
