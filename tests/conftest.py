"""What holds for every test: Triton's interpreter, two processes, figures at the end of a run."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

# Without a CUDA device Triton's kernels run in its interpreter; it must know before it starts.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

LONGEST_FIRST = ("test_exactness.py",)
"""Files that take a minute or so. Two processes end together if the short files come last."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes of pytest-xdist
        ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


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
