"""State of the engine, as its client sees it."""

from __future__ import annotations

from enum import Enum, auto


class EngineState(Enum):
    STARTING = auto()
    """A process loads the model, or one that ended is about to be replaced."""
    READY = auto()
    """A process runs requests. If it ends, it is replaced."""
    DRAINING = auto()
    """A process runs requests. It ends with the last of them, and is not replaced."""
    STOPPED = auto()
    """No process runs requests, and none will."""
