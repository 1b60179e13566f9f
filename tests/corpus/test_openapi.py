"""What the OpenAPI document says, schemathesis tries: no 5xx, and bad values are refused."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import hypothesis
import pytest
import schemathesis
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, response_schema_conformance

from tests.corpus.fake_server import FakeServer, fake_server
from tests.corpus.test_raw_requests import setup

NUM_EXAMPLES = int(os.environ.get("NUM_EXAMPLES", "10"))
CHECKS = [not_a_server_error, response_schema_conformance]

ActivationSeen = Counter[tuple[str, int]]


def try_all(url: str, mode: GenerationMode) -> ActivationSeen:
    """Call every operation of the document some times; how often each gave which status."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    checks = CHECKS + ([negative_data_rejection] if mode is GenerationMode.NEGATIVE else [])
    seen: ActivationSeen = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        is_right = mode is GenerationMode.POSITIVE and "{task}" in operation.path
        known = {"path_parameters": {"task": "x"}} if is_right else {}
        setup(url)  # an operation before may have deleted it

        @hypothesis.settings(
            max_examples=NUM_EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode, **known))
        def call(case: Case) -> None:
            response = case.call()
            seen[case.operation.label, response.status_code] += 1
            is_too_large = response.status_code == 413  # refused before anything else is looked at
            case.validate_response(response, checks=CHECKS if is_too_large else checks)

        with suppress(hypothesis.errors.Unsatisfiable):  # an operation that takes no values
            call()
    return seen


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with fake_server(tmp_path_factory.mktemp("openapi")) as running:
        yield running


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_whatever_the_document_allows_or_not_is_answered(
    mode: GenerationMode, server: FakeServer, note: Callable[[str], None]
) -> None:
    started_s = time.monotonic()
    seen = try_all(server.url, mode)
    seconds = time.monotonic() - started_s
    each = Counter(status for (_, status), count in seen.items() for _ in range(count))
    num_operations = len({label for label, _ in seen})
    note(
        f"schemathesis, {mode.value} values: {seen.total()} calls of {num_operations} "
        f"operations in {seconds:.0f} s: {dict(sorted(each.items()))}"
    )

    assert server.tracebacks == []
    assert num_operations >= 20
