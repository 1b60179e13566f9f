"""A step -> the list that the Triton kernels work off.

A segment, a task's prefix or a sequence's own keys, meets its rows in tiles; a tile's keys are cut
into items, so that one long prefix keeps the whole device busy. Each row has a run of partial
results: first those of its prefix, then those of its own keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from server.engine.attention.base import Step
from server.engine.memory.prefix import ResidentPrefix

Array = NDArray[np.int64]

ITEM_SIZE = 10
"""offset (a prefix's, in elements from the pool's first), length (of a prefix; 0: pages),
first_page (in `pages`), first_row, num_rows, begin and end (keys of the segment), first_position
(of the segment's key 0), causal, ordinal (among the row's partial results)."""

_ITEMS_PER_PROGRAM = 4
"""Some end early, so there must be more to fetch."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How work is cut. A tile is a number of rows times the query heads of one KV head."""

    page_size: int
    low_rows: int
    """Rows of a low tile; a segment with more is cut into high ones."""
    high_rows: int
    num_programs: int
    """That work beside each other on one KV head."""
    min_keys: int
    """Of one item, a power of two."""
    max_parts: int


@dataclass(frozen=True, slots=True)
class WorkList:
    items: Array  # [num_items, ITEM_SIZE]; the low tiles' first
    num_low_items: int
    pages: Array  # those of all sequences, one behind the other
    row_slots: Array  # [T]; page * page_size + slot, where a row's key and value go
    row_positions: Array  # [T]; among all keys of its sequence, prefix first
    row_parts: Array  # [T + 1]; where each row's run of partial results begins


def work_list(step: Step, tiling: Tiling, offset_of: Callable[[ResidentPrefix], int]) -> WorkList:
    groups, spans = step.groups, step.spans
    pages = np.fromiter(chain.from_iterable(span.pages for span in spans), np.int64)
    first_page = _begins([len(span.pages) for span in spans])
    own = np.array([(s.begin, s.num_tokens, s.start, s.num_prefix_tokens) for s in spans], np.int64)
    begins, num_tokens, starts, num_prefix = own.T
    row_span = np.repeat(np.arange(len(spans)), num_tokens)
    own_position = np.arange(len(row_span)) - (begins - starts)[row_span]
    row_page = pages[first_page[row_span] + own_position // tiling.page_size]

    segments = _table(
        offset=[*(offset_of(g.prefix) for g in groups), *(0 for _ in spans)],
        length=[*(g.prefix.num_tokens for g in groups), *(0 for _ in spans)],
        first_page=[*(0 for _ in groups), *first_page],
        first_row=[*(g.begin for g in groups), *begins],
        num_rows=[*(g.end - g.begin for g in groups), *num_tokens],
        num_keys=[*(g.prefix.num_tokens for g in groups), *(starts + num_tokens)],
        first_position=[*(0 for _ in groups), *num_prefix],
        causal=[*(0 for _ in groups), *(1 for _ in spans)],
    )
    tiles = _tiles(segments, tiling)
    keys_per_item = tiling.min_keys
    while keys_per_item * tiling.num_programs * _ITEMS_PER_PROGRAM < tiles["end"].sum():
        keys_per_item *= 2
    while True:
        num_items = -(-tiles["end"] // keys_per_item)
        rows = np.repeat(tiles["first_row"], tiles["num_rows"]) + _ordinals(tiles["num_rows"])
        parts = np.bincount(rows, np.repeat(num_items, tiles["num_rows"]), len(row_span))
        row_parts = np.append(0, parts.cumsum()).astype(np.int64)
        if row_parts[-1] <= tiling.max_parts:
            break
        keys_per_item *= 2

    of = np.repeat(np.arange(len(num_items)), num_items)
    ordinal = _ordinals(num_items)
    begin = ordinal * keys_per_item
    # a row's own partial results come behind those of its prefix, which all its rows have alike
    behind = np.where(tiles["causal"], -(-tiles["first_position"] // keys_per_item), 0)
    items = np.stack(
        [
            tiles["offset"][of], tiles["length"][of], tiles["first_page"][of],
            tiles["first_row"][of], tiles["num_rows"][of],
            begin, np.minimum(begin + keys_per_item, tiles["end"][of]),
            tiles["first_position"][of], tiles["causal"][of], ordinal + behind[of],
        ],
        axis=1,
    )  # fmt: skip
    is_low = tiles["is_low"][of].astype(bool)
    return WorkList(
        items=np.concatenate([items[is_low], items[~is_low]]),
        num_low_items=int(is_low.sum()),
        pages=pages,
        row_slots=row_page * tiling.page_size + own_position % tiling.page_size,
        row_positions=num_prefix[row_span] + own_position,
        row_parts=row_parts,
    )


def _tiles(segments: dict[str, Array], tiling: Tiling) -> dict[str, Array]:
    """The segments' rows cut, with the number of keys that the last row of each tile may see."""
    is_low = segments["num_rows"] <= tiling.low_rows
    height = np.where(is_low, tiling.low_rows, tiling.high_rows)
    num_tiles = -(-segments["num_rows"] // height)
    of = np.repeat(np.arange(len(num_tiles)), num_tiles)
    tiles = {name: column[of] for name, column in segments.items()}
    skipped = _ordinals(num_tiles) * height[of]
    num_left = tiles["num_rows"] - skipped
    num_rows = np.minimum(num_left, height[of])
    unseen = np.where(tiles["causal"], num_left - num_rows, 0)
    return tiles | {
        "first_row": tiles["first_row"] + skipped,
        "num_rows": num_rows,
        "end": tiles["num_keys"] - unseen,
        "is_low": is_low[of],
    }


def _table(**columns: list[int]) -> dict[str, Array]:
    return {name: np.array(column, np.int64) for name, column in columns.items()}


def _begins(sizes: list[int]) -> Array:
    """Where each of some things begins that lie one behind the other."""
    return np.cumsum([0, *sizes[:-1]])


def _ordinals(counts: Array) -> Array:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    begins = counts.cumsum() - counts
    return np.arange(counts.sum()) - np.repeat(begins, counts)
