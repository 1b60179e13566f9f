"""The list of attention work items that the Triton kernels process, built from a step.

The rows of a segment are cut into tiles, and the keys of a tile into items, so that one long prefix
keeps the whole device busy. Example: rows 0-2 share prefix P, row 3 has none, and a tile is two
rows high. Rows 0 and 1 are decode rows of sequences a and b, rows 2 and 3 of c and d (`1`, `2`, ...
are items):

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

The results of a row are in the order of its segments. All rows of a tile must have as many before
it, which they have if the segments that more rows share come first. The kernel merges the run of
each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from server.engine.attention.base import QuerySpan, Segment, Step, UnsupportedSegment

Array = NDArray[np.int64]

ITEM_SIZE = 10
"""Columns of an item, in this order. Segments and tiles have the same, until they are cut.

offset          of a tensor of keys, in elements from the start of the pool (0 for keys in pages)
length          of that tensor, in slots; 0 means that the keys lie in pages
first_page      index into `pages` of the segment's first page
first_row       first row of the tile
num_rows        rows of the tile
begin, end      range of the segment's keys
first_position  position of the segment's key 0, or NO_POSITION
causal          1 if a row sees only keys up to its own position
ordinal         index of this item's result among the partial results of each of its rows
"""

NO_POSITION = 1 << 30
"""Position of keys that have none: after all rows, and so within every window."""

_FIRST_ROW, _NUM_ROWS, _BEGIN, _END, _, _CAUSAL, _ORDINAL = range(3, ITEM_SIZE)
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
    pages: Array  # page tables of all sequences and segments, concatenated
    row_slots: Array  # [T]; page * page_size + slot, where a row's key and value are written
    row_positions: Array  # [T]; `QuerySpan.first_position`, counted up
    row_parts: Array  # [T + 1]; start of each row's run of partial results


def work_list(step: Step, tiling: Tiling, offset_of: Callable[[Tensor], int]) -> WorkList:
    """Split a step's attention into items.

    `offset_of` returns the distance of a segment's `kv` from the pool, in elements. The partial
    results are at most `tiling.max_parts`. Raises `UnsupportedSegment` for a bias, and for a step
    that has more partial results although no segment is split.
    """
    tables: dict[int, Sequence[int]] = {id(span.pages): span.pages for span in step.spans}
    tables |= {id(segment.pages): segment.pages for segment in step.segments}
    first_page = dict(zip(tables, _starts(map(len, tables.values())), strict=False))
    pages = np.fromiter(chain.from_iterable(tables.values()), np.int64)
    num_tokens, starts, num_prefix, span_page = _spans(step.spans, first_page)
    row_span = np.repeat(np.arange(len(num_tokens)), num_tokens)
    own_position = starts[row_span] + _ordinals(num_tokens)
    row_page = pages[span_page[row_span] + own_position // tiling.page_size]

    tiles, is_low = _tiles(_segments(step.segments, first_page, offset_of), tiling)
    rows = np.repeat(tiles[_FIRST_ROW], tiles[_NUM_ROWS]) + _ordinals(tiles[_NUM_ROWS])
    # All items have the same number of keys (the last of a tile may have fewer): the smallest that
    # does not give the programs more items than they need to balance the load.
    keys_per_item = tiling.min_keys
    while keys_per_item * tiling.num_programs * _ITEMS_PER_PROGRAM < tiles[_END].sum():
        keys_per_item *= 2
    # Then larger ones, until the partial results fit into their buffer.
    while True:
        num_items = -(-tiles[_END] // keys_per_item)
        parts = np.repeat(num_items, tiles[_NUM_ROWS])  # those of each of `rows`
        row_parts = np.append(0, np.bincount(rows, parts).cumsum()).astype(np.int64)
        if row_parts[-1] <= tiling.max_parts:
            break
        if keys_per_item > tiles[_END].max():
            raise UnsupportedSegment("the rows of this step have too many segments")
        keys_per_item *= 2

    tiles[_ORDINAL] = _num_before(tiles[_NUM_ROWS], rows, parts, row_parts)
    items = _items(tiles, num_items, keys_per_item)
    is_low = np.repeat(is_low, num_items)
    return WorkList(
        items=np.concatenate([items[:, is_low], items[:, ~is_low]], axis=1).T,
        num_low_items=int(is_low.sum()),
        pages=pages,
        row_slots=row_page * tiling.page_size + own_position % tiling.page_size,
        row_positions=num_prefix[row_span] + own_position,
        row_parts=row_parts,
    )


def _spans(spans: list[QuerySpan], first_page: dict[int, int]) -> Array:
    """Columns of the spans: new tokens, computed tokens, prefix tokens, first page."""
    _, _, num_tokens, starts, pages, num_prefix = zip(*spans, strict=True) if spans else [()] * 6
    return _columns(num_tokens, starts, num_prefix, [first_page[id(table)] for table in pages])


def _segments(
    segments: list[Segment], first_page: dict[int, int], offset_of: Callable[[Tensor], int]
) -> Array:
    """Return the segments [ITEM_SIZE, num_segments]."""
    begin, end, num_keys, position, causal, kv, pages, bias = zip(*segments, strict=True)
    if any(each is not None for each in bias):
        raise UnsupportedSegment("the Triton kernels do not add a bias to the scores of keys")
    if None in position:
        assert not any(s.causal and s.first_position is None for s in segments)
        position = tuple(NO_POSITION if each is None else each for each in position)
    nothing = [0] * len(segments)
    columns = _columns(
        [0 if each is None else offset_of(each) for each in kv],
        [0 if each is None else each.shape[3] for each in kv],
        [first_page[id(table)] for table in pages],
        begin, end, nothing, num_keys, position, causal, nothing,
    )  # fmt: skip
    columns[_NUM_ROWS] -= columns[_FIRST_ROW]
    return columns


def _num_before(num_rows: Array, rows: Array, parts: Array, row_parts: Array) -> Array:
    """Return the number of partial results that the rows of each tile have of earlier segments.

    `num_rows`: rows of each tile; `rows`: the rows of all tiles; `parts`: the number of partial
    results that each of these gets from its tile.
    """
    by_row = np.argsort(rows, kind="stable")
    before = np.empty_like(rows)
    parts = parts[by_row]
    before[by_row] = parts.cumsum() - parts
    before -= row_parts[rows]
    num_before = before[num_rows.cumsum() - num_rows]
    if not np.array_equal(np.repeat(num_before, num_rows), before):
        raise UnsupportedSegment("segments that more rows share must come first")
    return num_before


def _tiles(segments: Array, tiling: Tiling) -> tuple[Array, NDArray[np.bool_]]:
    """Cut the rows of each segment into tiles [ITEM_SIZE, num_tiles]; say which of them are low.

    Their `end` is the number of the segment's keys that the tile's last row may see.
    """
    is_low = segments[_NUM_ROWS] <= tiling.low_rows
    height = np.where(is_low, tiling.low_rows, tiling.high_rows)
    num_tiles = -(-segments[_NUM_ROWS] // height)
    tiles = segments.repeat(num_tiles, axis=1)
    height = height.repeat(num_tiles)
    skipped = _ordinals(num_tiles) * height
    num_left = tiles[_NUM_ROWS] - skipped
    tiles[_FIRST_ROW] += skipped
    tiles[_NUM_ROWS] = np.minimum(num_left, height)
    tiles[_END] -= tiles[_CAUSAL] * (num_left - tiles[_NUM_ROWS])
    return tiles, is_low.repeat(num_tiles)


def _items(tiles: Array, num_items: Array, keys_per_item: int) -> Array:
    """Cut the keys of each tile into items [ITEM_SIZE, sum(num_items)]."""
    items = tiles.repeat(num_items, axis=1)
    index = _ordinals(num_items)
    items[_BEGIN] = index * keys_per_item
    items[_END] = np.minimum(items[_BEGIN] + keys_per_item, items[_END])
    items[_ORDINAL] += index
    return items


def _columns(*columns: Sequence[int]) -> Array:
    """Return columns as an array [num_columns, num_rows]."""
    return np.fromiter(chain.from_iterable(columns), np.int64).reshape(len(columns), -1)


def _starts(sizes: Iterable[int]) -> Iterator[int]:
    """Return the start offset of each item in a concatenation of items of these sizes."""
    return accumulate(sizes, initial=0)


def _ordinals(counts: Array) -> Array:
    """Count up from 0 for each of `counts`: [2, 3] -> [0, 1, 0, 1, 2]."""
    begins = counts.cumsum() - counts
    return np.arange(counts.sum()) - np.repeat(begins, counts)
