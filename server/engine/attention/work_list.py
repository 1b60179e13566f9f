"""The list of attention work items that the Triton kernels process, built from a step.

A segment is a task's prefix, or one sequence's own keys. Its rows are cut into tiles, and the keys
of a tile into items, so that one long prefix keeps the whole device busy. Example: rows 0-2 share
prefix P, row 3 has none, and a tile is two rows high. Rows 0 and 1 are decode rows of sequences a
and b, rows 2 and 3 of c and d (`1`, `2`, ... are items):

                 keys of P       own keys
                 0   8  16  24   0   8  16
                 +---+---+---+
    tile  row 0  |   |   |   |   | 7 |          a
          row 1  | 1 | 2 | 3 |   | 8 | 9 |      b
                 +---+---+---+
    tile  row 2  | 4 | 5 | 6 |   |10 |          c
                 +---+---+---+
          row 3                  |11 |12 |      d

A row of `items` has ITEM_SIZE columns: which memory (offset, length, first_page), which rows
(first_row, num_rows), which keys of the segment (begin, end), and how they relate (first_position,
causal). An item writes one partial result per row, at index row_parts[row] + ordinal:

    row        0           1             2            3
    item       1 2 3 7     1 2 3 8 9     4 5 6 10     11 12
    ordinal    0 1 2 3     0 1 2 3 4     0 1 2 3      0  1
    row_parts  0           4             9            13        (then 15, the end)

A prefix comes before own keys, and all its rows have the same number of items. The kernel merges
the run of each row.
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
"""Columns of an item, in this order:

offset          of a prefix, in elements from the start of the pool (0 for own keys)
length          of a prefix, in tokens; 0 means own keys, which lie in pages
first_page      index into `pages` of the sequence's first page
first_row       first row of the tile
num_rows        rows of the tile
begin, end      range of the segment's keys
first_position  position of the segment's key 0 among all keys of the sequence
causal          1 if a row sees only keys up to its own position
ordinal         index of this item's result among the partial results of each of its rows
"""

_ITEMS_PER_PROGRAM = 4
"""Average number of items per program: some are short, so there must be more items than programs
to balance the load."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How work is split. A tile is a number of rows times the query heads of one KV head."""

    page_size: int
    low_rows: int
    """Rows of a low tile. A segment with more rows is cut into high tiles."""
    high_rows: int
    num_programs: int
    """Programs that run in parallel for one KV head."""
    min_keys: int
    """Minimum keys of an item, a power of two. A tile with fewer keys is one item."""
    max_parts: int
    """Capacity of the buffer of partial results."""


@dataclass(frozen=True, slots=True)
class WorkList:
    """The work of one step, the same for all its layers."""

    items: Array  # [num_items, ITEM_SIZE]; items of low tiles first
    num_low_items: int
    pages: Array  # page tables of all sequences, concatenated
    row_slots: Array  # [T]; page * page_size + slot, where a row's key and value are written
    row_positions: Array  # [T]; position among all keys of the sequence, prefix included
    row_parts: Array  # [T + 1]; start of each row's run of partial results


