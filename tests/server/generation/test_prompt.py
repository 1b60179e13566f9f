"""A request becomes token ids and sampling parameters by its version, or is refused."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from prefix_store.definition import Defaults
from prefix_store.manifest import Profile, TaskLimits
from prefix_store.sampling import Rank
from server.api.http.deps import Services
from server.engine.params import BASE_MODEL, COMPILES
from server.errors import (
    InvalidRequest,
    PromptTooLong,
    TemplateMismatch,
)
from server.generation.constraint import Constraint
from server.text.tokenizer import Tokenizer
from tests.server.fakes import INFO, FakeEngine
from tests.server.generation.admission import admit, push


async def test_the_body_wins_over_the_definition_and_that_over_the_server(
    services: Services, engine: FakeEngine
) -> None:
    defaults = Defaults(max_tokens=9, temperature=0.5, top_k=3, seed=11)
    await services.store.create_task("x", Profile(defaults=defaults))
    await push(services, "x")

    await (await admit(services, "x", temperature=0.25, ignore_eos=True)).collect()

    sampling = engine.submitted[-1][2]
    assert (sampling.max_tokens, sampling.top_k, sampling.seed) == (9, 3, 11)
    assert (sampling.temperature, sampling.top_p, sampling.ignore_eos) == (0.25, 1.0, True)


async def test_by_default_the_server_is_greedy_and_draws_a_seed(
    services: Services, engine: FakeEngine
) -> None:
    for _ in range(2):
        await (await admit(services)).collect()

    first, second = (sampling for _, _, sampling in engine.submitted)
    assert (first.temperature, first.top_p, first.top_k, first.max_tokens) == (0.0, 1.0, 0, 64)
    assert first.seed != second.seed


async def test_a_generation_config_holds_for_the_base_model_alone(
    services: Services, engine: FakeEngine
) -> None:
    engine.info_or_none = replace(INFO, generation_defaults={"temperature": 0.6, "max_tokens": 9})
    await push(services, "x")

    await (await admit(services)).collect()
    await (await admit(services, temperature=0.25)).collect()
    await (await admit(services, "x")).collect()
    engine.info_or_none = replace(INFO, generation_defaults={"temperature": 3, "max_tokens": 9})
    await (await admit(services)).collect()  # out of range: ignored, with a warning
    services.router._reads_generation_config = False
    await (await admit(services)).collect()

    sampling = [params for _, _, params in engine.submitted]
    found = [(params.temperature, params.max_tokens) for params in sampling]
    assert found == [(0.6, 9), (0.25, 9), *3 * [(0.0, 64)]]


async def test_prefix_prompt_and_completion_must_fit_the_context(
    services: Services,
) -> None:
    await push(services, "x")
    room = INFO.max_model_len - 3 - 2

    completion = await admit(services, "x", max_tokens=room)
    completion.close()
    with pytest.raises(PromptTooLong, match="3 prefix tokens"):
        await admit(services, "x", max_tokens=room + 1)


async def test_a_default_max_tokens_is_cut_to_the_room_left(
    services: Services, engine: FakeEngine
) -> None:
    prompt = "x" * (INFO.max_model_len - 10)

    await (await admit(services, prompt=prompt)).collect()

    assert engine.submitted[-1][2].max_tokens == 10
    with pytest.raises(PromptTooLong):
        await admit(services, prompt="x" * INFO.max_model_len)


async def test_a_task_has_limits_of_its_own(services: Services, engine: FakeEngine) -> None:
    await push(services, "x")
    await services.store.set_profile(
        "x", Profile(limits=TaskLimits(max_tokens=5, max_prompt_tokens=4))
    )

    await (await admit(services, "x")).collect()

    assert engine.submitted[-1][2].max_tokens == 5
    with pytest.raises(InvalidRequest, match="allows 5"):
        await admit(services, "x", max_tokens=6)
    with pytest.raises(InvalidRequest, match="takes 4"):
        await admit(services, "x", prompt="12345")


async def test_a_request_gets_its_tasks_scheduling_params(
    services: Services, engine: FakeEngine
) -> None:
    for task in ("x", "y"):
        await push(services, task)
    await services.store.set_profile("x", Profile(limits=TaskLimits(max_concurrency=3), weight=2.5))

    for task in ("x", None, "y", "x"):
        await (await admit(services, task, priority=-1)).collect()

    first, base, other, again = engine.shares
    assert (first.weight, first.max_concurrency, first.priority) == (2.5, 3, -1)
    assert (other.weight, other.max_concurrency) == (1.0, None)
    assert first == again
    assert base.queue == BASE_MODEL
    assert len({BASE_MODEL, COMPILES, first.queue, other.queue}) == 4


async def test_token_ids_are_taken_as_they_are_if_the_model_has_them(
    services: Services, engine: FakeEngine
) -> None:
    await (await admit(services, prompt=[1, 259, 3])).collect()

    assert engine.submitted[-1][1] == [1, 259, 3]
    with pytest.raises(InvalidRequest, match="260"):
        await admit(services, prompt=[260])
    with pytest.raises(InvalidRequest, match="no tokens"):
        await admit(services, prompt="")


async def test_a_text_with_a_token_that_the_model_has_no_embedding_for_is_refused(
    services: Services, engine: FakeEngine
) -> None:
    engine.info_or_none = replace(INFO, vocab_size=150)
    beyond: list[dict[str, object]] = [
        {"prompt": "z z"},
        {"prompt": "z", "constraint": Constraint(rank=Rank(texts=("z", " ")))},
        {"prompt": None, "messages": [{"role": "user", "content": "z"}]},
    ]
    for asked in beyond:
        with pytest.raises(InvalidRequest, match="beyond the model's vocabulary of 150"):
            await admit(services, **asked)

    await (await admit(services, prompt="z")).collect()

    assert len(engine.submitted) == 1


async def test_a_template_a_chat_and_fields_make_the_prompt(
    services: Services, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    profile = Profile(template="{prompt} in {language}:", chat=True)
    await services.store.create_task("x", profile)
    await push(services, "x")

    await (await admit(services, "x", fields={"language": "Thai"})).collect()

    said = tokenizer.decode(engine.submitted[-1][1])
    assert said == "system\nBe kind.\nuser\nhi in Thai:\nassistant\n"


@pytest.mark.parametrize(
    "params",
    [
        {"fields": {"a": "b"}},
        {"prompt": [1], "fields": {"a": "b"}},
        {"prompt": None, "messages": [{"role": "user", "content": "x"}], "fields": {"a": "b"}},
    ],
)
async def test_fields_without_a_template_are_refused(
    services: Services, params: dict[str, object]
) -> None:
    with pytest.raises(TemplateMismatch):
        await admit(services, **params)
