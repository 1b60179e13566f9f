"""Completions on their way out: stop strings, cancellation, failures."""

from __future__ import annotations

import pytest

from server.api.http.deps import Services
from server.errors import (
    StepFailed,
)
from server.text.tokenizer import Tokenizer
from tests.server.fakes import FakeEngine
from tests.server.generation.admission import admit


async def test_a_stop_string_ends_the_sequence_in_the_engine(
    services: Services, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    engine.script = lambda prefix, token_ids: tokenizer.encode("one END two")

    completion = await admit(services, stop=("END",), max_tokens=11)
    whole = await completion.collect()

    assert (whole.text, whole.finish_reason) == ("one ", "stop")
    assert completion.num_completion_tokens == 7
    assert engine.num_cancelled == 1


async def test_a_completion_closed_before_its_end_is_cancelled(
    services: Services, engine: FakeEngine
) -> None:
    engine.delay_s = 0.01
    completion = await admit(services, max_tokens=50)

    completion.close()
    completion.close()

    assert engine.num_cancelled == 1
    assert completion.outcome == "cancelled"


async def test_a_failing_step_fails_its_own_request(services: Services, engine: FakeEngine) -> None:
    engine.fail_after = (2, StepFailed("the step failed"))
    completion = await admit(services, max_tokens=9)

    with pytest.raises(StepFailed):
        await completion.collect()

    assert completion.outcome == "step_failed"
    assert completion.num_completion_tokens == 2
