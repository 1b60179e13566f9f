"""Which version a request is admitted on, and when it is refused."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from prefix_store.errors import NothingActive, UnknownTask, UnknownVersion
from prefix_store.manifest import Profile
from server.api.http.deps import Services
from server.engine.ipc.messages import EngineInfo
from server.errors import (
    BaseModelMismatch,
    Draining,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
)
from server.generation.completion import Completion
from server.generation.prompt import GenerateParams
from server.text.tokenizer import Tokenizer
from tests.server.fakes import INFO, FakeEngine, expected_tokens
from tests.server.generation.admission import admit, push


async def test_a_request_gets_the_tokens_of_its_prefix_and_prompt(
    services: Services, tokenizer: Tokenizer
) -> None:
    digest = await push(services, "x")
    prompt = tokenizer.encode("hi")

    whole = await (await admit(services, "x", max_tokens=5)).collect()

    assert whole.token_ids == expected_tokens(digest, prompt, 5)
    assert whole.text == tokenizer.decode(whole.token_ids)
    assert whole.finish_reason == "length"


async def test_a_version_is_pinned_when_the_request_is_admitted(
    services: Services, tokenizer: Tokenizer, engine: FakeEngine
) -> None:
    engine.delay_s = 0.01
    old = await push(services, "x", seed=1)

    completion = await admit(services, "x", max_tokens=5)
    new = await push(services, "x", seed=2)
    await services.store.delete_task("x")
    whole = await completion.collect()

    assert old != new
    assert completion.target.digest == old
    assert whole.token_ids == expected_tokens(old, tokenizer.encode("hi"), 5)


async def test_unknown_names_versions_and_tasks_without_a_version_are_refused(
    services: Services,
) -> None:
    await push(services, "x")
    await services.store.create_task("empty", Profile())
    asked = GenerateParams(prompt="hi")

    with pytest.raises(UnknownTask):
        await services.router.admit("nope", None, asked)
    with pytest.raises(UnknownTask):
        await services.router.admit("../etc/passwd", None, asked)
    with pytest.raises(UnknownVersion):
        await services.router.admit("x", 2, asked)
    with pytest.raises(NothingActive):
        await services.router.admit("empty", None, asked)
    with pytest.raises(InvalidRequest):
        await services.router.admit(None, 1, asked)


async def test_a_version_of_other_weights_is_refused(
    services: Services, engine: FakeEngine
) -> None:
    await push(services, "x")
    engine.info_or_none = replace_info(fingerprint="sha256:" + "0" * 64)

    with pytest.raises(BaseModelMismatch):
        await admit(services, "x")


def replace_info(**changes: object) -> EngineInfo:
    return msgspec.structs.replace(INFO, **changes)


async def test_a_full_queue_refuses_and_counts_what_is_still_being_prepared(
    services: Services, engine: FakeEngine
) -> None:
    engine.delay_s = 1.0

    results = await asyncio.gather(
        *(admit(services, max_tokens=2) for _ in range(20)), return_exceptions=True
    )

    admitted = [result for result in results if isinstance(result, Completion)]
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert (len(admitted), len(refused)) == (8, 12)
    for completion in admitted:
        completion.close()
    (await admit(services)).close()


async def test_nothing_is_admitted_while_draining_or_without_an_engine(
    services: Services, engine: FakeEngine
) -> None:
    engine.is_dead = True
    with pytest.raises(EngineUnavailable):
        await admit(services)
    engine.info_or_none = None
    with pytest.raises(EngineUnavailable):
        await admit(services)
    services.router.drain()
    with pytest.raises(Draining):
        await admit(services)


async def test_several_prompts_are_admitted_together_or_not_at_all(
    services: Services, engine: FakeEngine
) -> None:
    good, bad = GenerateParams(prompt="a"), GenerateParams(prompt="")

    with pytest.raises(InvalidRequest):
        await services.router.admit_all(None, None, [good, bad])
    with pytest.raises(Overloaded):
        await services.router.admit_all(None, None, [good] * 9)

    assert engine.num_in_flight == 0
