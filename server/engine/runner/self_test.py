"""Does the engine compute the model, and do replays compute what the forward computes? Asked once,
before anyone relies on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prefix_store.prefix import BaseModelSpec
from server.engine.attention.base import AttentionBackend, Group, Span, Step
from server.engine.memory.prefix import ResidentPrefix
from server.engine.model.families import UnsupportedModel, refusing
from server.engine.model.reference import NUM_AFTER_PREFIX, NUM_ALONE, Reference, relative_error
from server.engine.runner.graphs import Forward, Graphs
from server.engine.runner.runner import Runner

logger = logging.getLogger(__name__)

MAX_RELATIVE_ERROR = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
MAX_RELATIVE_ERROR_OF_ALL = 0.25
"""Whatever the rounding: a wrong layer gives 1 and more."""


def check_model(reference: Reference, runner: Runner, prefix: ResidentPrefix, limit: float) -> None:
    """Mixed steps with prompts in chunks, over the first pages of a pool that nobody uses yet.

    `prefix`: the reference's, as the backend reads it. Raises `UnsupportedModel` where the logits
    are not the model's own, or do not come out.
    """
    config = runner.model.config
    with refusing(config, "it does not run in a batch"):
        error = _error(reference, runner, prefix)
    limit = min(MAX_RELATIVE_ERROR_OF_ALL, max(limit, 3 * reference.noise))
    if not error <= limit:  # NaN is no agreement
        raise UnsupportedModel.because(
            config, f"its logits in a batch differ from its own by {error:.1e} of their norm"
        )


@torch.inference_mode()
def _error(reference: Reference, runner: Runner, prefix: ResidentPrefix) -> float:
    """Relative, of the logits of all steps, and of the last when made for scoring prompts."""
    got = [torch.empty_like(logits) for logits in reference.logits]
    for spans in _batches(prefix):
        step = _step(spans, reference.prompts, runner.model.device)
        step = replace(step, logit_rows=torch.arange(spans[-1].end, device=runner.model.device))
        logits = runner.run_planned(step).float().cpu()
        for span in spans:
            own = slice(span.start, span.start + span.num_tokens)
            got[span.request_id][own] = logits[span.begin : span.end]
    scored = runner.run_split(step).float().cpu()
    pairs = zip([*reference.logits, logits], [*got, scored], strict=True)
    errors = [relative_error(*pair) for pair in pairs]
    return float(torch.tensor(errors).max())  # NaN if one of them is


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
    """The same steps, with any tokens, of which the last of each sequence count."""
    generator = torch.Generator().manual_seed(0)
    shape = (spec.num_layers, 2, spec.num_kv_heads, 5, spec.head_dim)
    kv = torch.randn(shape, generator=generator).to(device, getattr(torch, spec.dtype))
    prompts = torch.randint(vocab_size, (2, NUM_AFTER_PREFIX), generator=generator)
    return [_step(spans, list(prompts), device) for spans in _batches(ResidentPrefix(kv, 5, 5))]


def _batches(prefix: ResidentPrefix) -> list[list[Span]]:
    """Two prompts, one after a prefix, then the rest of one beside a token of the other, and a
    token of both. Pages hold at least 16 tokens, or all of a sequence."""
    steps = [((0, 9), (0, 4)), ((9, 8), (4, 1)), ((17, 1), (5, 1))]
    assert steps[-1] == ((NUM_AFTER_PREFIX - 1, 1), (NUM_ALONE - 1, 1))
    return [
        [Span(0, 0, num, start, [2, 0], prefix), Span(1, num, num_alone, start_alone, [1], None)]
        for (start, num), (start_alone, num_alone) in steps
    ]


def _step(spans: list[Span], prompts: Sequence[Tensor], device: torch.device) -> Step:
    """`prompts`: token ids by request, [num_tokens] each."""
    ids = [prompts[s.request_id][s.start : s.start + s.num_tokens] for s in spans]
    positions = [s.num_prefix_tokens + s.start + i for s in spans for i in range(s.num_tokens)]
    last: Tensor = torch.tensor([span.end - 1 for span in spans])
    return Step(
        input_ids=torch.cat(ids)[None].to(device),
        position_ids=torch.tensor([positions], device=device),
        logit_rows=last.to(device),
        spans=spans,
        groups=[Group(s.begin, s.end, s.prefix) for s in spans if s.prefix is not None],
    )
