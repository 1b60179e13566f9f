"""The `foreword` command on a terminal and in a pipe: streams, interrupts, lost readers."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from foreword_client.cli.output import printable, size
from tests.clients.python.fake_foreword import FakeForeword


def test_a_model_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2J\x9b\x07b\r\n\tc") == "a\ufffd[2J\ufffd\ufffdb\ufffd\n\tc"
    assert [size(n) for n in (0, 999, 1500, 2_500_000, 3 * 10**9)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "3.0 GB",
    ]


def _start(server: FakeForeword, *args: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"FOREWORD_URL": server.url}
    # A background job of a script inherits that interrupts are ignored; a terminal's does not.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    main = f"{heard}; from foreword_client.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", main, *args], env=environment, **options)


def test_a_terminal_gets_a_stream_in_colour_and_an_interrupt_cancels_it(
    server: FakeForeword,
) -> None:
    ours, theirs = pty.openpty()
    process = _start(server, "generate", "hi", "-t", "endless", stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = bytearray()
    reader = threading.Thread(target=_read_until_closed, args=(ours, seen))
    reader.start()
    try:
        deadline_s = time.monotonic() + 20
        while b"three" not in seen and time.monotonic() < deadline_s:
            time.sleep(0.01)

        process.send_signal(signal.SIGINT)

        assert process.wait(10) == 130
        assert server.left.wait(5)
    finally:
        process.kill()
        process.wait(10)
        reader.join(10)
        os.close(ours)
    assert b"three" in seen
    assert b"Traceback" not in seen


def _read_until_closed(terminal: int, seen: bytearray) -> None:
    """Without a reader a terminal fills up, and its writer waits for ever, at its end too."""
    with suppress(OSError):  # that is how a terminal says that its other side is closed
        while data := os.read(terminal, 1000):
            seen += data


def test_a_reader_that_stops_reading_gets_no_traceback(server: FakeForeword) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with _start(server, "generate", "hi", "-t", "endless", "--stream", **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == b"one t"
        process.stdout.close()

        assert process.wait(10) == 1
        assert process.stderr.read() == b""
    assert server.left.wait(5)
