"""The planner: packs a batch of chunks into a step of token ids, positions, spans and segments."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import torch

from prefix_store.digest import Digest
from server.engine.attention.base import QuerySpan, Segment, Step
from server.engine.memory.prefix import ResidentPrefix
from server.engine.memory.transfer import to_device
from server.engine.scheduler.batch import Batch, Chunk


def plan(batch: Batch, prefix_of: Callable[[Digest], ResidentPrefix], device: torch.device) -> Step:
    """Pack a batch, with the chunks of a prefix next to each other so that it is read once.

    `logit_rows` follow the order of `batch.sampled`, as the scheduler expects the sampled tokens.
    The id of a token that is not known yet is 0.
    """
    spans: dict[Chunk, QuerySpan] = {}
    segments: list[Segment] = []
    position_ids: list[int] = []
    end = 0
    for digest, chunks in groupby(sorted(batch.chunks, key=_by_prefix), key=lambda c: c.seq.prefix):
        prefix = prefix_of(digest) if digest is not None else None
        num_prefix_tokens, offset = (
            (prefix.num_tokens, prefix.position_offset) if prefix else (0, 0)
        )
        begin = end
        for chunk in chunks:
            seq, start, num_tokens = chunk.seq, chunk.start, chunk.num_tokens
            spans[chunk] = QuerySpan(
                seq.request_id, end, num_tokens, start, seq.pages, num_prefix_tokens
            )
            position_ids += range(offset + start, offset + start + num_tokens)
            end += num_tokens
        if prefix is not None:
            segments.append(Segment.of_prefix(begin, end, prefix))
    segments += map(Segment.own, spans.values())
    return Step(
        input_ids=to_device(_token_ids(spans), torch.long, device)[None],
        position_ids=to_device(position_ids, torch.long, device)[None],
        logit_rows=to_device([spans[chunk].end - 1 for chunk in batch.sampled], torch.long, device),
        spans=list(spans.values()),
        segments=segments,
    )


def _by_prefix(chunk: Chunk) -> tuple[str, int]:
    """Sort key: the prefix, then the first page, so that decode rows read the pool in order."""
    return str(chunk.seq.prefix or ""), chunk.seq.pages[0]


def _token_ids(spans: dict[Chunk, QuerySpan]) -> list[int]:
    return [
        token_id
        for chunk in spans
        for token_id in chunk.seq.token_ids[chunk.start : chunk.end] or [0]
    ]
