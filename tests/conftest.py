"""What holds for every test: Triton's interpreter, two processes, figures at the end of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.running_server import RunningServer, SharedServers

# Without a CUDA device Triton's kernels run in its interpreter; it must know before it starts.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARING = {
    "SmolLM2": (
        "integration/test_exactness.py",
        "integration/test_demo.py",
        "integration/test_structured.py",
        "integration/test_bench.py",
        "clients/console/test_smollm2.py",
    ),
    "small model": (
        "integration/test_hot_swap.py",
        "integration/test_supervision.py",
    ),
}
"""Files whose tests use one server, and run one after the other in one process."""
LONGEST_FIRST = (
    *SHARING["SmolLM2"],
    "integration/test_docs.py",
    "integration/test_openai.py",
    "corpus/test_openapi.py",
    "corpus/test_raw_requests.py",
    "server/test_orphans.py",
    "server/test_start.py",
    "corpus/test_transport.py",
    "server/engine/ipc/test_client.py",
    "server/test_isolation.py",
    "clients/tuner/test_training.py",
    "integration/test_shared_registry.py",
    "integration/test_memory.py",
    *SHARING["small model"],
    "docker/test_read_only_root.py",
    "clients/python/apply/test_served.py",
    "benchmarks/test_gpu.py",
    "server/engine/attention/test_attention.py",
    "clients/tuner/test_served.py",
)
"""Files that take a minute or so. Two processes end together if the short files come last."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes of pytest-xdist
        here = Path(__file__).parent
        ranks = {here / name: rank for rank, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give a process whole files, and all files of a server."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    servers = {f"tests/{name}": server for server, names in SHARING.items() for name in names}

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return servers.get(file, file)

    return ByServer(config, log)


@pytest.fixture(scope="session")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServers]:
    servers = SharedServers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def demo_server(shared_servers: SharedServers) -> RunningServer:
    """The default model, SmolLM2, in float32, in which greedy tokens do not depend on the batch,
    and the demo tasks."""
    return shared_servers.get("default", "--demo", "--dtype", "float32", "--num-threads", "1")


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Notes a line of figures, which is printed at the end of the run."""
    return lambda line: record_property("note", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    notes = [
        str(text)
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, text in report.user_properties
        if name == "note"
    ]
    if notes:
        terminalreporter.section("figures")
        terminalreporter.line("\n".join(notes))
