"""How many sequences and tokens may run or wait, in total and of one key."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime

import msgspec
import pytest

from prefix_store.registry.keys import Key
from prefix_store.sampling import Rank
from server.api.http.deps import Services
from server.errors import KeyLimitReached, Overloaded
from server.generation.admission import Limits
from server.generation.completion import Completion
from server.generation.constraint import Constraint
from server.generation.prompt import GenerateParams
from server.generation.sampling import RequestOptions
from server.settings import Settings
from tests.server.fakes import INFO, FakeEngine

ROOM = 8
"""Sequences of all keys, by the settings of these tests; half of them are for one key."""


def make_key(id: str, max_concurrency: int | None = None) -> Key:
    return Key(
        name=id, scopes=("generate",), id=id, created_at=datetime.now(UTC), created_by=None,
        revoked_at=None, max_concurrency=max_concurrency,
    )  # fmt: skip


def asking(max_tokens: int = 100) -> GenerateParams:
    return GenerateParams(prompt="hi", options=RequestOptions(max_tokens=max_tokens))


def ranking(num_texts: int) -> GenerateParams:
    texts = tuple(f"{i:02}" for i in range(num_texts))
    return GenerateParams(prompt="hi", constraint=Constraint(rank=Rank(texts=texts)))


@pytest.fixture
def slow(engine: FakeEngine) -> FakeEngine:
    engine.delay_s = 0.05
    return engine


async def admit(services: Services, key: Key | None, *params: GenerateParams) -> list[Completion]:
    return await services.router.admit_all(None, None, params, client=key)


def close(completions: list[Completion]) -> None:
    for completion in completions:
        completion.close()


async def test_a_key_without_a_limit_takes_half_of_the_room_at_most(
    services: Services, slow: FakeEngine
) -> None:
    one, other = make_key("one"), make_key("other")
    running = await admit(services, one, *[asking()] * (ROOM // 2))

    with pytest.raises(KeyLimitReached, match="allows 4 sequences at once, 4 are running"):
        await admit(services, one, asking())
    running += await admit(services, other, *[asking()] * (ROOM // 2))
    with pytest.raises(Overloaded):
        await admit(services, make_key("third"), asking())

    close(running)
    close(await admit(services, one, *[asking()] * (ROOM // 2)))


async def test_one_request_counts_as_many_as_it_has_sequences(
    services: Services, slow: FakeEngine
) -> None:
    key = make_key("one", max_concurrency=3)

    for params in ([asking()] * 4, [ranking(4)]):
        with pytest.raises(KeyLimitReached, match="this request has 4"):
            await admit(services, key, *params)
    running = await admit(services, key, ranking(2), asking())
    with pytest.raises(KeyLimitReached):
        await admit(services, key, asking())

    close(running)
    close(await admit(services, key, *[asking()] * 3))


async def test_texts_that_the_engine_does_not_have_yet_count(
    services: Services, slow: FakeEngine
) -> None:
    [ranked] = await admit(services, None, ranking(6))

    with pytest.raises(Overloaded, match="6 requests"):
        await admit(services, None, *[asking()] * 3)
    collecting = asyncio.create_task(ranked.collect())
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await admit(services, None, *[asking()] * 3)
    await collecting

    close(await admit(services, None, *[asking()] * ROOM))


async def test_a_ranking_that_is_lost_unread_leaves_nothing_counted(services: Services) -> None:
    await admit(services, make_key("one"), ranking(4))
    gc.collect()

    close(await admit(services, make_key("one"), *[asking()] * 4))


async def test_a_sequence_counts_until_the_engine_has_ended_it(
    services: Services, engine: FakeEngine
) -> None:
    key = make_key("one", max_concurrency=1)
    [unread] = await admit(services, key, asking(max_tokens=1))
    while engine.num_in_flight:
        await asyncio.sleep(0)

    [running] = await admit(services, key, asking())
    await asyncio.sleep(0)
    engine.is_dead = True
    await engine.stop(0)
    await asyncio.sleep(0.01)
    engine.is_dead = False

    close(await admit(services, key, asking()))
    close([unread, running])


async def test_a_submission_that_fails_leaves_nothing_counted(
    services: Services, engine: FakeEngine
) -> None:
    for params in ([asking()] * 3, [ranking(3)]):
        engine.is_dead = True
        with pytest.raises(Exception, match="starting"):
            await (await admit(services, make_key("one"), *params))[0].collect()
        engine.is_dead = False

    close(await admit(services, make_key("one"), *[asking()] * 4))


async def test_tokens_are_limited_by_the_pool(services: Services, slow: FakeEngine) -> None:
    """The pool has 1024 tokens and 4 places: 2048 for the 8 sequences that fit into the room."""
    slow.info_or_none = msgspec.structs.replace(INFO, kv_pool_tokens=256)  # 512 in total
    one, other = make_key("one"), make_key("other")
    running = await admit(services, one, asking(200))

    with pytest.raises(KeyLimitReached, match="202 of at most 256 tokens of the key"):
        await admit(services, one, asking(60))
    running += await admit(services, other, asking(200))
    with pytest.raises(Overloaded, match="404 of at most 512 tokens"):
        await admit(services, make_key("third"), asking(200))
    running += await admit(services, make_key("third"), asking(100))

    close(running)
    close(await admit(services, one, *[asking(200)] * 4))  # alone it fits, whatever its size


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({}, Limits(320, 160, None)),
        ({"max_waiting": 0, "max_num_seqs": 1}, Limits(1, 1, None)),
        ({"max_concurrency_per_key": 1000, "max_tokens_in_flight": 9}, Limits(320, 320, 9)),
    ],
)
def test_settings_become_limits(settings: dict[str, int], limits: Limits) -> None:
    assert Limits.of(Settings(_cli_parse_args=False, **settings)) == limits  # type: ignore[arg-type]
