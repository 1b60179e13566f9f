"""Where the engine process begins: `python -m server.engine FD PARENT`, started by `child`."""

from __future__ import annotations

import sys

from server.engine.lifeline import end_with_parent


def main(fd: int, parent: int) -> None:
    """`fd` of the socket to the API process, `parent` its process id."""
    end_with_parent(parent)  # before torch is imported, which takes seconds
    from server.engine.process import serve

    serve(fd)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
