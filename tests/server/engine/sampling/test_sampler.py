from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.params import SamplingParams
from server.engine.sampling import sampler
from server.engine.sampling.sampler import INVALID, SampleRow


def logits(num_rows: int = 1, seed: int = 0, vocab_size: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * 2


def sample(x: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    return sampler.sample(x, rows).tolist()


def row(step: int = 0, **kwargs: float) -> SampleRow:
    return SampleRow(SamplingParams(max_tokens=1, **kwargs), step)


def test_temperature_zero_and_next_to_zero_are_greedy() -> None:
    x = logits(2)

    assert sample(x, [row(), row(temperature=1e-320)]) == x.argmax(-1).tolist()


def test_a_row_with_nan_is_marked_and_harms_no_other() -> None:
    x = logits(3)
    x[1, 7] = torch.nan

    expected = x.argmax(-1).tolist()
    assert sample(x, [row(), row(temperature=1.0), row()]) == [expected[0], INVALID, expected[2]]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), step=st.integers(0, 4000), others=st.integers(0, 5))
def test_the_same_seed_gives_the_same_token_whatever_the_batch(
    seed: int, step: int, others: int
) -> None:
    x = logits()
    mine = row(step, temperature=0.9, top_p=0.9, top_k=20, min_p=0.05, seed=seed)
    strangers = [row(step, temperature=1.3, min_p=i / 9, seed=i) for i in range(others)]

    [alone] = sample(x, [mine])

    assert sample(torch.cat([logits(others, 9), x]), [*strangers, mine])[-1] == alone


def test_draws_follow_the_distribution() -> None:
    x = logits(vocab_size=8)
    rows = [row(step, temperature=1.5, seed=11) for step in range(4000)]

    drawn = torch.tensor(sample(x.expand(4000, -1), rows)).bincount(minlength=8) / 4000

    assert (drawn - (x[0] / 1.5).softmax(-1)).abs().max() < 0.03


def test_seeds_and_steps_give_independent_draws() -> None:
    x = torch.zeros(1, 1000)
    by_step = sample(x.expand(300, -1), [row(i, temperature=1.0, seed=1) for i in range(300)])
    by_seed = sample(x.expand(300, -1), [row(0, temperature=1.0, seed=i) for i in range(300)])

    assert len(set(by_step)) > 200
    assert len(set(by_seed)) > 200
    assert by_step != by_seed


def test_top_k_keeps_only_the_k_most_likely() -> None:
    x = logits()
    allowed = set(x[0].topk(3).indices.tolist())

    drawn = {sample(x, [row(i, temperature=2.0, top_k=3)])[0] for i in range(200)}

    assert drawn == allowed


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05]])

    drawn = {sample(probs.log(), [row(i, temperature=1.0, top_p=0.75)])[0] for i in range(200)}

    assert drawn == {0, 1}


def test_a_tiny_top_p_keeps_one_token() -> None:
    x = logits()

    assert sample(x, [row(temperature=2.0, top_p=1e-9)]) == x.argmax(-1).tolist()


def allowed_by_min_p(logits: torch.Tensor, temperature: float, min_p: float) -> set[int]:
    """The definition, in float64 on the host."""
    scaled = logits.double().numpy() / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    return set(np.flatnonzero(probs >= min_p * probs.max()).tolist())


@pytest.mark.parametrize("min_p", [0.02, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_min_p_drops_what_is_less_likely_than_a_share_of_the_likeliest(
    min_p: float, temperature: float
) -> None:
    x = logits(vocab_size=12, seed=3)
    rows = [row(i, temperature=temperature, min_p=min_p) for i in range(4000)]
    strangers = [row(i, temperature=temperature, top_p=0.9) for i in range(50)]

    drawn = sample(x.expand(4050, -1), [*strangers, *rows])

    allowed = allowed_by_min_p(x[0], temperature, min_p)
    assert set(drawn[50:]) <= allowed
    likely = x[0].div(temperature).softmax(-1)
    expected = likely[sorted(allowed)] / likely[sorted(allowed)].sum()
    counts = torch.tensor(drawn[50:]).bincount(minlength=12)[sorted(allowed)] / 4000
    assert (counts - expected).abs().max() < 0.04
    assert drawn[:50] == sample(x.expand(50, -1), strangers), "other rows are as without it"


def test_a_min_p_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the test above."""
    monkeypatch.setattr(sampler, "_keep_min_p", lambda logits, min_p: logits)
    x = logits(vocab_size=12, seed=3)

    drawn = sample(x.expand(4000, -1), [row(i, temperature=2.0, min_p=0.5) for i in range(4000)])

    assert not set(drawn) <= allowed_by_min_p(x[0], 2.0, 0.5)


def one_by_one(x: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    """The definition: each row alone, min-p before top-k before top-p."""
    drawn = []
    for logits, each in zip(x, rows, strict=True):
        sampling = each.sampling
        if each.is_greedy:
            drawn.append(int(logits.argmax()))
            continue
        logits = logits.float() / sampling.temperature
        if sampling.min_p:
            probs = logits.double().softmax(-1)
            logits.masked_fill_(probs < sampling.min_p * probs.max(), -torch.inf)
        if 0 < sampling.top_k < len(logits):
            threshold = logits.topk(sampling.top_k).values[-1]
            logits.masked_fill_(logits < threshold, -torch.inf)
        if sampling.top_p < 1.0:
            ordered, order = logits.sort(descending=True, stable=True)
            probs = ordered.softmax(-1)
            logits[order[probs.cumsum(-1) - probs >= sampling.top_p]] = -torch.inf
        drawn.append(int((logits + sampler._gumbel([each], logits[None])[0]).argmax()))
    return drawn


SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    temperature=st.sampled_from((0.0, 0.1, 0.7, 1.0, 5.0)),
    top_p=st.sampled_from((1.0, 0.999, 0.9, 0.5, 1e-6)),
    top_k=st.sampled_from((0, 1, 2, 40, 299, 300, 5000)),
    min_p=st.sampled_from((0.0, 1e-3, 0.1, 0.5, 1.0)),
    seed=st.integers(0, 2**63 - 1),
)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.builds(SampleRow, SAMPLING, st.integers(0, 5000)), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_all_rows_at_once_are_sampled_as_each_alone(
    rows: list[SampleRow], seed: int, dtype: torch.dtype
) -> None:
    """In bfloat16 many logits are equal: ties are kept, and cut, in the same places."""
    x = logits(len(rows), seed, vocab_size=300).to(dtype)

    assert sample(x, rows) == one_by_one(x, rows)
