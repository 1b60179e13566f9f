"""Triton kernels of the fused modules. They compute in float32 and round once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm(
    x,  # [A, B, SIZE], any strides but the last
    weight,  # [SIZE]
    out,  # [A, B, SIZE]
    outer_stride,
    inner_stride,
    num_inner,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    at = row // num_inner * outer_stride + row % num_inner * inner_stride + i
    values = tl.load(x + at, mask=i < SIZE, other=0).to(tl.float32)
    scale = tl.load(weight + i, mask=i < SIZE, other=0).to(tl.float32) + WEIGHT_OFFSET
    values *= tl.rsqrt(tl.sum(values * values, 0) / SIZE + eps) * scale
    tl.store(out + row * SIZE + i, values.to(out.dtype.element_ty), mask=i < SIZE)


@triton.jit
def gate(
    gate_up,  # [T, 2 * SIZE]
    out,  # [T, SIZE]
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_GELU: tl.constexpr,  # the tanh form; else SiLU
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = gate_up + row * 2 * SIZE + i
    x = tl.load(at, mask=i < SIZE, other=0).to(tl.float32)
    up = tl.load(at + SIZE, mask=i < SIZE, other=0).to(tl.float32)
    z = x
    if IS_GELU:  # (1 + tanh(z / 2)) / 2 is a sigmoid
        z = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    y = x * tl.sigmoid(z) * up
    tl.store(out + row * SIZE + i, y.to(out.dtype.element_ty), mask=i < SIZE)


@triton.jit
def rotate(
    x,  # [NUM_HEADS, T, 2 * HALF], any strides but the last
    cos,  # [T, 2 * HALF]
    sin,
    out,  # [T, NUM_HEADS, 2 * HALF]
    head_stride,
    row_stride,
    NUM_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rotary embedding of one row: dimension i is rotated with dimension i + HALF."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_H)[:, None]
    i = tl.arange(0, BLOCK_D)
    angle = row * 2 * HALF + i
    cos_1 = tl.load(cos + angle, mask=i < HALF, other=0).to(tl.float32)[None, :]
    cos_2 = tl.load(cos + angle + HALF, mask=i < HALF, other=0).to(tl.float32)[None, :]
    sin_1 = tl.load(sin + angle, mask=i < HALF, other=0).to(tl.float32)[None, :]
    sin_2 = tl.load(sin + angle + HALF, mask=i < HALF, other=0).to(tl.float32)[None, :]
    mask = (head < NUM_HEADS) & (i < HALF)[None, :]
    at = x + head * head_stride + row * row_stride + i[None, :]
    x_1 = tl.load(at, mask=mask, other=0).to(tl.float32)
    x_2 = tl.load(at + HALF, mask=mask, other=0).to(tl.float32)
    to = out + (row * NUM_HEADS + head) * 2 * HALF + i[None, :]
    tl.store(to, (x_1 * cos_1 - x_2 * sin_1).to(out.dtype.element_ty), mask=mask)
    tl.store(to + HALF, (x_2 * cos_2 + x_1 * sin_2).to(out.dtype.element_ty), mask=mask)