def work_list(step: Step, tiling: Tiling, offset_of: Callable[[ResidentPrefix], int]) -> WorkList:
    """Split a step's attention into items.

    `offset_of` returns a prefix's distance from the pool, in elements. The partial results are at
    most `tiling.max_parts`, which must be at least two per row.
    """
    spans = step.spans
    pages = np.fromiter(chain.from_iterable(span.pages for span in spans), np.int64)
    first_page = _starts([len(span.pages) for span in spans])
    own = np.array(
        [(s.begin, s.num_tokens, s.num_computed_tokens, s.num_prefix_tokens) for s in spans],
        np.int64,
    )
    begins, num_tokens, starts, num_prefix = own.T
    row_span = np.repeat(np.arange(len(spans)), num_tokens)
    own_position = np.arange(len(row_span)) - (begins - starts)[row_span]
    row_page = pages[first_page[row_span] + own_position // tiling.page_size]

    segments = _segments(step, own, first_page, offset_of)
    tiles = _tiles(segments, tiling)
    # All items have the same number of keys (the last of a tile may have fewer): the smallest that
    # does not give the programs more items than they need to balance the load.
    keys_per_item = tiling.min_keys
    while keys_per_item * tiling.num_programs * _ITEMS_PER_PROGRAM < tiles["end"].sum():
        keys_per_item *= 2
    # Then larger ones, until the partial results fit into their buffer.
    while True:
        num_items = -(-tiles["end"] // keys_per_item)
        rows = np.repeat(tiles["first_row"], tiles["num_rows"]) + _ordinals(tiles["num_rows"])
        parts = np.bincount(rows, np.repeat(num_items, tiles["num_rows"]), len(row_span))
        row_parts = np.append(0, parts.cumsum()).astype(np.int64)
        if row_parts[-1] <= tiling.max_parts:
            break
        keys_per_item *= 2

    tile = np.repeat(np.arange(len(num_items)), num_items)  # [num_items]; each item's tile
    items = _items(tiles, tile, _ordinals(num_items), keys_per_item)
    is_low = tiles["is_low"][tile].astype(bool)
    return WorkList(
        items=np.concatenate([items[is_low], items[~is_low]]),
        num_low_items=int(is_low.sum()),
        pages=pages,
        row_slots=row_page * tiling.page_size + own_position % tiling.page_size,
        row_positions=num_prefix[row_span] + own_position,
        row_parts=row_parts,
    )


def _segments(
    step: Step, own: Array, first_page: Array, offset_of: Callable[[ResidentPrefix], int]
) -> dict[str, Array]:
    """One entry per segment: the prefixes, then each sequence's own keys.

    `own` [num_spans, 4]: begin, new tokens, computed tokens and prefix tokens of each sequence.
    """
    groups, spans = step.groups, step.spans
    begins, num_tokens, starts, num_prefix = own.T
    return _table(
        offset=[*(offset_of(g.prefix) for g in groups), *(0 for _ in spans)],
        length=[*(g.prefix.num_tokens for g in groups), *(0 for _ in spans)],
        first_page=[*(0 for _ in groups), *first_page],
        first_row=[*(g.begin for g in groups), *begins],
        num_rows=[*(g.end - g.begin for g in groups), *num_tokens],
        num_keys=[*(g.prefix.num_tokens for g in groups), *(starts + num_tokens)],
        first_position=[*(0 for _ in groups), *num_prefix],
        causal=[*(0 for _ in groups), *(1 for _ in spans)],
    )


def _items(tiles: dict[str, Array], tile: Array, index: Array, keys_per_item: int) -> Array:
    """The items [num_items, ITEM_SIZE], each the `index`-th of its `tile`."""
    begin = index * keys_per_item
    # A row's own partial results follow those of its prefix, whose number depends on its length.
    num_before = np.where(tiles["causal"], -(-tiles["first_position"] // keys_per_item), 0)
    return np.stack(
        [
            tiles["offset"][tile], tiles["length"][tile], tiles["first_page"][tile],
            tiles["first_row"][tile], tiles["num_rows"][tile],
            begin, np.minimum(begin + keys_per_item, tiles["end"][tile]),
            tiles["first_position"][tile], tiles["causal"][tile], index + num_before[tile],
        ],
        axis=1,
    )  # fmt: skip


def _tiles(segments: dict[str, Array], tiling: Tiling) -> dict[str, Array]:
    """Cut the rows of each segment into tiles.

    `end` is the number of the segment's keys that the tile's last row may see.
    """
    is_low = segments["num_rows"] <= tiling.low_rows
    height = np.where(is_low, tiling.low_rows, tiling.high_rows)
    num_tiles = -(-segments["num_rows"] // height)
    segment = np.repeat(np.arange(len(num_tiles)), num_tiles)  # [num_tiles]; each tile's segment
    tiles = {name: column[segment] for name, column in segments.items()}
    skipped = _ordinals(num_tiles) * height[segment]
    num_left = tiles["num_rows"] - skipped
    num_rows = np.minimum(num_left, height[segment])
    unseen = np.where(tiles["causal"], num_left - num_rows, 0)
    return tiles | {
        "first_row": tiles["first_row"] + skipped,
        "num_rows": num_rows,
        "end": tiles["num_keys"] - unseen,
        "is_low": is_low[segment],
    }


def _table(**columns: list[int]) -> dict[str, Array]:
    return {name: np.array(column, np.int64) for name, column in columns.items()}


def _starts(sizes: list[int]) -> Array:
    """Return the start offset of each item in a concatenation of items of these sizes."""
    return np.cumsum([0, *sizes[:-1]])


def _ordinals(counts: Array) -> Array:
    """Count up from 0 for each of `counts`: [2, 3] -> [0, 1, 0, 1, 2]."""
    begins = counts.cumsum() - counts
    return np.arange(counts.sum()) - np.repeat(begins, counts)
