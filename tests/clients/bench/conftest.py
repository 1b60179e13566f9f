from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from tests.clients.bench.small_server import SmallServer


@pytest.fixture
def small() -> Iterator[SmallServer]:
    """On a real socket, in a thread."""
    server = SmallServer()
    config = uvicorn.Config(server.app(), log_level="warning", ws="none", lifespan="off")
    running = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline_s = time.monotonic() + 10
        while not running.started and time.monotonic() < deadline_s:
            time.sleep(0.01)
        yield server
        running.should_exit = True
        running.force_exit = True
        thread.join(10)
    assert not thread.is_alive()
