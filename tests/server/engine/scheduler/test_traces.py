"""Random traces: no page is lost, limits hold, tokens are right and every request finishes."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_store.digest import Digest
from tests.server.engine.scheduler_setup import make_scheduler, sequence
from tests.server.engine.simulation import Simulation, expected

DIGESTS = (None, *(Digest.of(bytes([i])) for i in range(3)))
LIMITS = {0: None, 1: 1, 2: 2}
WEIGHTS = {0: 1.0, 1: 0.1, 2: 7.0}
MAX_STEPS = 3000


@dataclass(frozen=True)
class Arrival:
    header: int
    """Number of leading prompt tokens shared with other arrivals."""
    tail: tuple[int, ...]
    continues: int
    """Index of the arrival whose conversation it continues, if that is an earlier one."""
    max_tokens: int
    prefix: int
    queue: int
    client: int
    priority: int
    at: int
    cancelled_at: int | None


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        header=st.sampled_from((0, 4, 9, 16)),
        tail=st.lists(st.integers(3, 5), min_size=1, max_size=14).map(tuple),
        continues=st.integers(0, 24),
        max_tokens=st.integers(1, 8),
        prefix=st.integers(0, 3),
        queue=st.integers(0, 2),
        client=st.sampled_from((0, 0, 1, 2)),
        priority=st.sampled_from((0, 0, -3, 5)),
        at=st.integers(0, 20),
        cancelled_at=st.one_of(st.none(), st.none(), st.integers(0, 40)),
    ),
    min_size=8,
    max_size=25,
)


def prompts_of(arrivals: list[Arrival]) -> list[list[int]]:
    prompts: list[list[int]] = []
    for i, each in enumerate(arrivals):
        begin = list(range(10, 10 + each.header))
        if each.continues < i and len(prompts[each.continues]) < 20:
            before = arrivals[each.continues]
            prompt = prompts[each.continues]
            begin = prompt + expected(DIGESTS[before.prefix], prompt, before.max_tokens)
        prompts.append([*begin, *each.tail])
    return prompts


@settings(max_examples=300, deadline=None)
@given(
    arrivals=ARRIVALS,
    num_pages=st.integers(14, 28),
    resident_at=st.lists(st.integers(0, 25), min_size=3, max_size=3),
    evictions=st.sets(st.integers(0, 60), max_size=3),
    failing=st.sets(st.integers(0, 60), max_size=3),
    full=st.sets(st.integers(0, 60), max_size=2),
    poisoned=st.sets(st.integers(0, 24), max_size=2),
    overlap=st.booleans(),
    prompt_cache=st.booleans(),
)
def test_any_trace(
    arrivals: list[Arrival],
    num_pages: int,
    resident_at: list[int],
    evictions: set[int],
    failing: set[int],
    full: set[int],
    poisoned: set[int],
    overlap: bool,
    prompt_cache: bool,
) -> None:
    s, residency = make_scheduler(
        num_pages=num_pages, max_num_seqs=4, budget=8, prompt_cache=prompt_cache
    )
    run = Simulation(s, residency, overlap=overlap, failing=failing, full=full, poisoned=poisoned)
    cancelled = set()
    prompts = prompts_of(arrivals)
    for now in range(MAX_STEPS):
        if now in evictions:
            residency.evict_idle()
        residency.resident |= {
            d for d, at in zip(DIGESTS[1:], resident_at, strict=True) if now >= at and d
        }
        for i, each in enumerate(arrivals):
            if each.at == now:
                s.add(
                    sequence(
                        i, prompts[i], max_tokens=each.max_tokens, prefix=DIGESTS[each.prefix],
                        queue=each.queue, weight=WEIGHTS[each.queue], limit=LIMITS[each.queue],
                        client=each.client, priority=each.priority,
                    )
                )  # fmt: skip
            has_ended = i in run.reasons or i in run.failures
            if each.cancelled_at == now and each.at <= now and not has_ended:
                s.cancel(i)
                cancelled.add(i)
        run.step()
        if now > 25 and run.is_idle:
            break

    assert run.is_idle, "a sequence starves"
    assert s.allocator.num_free == s.allocator.num_pages
    assert not any(residency.refs.values())
    for i, each in enumerate(arrivals):
        right = expected(DIGESTS[each.prefix], prompts[i], each.max_tokens)
        got = run.completions.get(i, [])
        assert got == right[: len(got)]
        assert i in cancelled | poisoned or got == right
        assert i not in poisoned or not got
        assert i in poisoned or i not in run.failures
    assert len(set(run.failures)) == len(run.failures), "a failure was reported twice"
