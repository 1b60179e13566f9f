"""Priority of background threads, which read, check and hash prefixes while steps run."""

from __future__ import annotations

import os
import sys
import threading

import torch


def yield_to_steps() -> None:
    """Give the calling thread a low priority and a single core for torch.

    Steps share the cores with it: a step takes milliseconds, and hashing a prefix takes longer.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":  # elsewhere a priority belongs to the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
