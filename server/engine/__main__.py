"""Entry point of the engine process: `python -m server.engine FD PARENT`, run by `ipc.child`."""

from __future__ import annotations

import sys

from server.engine.lifeline import end_before_parent, end_with_parent


def main(fd: int, parent: int) -> None:
    """Serve the socket `fd` to the API process, whose process id is `parent`."""
    end_with_parent(parent)  # before torch is imported, which takes seconds
    end_before_parent()
    from server.engine.process import serve

    serve(fd)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
