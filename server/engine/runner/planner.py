"""The planner: packs a batch of chunks into one step of token ids, positions and spans."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import torch

from prefix_store.digest import Digest
from server.engine.attention.base import PrefixGroup, QuerySpan, Step
from server.engine.memory.prefix import ResidentPrefix
from server.engine.memory.transfer import to_device
from server.engine.scheduler.batch import Batch, Chunk


def plan(batch: Batch, prefix_of: Callable[[Digest], ResidentPrefix], device: torch.device) -> Step:
    """Pack a batch, with the chunks of a prefix next to each other so that it is read once.

    `logit_rows` follow the order of `batch.sampled`, as the scheduler expects the sampled tokens.
    The id of a token that is not known yet is 0.
    """
    spans: dict[Chunk, QuerySpan] = {}
    groups: list[PrefixGroup] = []
    end = 0
    for digest, chunks in groupby(sorted(batch.chunks, key=_by_prefix), key=lambda c: c.seq.prefix):
        prefix = prefix_of(digest) if digest is not None else None
        begin = end
        for chunk in chunks:
            spans[chunk] = _span(chunk, end, prefix)
            end += chunk.num_tokens
        if prefix is not None:
            groups.append(PrefixGroup(begin, end, prefix))
    return Step(
        input_ids=to_device(_token_ids(spans), torch.long, device)[None],
        position_ids=to_device(_position_ids(spans), torch.long, device)[None],
        logit_rows=to_device([spans[chunk].end - 1 for chunk in batch.sampled], torch.long, device),
        spans=list(spans.values()),
        groups=groups,
    )


def _span(chunk: Chunk, begin: int, prefix: ResidentPrefix | None) -> QuerySpan:
    seq = chunk.seq
    return QuerySpan(seq.request_id, begin, chunk.num_tokens, chunk.start, seq.pages, prefix)


def _by_prefix(chunk: Chunk) -> tuple[str, int]:
    """Sort key: the prefix, then the first page, so that decode rows read the pool in order."""
    return str(chunk.seq.prefix or ""), chunk.seq.pages[0]


def _token_ids(spans: dict[Chunk, QuerySpan]) -> list[int]:
    return [
        token_id
        for chunk in spans
        for token_id in chunk.seq.token_ids[chunk.start : chunk.end] or [0]
    ]


def _position_ids(spans: dict[Chunk, QuerySpan]) -> list[int]:
    offsets = [span.prefix.position_offset if span.prefix else 0 for span in spans.values()]
    return [
        offset + span.num_computed_tokens + i
        for offset, span in zip(offsets, spans.values(), strict=True)
        for i in range(span.num_tokens)
    ]
