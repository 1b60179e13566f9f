"""A prefix in memory: its keys and values, its state, and the result of a load."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from torch import Tensor

from prefix_store.digest import Digest


@dataclass(frozen=True, slots=True)
class ResidentPrefix:
    """A prefix in host or device memory, in the layout that attention reads."""

    kv: Tensor
    """[num_layers, 2 (keys, values), num_kv_heads, L, head_dim], serving dtype.

    For the compiled layers, L is rounded up and the elements are in an order of their own.
    """
    position_offset: int
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        return self.kv.numel() * self.kv.itemsize


class PrefixState(Enum):
    """Where a prefix is on its way from disk to the device."""

    DISK = auto()
    """Requested, but not on the device: waits for a loader thread or for device memory."""
    LOADING = auto()
    """Being read by a loader thread."""
    COPYING = auto()
    """Being copied to the device, where its memory is reserved."""
    DEVICE = auto()
    """Resident: on the device, complete."""
    FAILED = auto()
    """The load failed; `PrefixEntry.error` says why."""


@dataclass(slots=True, eq=False)
class PrefixEntry:
    """State of a prefix that is requested or resident."""

    state: PrefixState = PrefixState.DISK
    num_refs: int = 0
    prefix: ResidentPrefix | None = None
    error: str = ""
    num_bytes: int = 0
    """Size on the device; 0 until it was read."""
    requested_s: float = 0.0
    """Time of the first of the current references."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Result of a read or a copy, put into the step loop's inbox. `prefix` is None on an error."""

    digest: Digest
    prefix: ResidentPrefix | None
    error: str = ""
    on_device: bool = False
    """Whether it was copied to the device, rather than read into host memory."""
