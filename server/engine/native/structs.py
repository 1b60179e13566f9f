"""The structs of the C interface, field by field as structs.h declares them."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_void_p


class CWeight(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p), ("bias", c_void_p), ("scales", c_void_p), ("n", c_int32), ("k", c_int32)
    ]  # fmt: skip


class CLayer(ctypes.Structure):
    _fields_ = [
        ("qkv", CWeight), ("out", CWeight), ("gate_up", CWeight), ("down", CWeight),
        ("input_norm", c_void_p), ("post_norm", c_void_p),
        ("query_norm", c_void_p), ("key_norm", c_void_p),
        ("window", c_int32),
    ]  # fmt: skip


class CModel(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(CLayer)),
        ("num_layers", c_int32), ("hidden_size", c_int32), ("num_heads", c_int32),
        ("num_kv_heads", c_int32), ("head_dim", c_int32), ("intermediate_size", c_int32),
        ("norm_eps", c_float), ("scale", c_float),
    ]  # fmt: skip


class CStep(ctypes.Structure):
    _fields_ = [
        ("num_rows", c_int32), ("num_spans", c_int32), ("num_groups", c_int32),
        ("page_size", c_int32),
        ("spans", c_void_p), ("groups", c_void_p), ("pages", c_void_p), ("pool", c_void_p),
        ("cos", c_void_p), ("sin", c_void_p), ("hidden", c_void_p), ("result", c_void_p),
    ]  # fmt: skip


class CSpan(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("row", "num_rows", "start", "first_page")]


class CGroup(ctypes.Structure):
    _fields_ = [
        ("prefix", c_void_p),
        ("num_tokens", c_int32), ("num_slots", c_int32),
        ("first_span", c_int32), ("last_span", c_int32),
    ]  # fmt: skip
