"""Work beside the steps: reading, checking and hashing prefixes, on threads of its own."""

from __future__ import annotations

import os
import sys
import threading

import torch


def yield_to_steps() -> None:
    """The thread that calls this gets what processor time others leave, and one core of it.

    Steps share the cores with it: a whole prefix is hashed while each of them takes milliseconds.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":  # elsewhere a priority belongs to the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
