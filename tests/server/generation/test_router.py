from __future__ import annotations

import asyncio

import msgspec
import pytest
from msgspec.structs import replace

from prefix_store import artifact
from prefix_store.digest import Digest
from prefix_store.errors import NothingActive, UnknownTask, UnknownVersion
from prefix_store.manifest import Defaults, Limits, Profile
from prefix_store.sampling import Rank
from server.api.http.deps import Services
from server.engine.ipc.messages import EngineInfo
from server.engine.params import BASE_MODEL, COMPILES
from server.errors import (
    BaseModelMismatch,
    Draining,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    StepFailed,
    TemplateMismatch,
)
from server.generation.completion import Completion
from server.generation.constraint import Constraint
from server.generation.prompt import GenerateParams
from server.generation.sampling import RequestOptions
from server.text.tokenizer import Tokenizer
from tests.server.fakes import INFO, FakeEngine, expected_tokens, make_prefix

SAFETENSORS = "application/vnd.safetensors"


async def push(services: Services, task: str, seed: int = 0) -> Digest:
    body = artifact.dump(make_prefix(seed))
    pushed = await services.uploads.push(task, body, SAFETENSORS, activate=True, create=True)
    return Digest(pushed.manifest.digest)


async def admit(services: Services, task: str | None = None, **params: object) -> Completion:
    options = {name: params.pop(name) for name in RequestOptions.model_fields if name in params}
    asked = GenerateParams(
        **({"prompt": "hi", "options": RequestOptions.model_validate(options)} | params)  # type: ignore[arg-type]
    )
    return await services.router.admit(task, None, asked)


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


async def test_the_body_wins_over_the_profile_and_the_profile_over_the_server(
    services: Services, engine: FakeEngine
) -> None:
    await push(services, "x")
    defaults = Defaults(max_tokens=9, temperature=0.5, top_k=3, seed=11)
    await services.store.set_profile("x", Profile(defaults=defaults))

    await (await admit(services, "x", temperature=0.25, ignore_eos=True)).collect()

    sampling = engine.submitted[-1][2]
    assert (sampling.max_tokens, sampling.top_k, sampling.seed) == (9, 3, 11)
    assert (sampling.temperature, sampling.top_p, sampling.ignore_eos) == (0.25, 1.0, True)


async def test_without_a_word_the_server_is_greedy_and_draws_a_seed(
    services: Services, engine: FakeEngine
) -> None:
    for _ in range(2):
        await (await admit(services)).collect()

    first, second = (sampling for _, _, sampling in engine.submitted)
    assert (first.temperature, first.top_p, first.top_k, first.max_tokens) == (0.0, 1.0, 0, 64)
    assert first.seed != second.seed


async def test_the_context_holds_prefix_prompt_and_completion_and_not_one_more(
    services: Services,
) -> None:
    await push(services, "x")
    room = INFO.max_model_len - 3 - 2

    completion = await admit(services, "x", max_tokens=room)
    completion.close()
    with pytest.raises(PromptTooLong, match="3 prefix tokens"):
        await admit(services, "x", max_tokens=room + 1)


async def test_a_default_is_cut_to_what_the_context_leaves(
    services: Services, engine: FakeEngine
) -> None:
    prompt = "x" * (INFO.max_model_len - 10)

    await (await admit(services, prompt=prompt)).collect()

    assert engine.submitted[-1][2].max_tokens == 10
    with pytest.raises(PromptTooLong):
        await admit(services, prompt="x" * INFO.max_model_len)


async def test_a_task_has_limits_of_its_own(services: Services, engine: FakeEngine) -> None:
    await push(services, "x")
    await services.store.set_profile("x", Profile(limits=Limits(max_tokens=5, max_prompt_tokens=4)))

    await (await admit(services, "x")).collect()

    assert engine.submitted[-1][2].max_tokens == 5
    with pytest.raises(InvalidRequest, match="allows 5"):
        await admit(services, "x", max_tokens=6)
    with pytest.raises(InvalidRequest, match="takes 4"):
        await admit(services, "x", prompt="12345")


async def test_a_request_has_its_tasks_share_of_the_engine(
    services: Services, engine: FakeEngine
) -> None:
    for task in ("x", "y"):
        await push(services, task)
    await services.store.set_profile("x", Profile(limits=Limits(max_concurrency=3), weight=2.5))

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
    await push(services, "x")
    await services.store.set_profile("x", Profile(template="{prompt} in {language}:", chat=True))

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


async def test_a_stop_string_ends_the_sequence_in_the_engine(
    services: Services, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    engine.script = lambda prefix, token_ids: tokenizer.encode("one END two")

    completion = await admit(services, stop=("END",), max_tokens=11)
    whole = await completion.collect()

    assert (whole.text, whole.finish_reason) == ("one ", "stop")
    assert completion.num_completion_tokens == 7
    assert engine.num_cancelled == 1


async def test_a_completion_that_nobody_reads_to_its_end_is_cancelled(
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
