"""What the OpenAPI document says, schemathesis tries: no 5xx, and bad values are refused."""

from __future__ import annotations

from collections import Counter

import hypothesis
import pytest
import schemathesis
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, response_schema_conformance

from tests.server.live import LiveServer

NUM_EXAMPLES = 20
CHECKS = [not_a_server_error, response_schema_conformance]

Seen = Counter[tuple[str, int]]


def try_all(url: str, mode: GenerationMode) -> Seen:
    """Call every operation of the document some times; how often each gave which status."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    checks = CHECKS + ([negative_data_rejection] if mode is GenerationMode.NEGATIVE else [])
    seen: Seen = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()

        @hypothesis.settings(
            max_examples=NUM_EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def call(case: Case) -> None:
            response = case.call()
            seen[case.operation.label, response.status_code] += 1
            case.validate_response(response, checks=checks)

        call()
    return seen


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_whatever_the_document_allows_or_not_is_answered(
    live: LiveServer, mode: GenerationMode, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = try_all(live.url, mode)
    print(seen)
