"""Tests at the start of the engine: its logits equal the model's, and replays equal the forward."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prefix_store.prefix import BaseModelSpec
from server.engine.attention.base import AttentionBackend, QuerySpan, Segment, Step
from server.engine.memory.prefix import ResidentPrefix
from server.engine.model.families import UnsupportedModel, refusing
from server.engine.model.numerics import ANY_LIMIT, MODEL_LIMITS, agree, relative_error
from server.engine.model.reference import NUM_AFTER_PREFIX, NUM_ALONE, Reference
from server.engine.runner.forward import ModelForward
from server.engine.runner.graphs import Forward, Graphs

logger = logging.getLogger(__name__)


def check_model(
    reference: Reference,
    forward: ModelForward,
    backend: AttentionBackend,
    prefix: ResidentPrefix,
    limit: float,
) -> None:
    """Compare the engine's logits with the reference, in mixed steps with prompts in chunks.

    The steps write to the first pages of the pool, which must not be in use. `prefix` is that of
    the reference, in the layout of the backend. Raises `UnsupportedModel` if the relative error is
    larger than `limit` (three times `reference.noise`, if that is more), or a step fails.
    """
    config = forward.model.config
    with refusing(config, "it does not run in a batch"):
        error = _error(reference, forward, backend, prefix)
    limit = min(ANY_LIMIT, max(limit, 3 * reference.noise))
    if not error <= limit:  # also if it is NaN
        raise UnsupportedModel.because(
            config, f"its logits in a batch differ from its own by {error:.1e} of their norm"
        )


@torch.inference_mode()
def _error(
    reference: Reference,
    forward: ModelForward,
    backend: AttentionBackend,
    prefix: ResidentPrefix,
) -> float:
    """Return the largest relative error of the logits, those for scoring prompts included."""
    got = [torch.empty_like(logits) for logits in reference.logits]
    device = forward.model.device
    for spans in _batches(prefix):
        step = _step(spans, prefix, reference.prompts, device)
        step = replace(step, logit_rows=torch.arange(spans[-1].end, device=device))
        backend.plan(step)
        logits = forward(step).float().cpu()
        for span in spans:
            own = slice(span.num_computed_tokens, span.seq_len)
            got[span.request_id][own] = logits[span.begin : span.end]
    backend.plan(step)
    scored = forward.logits(forward.hidden(step)).float().cpu()
    pairs = zip([*reference.logits, logits], [*got, scored], strict=True)
    errors = [relative_error(*pair) for pair in pairs]
    return float(torch.tensor(errors).max())  # NaN if one of them is


def capture_and_test(
    graphs: Graphs, forward: Forward, backend: AttentionBackend, steps: list[Step]
) -> Graphs | None:
    """Capture and test `graphs`. Returns None, and logs a warning, if they cannot be used."""
    try:
        graphs.capture_all()
        if agrees(graphs, forward, backend, steps):
            return graphs
        reason = "replays disagree with the forward"
    except Exception as exc:  # the forward of some models waits for the device
        reason = str(exc)
    logger.warning("running without CUDA graphs, which is slower: %s", reason)
    return None


@torch.inference_mode()
def agrees(graphs: Graphs, forward: Forward, backend: AttentionBackend, steps: list[Step]) -> bool:
    """Return whether replays of all steps agree with plain forwards, within rounding."""
    return all(_agrees(graphs, forward, backend, step) for step in steps)


def _agrees(graphs: Graphs, forward: Forward, backend: AttentionBackend, step: Step) -> bool:
    backend.plan(step)
    expected, got = forward(step), graphs.replay(step)
    return got is not None and agree(expected, got, MODEL_LIMITS[expected.dtype])


def example_steps(spec: BaseModelSpec, vocab_size: int, device: torch.device) -> list[Step]:
    """Return steps like those of `check_model`, with random tokens and a random prefix."""
    generator = torch.Generator().manual_seed(0)
    shape = (spec.num_layers, 2, spec.num_kv_heads, 5, spec.head_dim)
    kv = torch.randn(shape, generator=generator).to(device, getattr(torch, spec.dtype))
    prompts = torch.randint(vocab_size, (2, NUM_AFTER_PREFIX), generator=generator)
    prefix = ResidentPrefix(kv, 5, 5)
    return [_step(spans, prefix, list(prompts), device) for spans in _batches(prefix)]


def _batches(prefix: ResidentPrefix) -> list[list[QuerySpan]]:
    """Return three steps of two sequences, as spans.

    The start of both prompts, one of them after a prefix; then the rest of one prompt and one token
    of the other; then one token of each. A page must hold at least 16 tokens or a whole sequence.
    """
    steps = [((0, 9), (0, 4)), ((9, 8), (4, 1)), ((17, 1), (5, 1))]
    assert steps[-1] == ((NUM_AFTER_PREFIX - 1, 1), (NUM_ALONE - 1, 1))
    return [
        [
            QuerySpan(0, 0, num, start, [2, 0], prefix.num_tokens),
            QuerySpan(1, num, num_alone, start_alone, [1]),
        ]
        for (start, num), (start_alone, num_alone) in steps
    ]


def _step(
    spans: list[QuerySpan], prefix: ResidentPrefix, prompts: Sequence[Tensor], device: torch.device
) -> Step:
    """Pack spans into a step. `prompts`: token ids [num_tokens] by request id."""
    ids = [prompts[s.request_id][s.num_computed_tokens : s.seq_len] for s in spans]
    positions = [s.first_position + i for s in spans for i in range(s.num_tokens)]
    after_prefix = [s for s in spans if s.num_prefix_tokens]
    last: Tensor = torch.tensor([span.end - 1 for span in spans])
    return Step(
        input_ids=torch.cat(ids)[None].to(device),
        position_ids=torch.tensor([positions], device=device),
        logit_rows=last.to(device),
        spans=spans,
        segments=[
            *(Segment.of_prefix(s.begin, s.end, prefix) for s in after_prefix),
            *map(Segment.own, spans),
        ],
    )
