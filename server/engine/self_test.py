"""Do replays compute what the forward computes? Asked once, before anyone relies on it."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from prefix_store.prefix import BaseModelSpec
from server.engine.attention.base import AttentionBackend, Group, Span, Step
from server.engine.graphs import Forward, Graphs
from server.engine.residency import ResidentPrefix

logger = logging.getLogger(__name__)

MAX_RELATIVE_ERROR = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}


def tested(
    graphs: Graphs, forward: Forward, backend: AttentionBackend, steps: list[Step]
) -> Graphs | None:
    """`graphs`, captured and found right; None, and a warning, where they cannot be used."""
    try:
        graphs.capture_all()
        if agrees(graphs, forward, backend, steps):
            return graphs
        reason = "replays give other logits than the forward"
    except Exception as exc:  # some models wait for the device in their forward
        reason = str(exc)
    logger.warning("without CUDA graphs, slower: %s", reason)
    return None


@torch.inference_mode()
def agrees(graphs: Graphs, forward: Forward, backend: AttentionBackend, steps: list[Step]) -> bool:
    """Whether replays of all steps give the logits of a plain forward, as exactly as its dtype."""
    return all(_agrees(graphs, forward, backend, step) for step in steps)


def _agrees(graphs: Graphs, forward: Forward, backend: AttentionBackend, step: Step) -> bool:
    backend.plan(step)
    expected, got = forward(step), graphs.replay(step)
    if got is None:
        return False
    limit = MAX_RELATIVE_ERROR[str(expected.dtype).removeprefix("torch.")]
    # NaN is no agreement
    return bool((expected - got).float().norm() <= limit * expected.float().norm())


def examples(spec: BaseModelSpec, vocab_size: int, device: torch.device) -> list[Step]:
    """Mixed steps over the first pages of a pool that nobody uses yet, of at least 16 tokens each:
    two prompts, one behind a prefix, then the rest of one beside a token of the other."""
    generator = torch.Generator().manual_seed(0)
    shape = (spec.num_layers, 2, spec.num_kv_heads, 5, spec.head_dim)
    kv = torch.randn(shape, generator=generator).to(device, getattr(torch, spec.dtype))
    prefix = ResidentPrefix(kv, 5, 5)
    batches = [
        [Span(0, 0, 9, 0, [2, 0], prefix), Span(1, 9, 4, 0, [1], None)],
        [Span(0, 0, 10, 9, [2, 0], prefix), Span(1, 10, 1, 4, [1], None)],
        [Span(0, 0, 1, 19, [2, 0], prefix), Span(1, 1, 1, 5, [1], None)],
    ]
    return [_step(spans, vocab_size, device, generator) for spans in batches]


def _step(
    spans: list[Span], vocab_size: int, device: torch.device, generator: torch.Generator
) -> Step:
    ids = torch.randint(vocab_size, (1, spans[-1].end), generator=generator)
    positions = [s.num_prefix_tokens + s.start + i for s in spans for i in range(s.num_tokens)]
    last: Tensor = torch.tensor([span.end - 1 for span in spans])
    return Step(
        input_ids=ids.to(device),
        position_ids=torch.tensor([positions], device=device),
        logit_rows=last.to(device),
        spans=spans,
        groups=[Group(s.begin, s.end, s.prefix) for s in spans if s.prefix is not None],
    )
