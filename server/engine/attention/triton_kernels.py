"""The Triton kernels: write keys and values, attend to the work list, merge the partial results.

They read all counts from device memory, so one launch fits every step. Scores and log-sum-exps are
kept in base 2: `exp2` is the instruction that the device has.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.engine.attention import work_list

ITEM_SIZE = tl.constexpr(work_list.ITEM_SIZE)


@triton.jit(do_not_specialize=["layer"])
def write_kv(
    key,  # [num_kv_heads, T, head_dim], any strides but the last
    value,
    pages,  # [num_pages, num_layers, 2, num_kv_heads, page_size, head_dim]
    row_slots,  # [T]; page * page_size + slot, or -1: do not write
    key_head_stride,
    key_row_stride,
    value_head_stride,
    value_row_stride,
    page_stride,
    layer,
    NUM_KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the new keys and values of one layer. One program per row."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_slots + row).to(tl.int64)
    head = tl.arange(0, BLOCK_H)[:, None]
    dim = tl.arange(0, BLOCK_D)[None, :]
    mask = (head < NUM_KV_HEADS) & (dim < HEAD_DIM) & (slot >= 0)
    k = tl.load(key + head * key_head_stride + row * key_row_stride + dim, mask=mask)
    v = tl.load(value + head * value_head_stride + row * value_row_stride + dim, mask=mask)
    layer_size = 2 * NUM_KV_HEADS * PAGE_SIZE * HEAD_DIM
    to = pages + slot // PAGE_SIZE * page_stride + layer.to(tl.int64) * layer_size
    to += (head * PAGE_SIZE + slot % PAGE_SIZE) * HEAD_DIM + dim
    tl.store(to, k, mask=mask)
    tl.store(to + NUM_KV_HEADS * PAGE_SIZE * HEAD_DIM, v, mask=mask)


@triton.jit(do_not_specialize=["layer"])
def attend_items(
    query,  # [num_heads, T, head_dim]
    pages,  # [num_pages, num_layers, 2, num_kv_heads, page_size, head_dim]
    items,  # [num_items, ITEM_SIZE]; see `work_list`, as for the next arguments
    item_bounds,
    page_list,
    row_positions,
    row_parts,
    part_out,  # [num_parts, num_heads, head_dim], float32
    part_lse,  # [num_parts, num_heads], float32
    head_stride,
    row_stride,
    page_stride,
    layer,
    score_scale,  # base 2, unless there is a soft cap
    HIGH: tl.constexpr,  # 0: the items of low tiles, 1: those of high tiles
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of one KV head; they share a tile
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,  # sliding window in tokens; 0: none
    SOFTCAP: tl.constexpr,  # 0: none
    ALIGNMENT: tl.constexpr,  # of prefix offsets, in elements
):
    """Compute the partial results of the listed items, with a grid that does not depend on them.

    An item is some rows times a range of one segment. A segment is a prefix, contiguous and
    anywhere on the device, or a list of pages of the pool. Both are addressed relative to the
    pool; a prefix is read as pages that follow one another in memory.

    The softmax is computed in one pass: `top` is the highest score so far and `total` the sum of
    the weights relative to it. Both, and `acc`, are scaled down when `top` rises.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    kv_head = tl.program_id(1)
    first = tl.load(item_bounds + HIGH)
    last = tl.load(item_bounds + HIGH + 1)
    m = tl.arange(0, BLOCK_M)
    dim = tl.arange(0, BLOCK_D)
    head = kv_head * GROUP + m % GROUP
    for i in range(first + tl.program_id(0), last, tl.num_programs(0)):
        item = items + i * ITEM_SIZE
        offset = tl.multiple_of(tl.load(item), ALIGNMENT)
        length = tl.load(item + 1)
        first_page = tl.load(item + 2)
        first_row = tl.load(item + 3).to(tl.int32)
        num_rows = tl.load(item + 4).to(tl.int32)
        begin = tl.load(item + 5).to(tl.int32)
        end = tl.load(item + 6).to(tl.int32)
        first_position = tl.load(item + 7).to(tl.int32)
        causal = tl.load(item + 8) != 0
        ordinal = tl.load(item + 9).to(tl.int32)

        is_paged = length == 0
        stride = tl.where(is_paged, page_stride, PAGE_SIZE * HEAD_DIM)
        head_size = tl.where(is_paged, PAGE_SIZE, length) * HEAD_DIM
        keys = pages + offset + (layer.to(tl.int64) * 2 * NUM_KV_HEADS + kv_head) * head_size
        values = keys + NUM_KV_HEADS * head_size

        row = first_row + m // GROUP
        row_mask = (m // GROUP < num_rows) & (m < BLOCK_M // GROUP * GROUP)
        position = tl.load(row_positions + row, mask=row_mask, other=0)
        q_at = query + head[:, None] * head_stride + row[:, None] * row_stride + dim[None, :]
        q = tl.load(q_at, mask=row_mask[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
        if WINDOW > 0:  # skip the keys before the earliest row's window
            earliest = tl.min(tl.where(row_mask, position, 2147483647), 0)
            begin = tl.maximum(begin, earliest - WINDOW + 1 - first_position)

        top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for n in range(begin, end, BLOCK_N):
            j = n + tl.arange(0, BLOCK_N)
            page_mask = is_paged & (j < end)
            page = tl.load(page_list + first_page + j // PAGE_SIZE, mask=page_mask, other=0)
            page = tl.where(is_paged, page, j // PAGE_SIZE).to(tl.int64)
            at = page * stride + j % PAGE_SIZE * HEAD_DIM
            k_mask = (j < end)[None, :] & (dim < HEAD_DIM)[:, None]
            k = tl.load(keys + at[None, :] + dim[:, None], mask=k_mask, other=0.0)
            score = tl.dot(q, k, input_precision="ieee") * score_scale
            if SOFTCAP > 0.0:
                score = SOFTCAP * LOG2E * (1 - 2 / (tl.exp2(2 * LOG2E / SOFTCAP * score) + 1))
            distance = position[:, None] - (first_position + j)[None, :]
            visible = row_mask[:, None] & (j < end)[None, :] & ((distance >= 0) | (not causal))
            if WINDOW > 0:
                visible = visible & (distance < WINDOW)
            score = tl.where(visible, score, -float("inf"))
            new_top = tl.maximum(top, tl.max(score, 1))
            base = tl.where(new_top == -float("inf"), 0.0, new_top)
            weight = tl.exp2(score - base[:, None])
            fade = tl.exp2(top - base)
            v_mask = (j < end)[:, None] & (dim < HEAD_DIM)[None, :]
            v = tl.load(values + at[:, None] + dim[None, :], mask=v_mask, other=0.0)
            acc = acc * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
            total = total * fade + tl.sum(weight, 1)
            top = new_top

        some = total > 0
        acc = acc * tl.where(some, 1 / tl.where(some, total, 1), 0)[:, None]
        lse = tl.where(some, top + tl.log2(tl.where(some, total, 1)), -float("inf"))
        part = tl.load(row_parts + row, mask=row_mask, other=0) + ordinal
        at = part.to(tl.int64) * NUM_KV_HEADS * GROUP + head
        out_mask = row_mask[:, None] & (dim < HEAD_DIM)[None, :]
        tl.store(part_out + at[:, None] * HEAD_DIM + dim[None, :], acc, mask=out_mask)
        tl.store(part_lse + at, lse, mask=row_mask)


@triton.jit
def merge_parts(
    part_out,  # [num_parts, num_heads, head_dim], float32
    part_lse,  # [num_parts, num_heads], float32
    row_parts,  # [T + 1]
    sinks,  # [num_heads]; not read unless HAS_SINKS
    out,  # [T, num_heads, head_dim]
    HAS_SINKS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Merge a row's partial results by log-sum-exp. One program per row and head.

    A sink, a key without a value, is added here, so that it counts once per row and head.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    row = tl.program_id(0)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    dim = tl.arange(0, BLOCK_D)
    top = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0, tl.float32)
    if HAS_SINKS:
        top = tl.load(sinks + head).to(tl.float32) * LOG2E
        total = tl.full((), 1, tl.float32)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    end = tl.load(row_parts + row + 1)
    for p in range(tl.load(row_parts + row), end, BLOCK_P):
        part = p + tl.arange(0, BLOCK_P)
        at = part.to(tl.int64) * num_heads + head
        lse = tl.load(part_lse + at, mask=part < end, other=-float("inf"))
        mask = (part < end)[:, None] & (dim < HEAD_DIM)[None, :]
        part_acc = tl.load(part_out + at[:, None] * HEAD_DIM + dim[None, :], mask=mask, other=0.0)
        new_top = tl.maximum(top, tl.max(lse, 0))
        base = tl.where(new_top == -float("inf"), 0.0, new_top)
        weight = tl.exp2(lse - base)
        fade = tl.exp2(top - base)
        acc = acc * fade + tl.sum(weight[:, None] * part_acc, 0)
        total = total * fade + tl.sum(weight, 0)
        top = new_top
    acc = acc / tl.where(total > 0, total, 1.0)
    at = (row.to(tl.int64) * num_heads + head) * HEAD_DIM + dim
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=dim < HEAD_DIM)
