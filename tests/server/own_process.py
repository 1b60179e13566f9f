"""The app around a fake engine, in a process of its own, so that its memory can be measured."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.engine.ipc.messages import EngineInfo

ROOT = Path(__file__).parents[2]
WIDE = EngineInfo(
    model="wide",
    fingerprint="sha256:" + "f" * 64,
    num_layers=32,
    num_kv_heads=8,
    head_dim=64,
    hidden_size=64,
    vocab_size=260,
    dtype="float32",
    device="cpu",
    attention="ref",
    max_model_len=32768,
    max_num_seqs=64,
    eos_token_ids=[257],
)
BYTES_PER_TOKEN = 2 * WIDE.num_layers * WIDE.num_kv_heads * WIDE.head_dim * 4


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    url: str
    pid: int

    def resident_bytes(self) -> int:
        """Bytes of memory that the process has now."""
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """The most that it had since `reset_peak`."""
        return self._status("VmHWM")

    def reset_peak(self) -> int:
        """Begin to measure; return the bytes that the process has now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.resident_bytes()

    def num_files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def _status(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) << 10


@contextmanager
def serve(store: Path, **settings: object) -> Iterator[Served]:
    """Serve from a folder until the block ends."""
    given = {f"FOREWORD_{name.upper()}": str(value) for name, value in settings.items()}
    process_environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | given
    command = [sys.executable, "-m", "tests.server.own_process", str(store)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=process_environment
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        try:
            yield Served(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    """Serve on an ephemeral port, which is printed, until SIGTERM."""
    import torch

    from server.api.http.http_server import HttpServer
    from server.app import create_app
    from server.settings import Settings
    from server.text.tokenizer import Tokenizer
    from tests.server.fakes import FakeEngine, make_transformers_tokenizer
    from tests.server.stores import open_store

    torch.set_num_threads(1)
    store = Path(sys.argv[1])

    async def run() -> None:
        with (
            open_store(store) as stored,
            socket.create_server(("127.0.0.1", 0)) as listener,
        ):
            app = create_app(
                Settings(_cli_parse_args=False, store=store, max_prefix_tokens=30_000),
                *stored,
                FakeEngine(info_or_none=WIDE),
                Tokenizer(make_transformers_tokenizer()),
                "wide",
            )
            async with app.router.lifespan_context(app):
                sys.stdout.write(f"{listener.getsockname()[1]}\n")
                sys.stdout.flush()
                await HttpServer(app, drain_timeout_s=0).serve([listener])

    asyncio.run(run())


if __name__ == "__main__":
    main()
