"""The official `openai` package, unchanged, against a real server with the first six layers of
SmolLM2 in float32; and every number it is given against transformers' own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.openai_reference import Reference, penalised
from tests.running_server import RunningServer

pytestmark = pytest.mark.smollm2

TASK = "sea"
TEXT = "You answer in rhymes, you never use the letter Q, and you love the sea.\n\n"
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "1, 2, 3, 5, 8,",
]
CHAT = [{"role": "user", "content": "Name three colours."}]
TOLERANCE = 2e-4
"""Log-probabilities in float32, of the compiled layers here and of transformers' there."""


@pytest.fixture(scope="module")
def server(short_server: RunningServer) -> RunningServer:
    return short_server


@pytest.fixture(scope="module")
def reference(short_smollm2: Path) -> Reference:
    model = AutoModelForCausalLM.from_pretrained(short_smollm2, dtype=torch.float32).eval()
    return Reference(model, AutoTokenizer.from_pretrained(short_smollm2), TEXT)


@pytest.fixture(scope="module")
def plain(reference: Reference) -> list[int]:
    """Greedy tokens without any penalty."""
    return penalised(reference, reference.ids(PROMPTS[1]), NUM_PENALISED, {"extra_body": {}})


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    uploaded = httpx.put(f"{server.url}/tasks/{TASK}/prefix", json={"text": TEXT}, timeout=120)
    assert uploaded.status_code == 201, uploaded.text
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def base(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_models_are_listed_and_described(client: openai.OpenAI, base: str) -> None:
    assert [model.id for model in client.models.list()] == [base, TASK]
    assert client.models.retrieve(TASK).owned_by == "foreword"


def test_completions_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": TASK, "prompt": PROMPTS[0], "max_tokens": 12}

    whole = client.completions.create(**asked)
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert last.usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12


@pytest.mark.parametrize("is_base", [True, False])
def test_chat_whole_and_streamed(client: openai.OpenAI, base: str, is_base: bool) -> None:
    """A chat with the base model, and the one message that is a task's prompt."""
    asked: dict[str, Any] = {"model": base, "messages": CHAT, "max_completion_tokens": 12}
    if not is_base:
        asked |= {"model": TASK, "messages": [{"role": "user", "content": PROMPTS[0]}]}

    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    with client.chat.completions.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]

    content = whole.choices[0].message.content
    assert content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content
    assert "".join(deltas) == content
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == content
    assert all(len(token.top_logprobs) == 3 for token in logprobs.content)


def test_the_asynchronous_client_does_the_same(client: openai.OpenAI, base: str) -> None:
    async def ask() -> tuple[list[str], str]:
        url = str(client.base_url)
        async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as other:
            answers = await asyncio.gather(
                *(
                    other.completions.create(model=model, prompt=PROMPTS[0], max_tokens=8)
                    for model in (TASK, base)
                )
            )
            stream = await other.chat.completions.create(
                model=base, messages=CHAT, max_tokens=8, stream=True
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return [answer.choices[0].text for answer in answers], "".join(pieces)

    texts, said = asyncio.run(ask())

    one = client.completions.create(model=TASK, prompt=PROMPTS[0], max_tokens=8)
    assert texts[0] == one.choices[0].text
    assert texts[0] != texts[1]
    assert said


def test_errors_are_the_packages_own(client: openai.OpenAI, base: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="nope", prompt="x")
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.completions.create(model=base, prompt="x", suffix="y")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=base, prompt="x " * 9000)

    assert missing.value.code == "model_not_found"
    assert unsupported.value.param == "suffix"
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize("behind", [False, True], ids=["base model", "task"])
def test_a_batch_of_token_ids_with_echo_is_what_lm_eval_needs(
    client: openai.OpenAI, base: str, reference: Reference, behind: bool
) -> None:
    prompts = [reference.ids(prompt) for prompt in PROMPTS]

    answer = client.completions.create(
        model=TASK if behind else base,
        prompt=prompts,
        max_tokens=1,
        temperature=0,
        logprobs=1,
        echo=True,
        seed=1234,
    )

    for choice, prompt in zip(answer.choices, prompts, strict=True):
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.top_logprobs is not None
        own = torch.tensor(logprobs.token_logprobs[1:-1])
        expected = reference.logprobs(prompt, after_text=behind)
        torch.testing.assert_close(own, expected, atol=TOLERANCE, rtol=0)
        other = reference.logprobs(prompt, after_text=not behind)
        assert not torch.allclose(own, other, atol=100 * TOLERANCE), "it would be seen"
        highest = reference.logits(prompt, after_text=behind)[:-1].argmax(-1)
        is_highest = [
            mine == max(top.values())
            for mine, top in zip(own.tolist(), logprobs.top_logprobs[1:-1], strict=True)
        ]
        assert is_highest == (highest == torch.tensor(prompt[1:])).tolist()


def test_a_long_prompt_is_scored_over_all_its_chunks(
    client: openai.OpenAI, base: str, reference: Reference
) -> None:
    """More than one step, more than one block of logits, and the second time from the cache."""
    prompt = reference.ids(" ".join(PROMPTS * 40))
    assert len(prompt) > 1024
    asked: dict[str, Any] = {"model": base, "prompt": prompt, "echo": True, "logprobs": 0}

    client.completions.create(model=base, prompt=prompt, max_tokens=1)
    answer = client.completions.create(**asked, max_tokens=0)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    expected = reference.logprobs(prompt, after_text=False)
    own = torch.tensor(logprobs.token_logprobs[1:])
    torch.testing.assert_close(own, expected, atol=TOLERANCE, rtol=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


NUM_PENALISED = 16
PENALTIES: list[dict[str, Any]] = [
    {"presence_penalty": 1.5},
    {"frequency_penalty": 2.0},
    {"extra_body": {"repetition_penalty": 1.3}},
    {"logit_bias": {"253": -100, "28": 5}},
]


@pytest.mark.parametrize("asked", PENALTIES, ids=lambda asked: next(iter(asked)))
def test_penalties_give_transformers_tokens_in_a_mixed_batch(
    client: openai.OpenAI, reference: Reference, plain: list[int], asked: dict[str, Any]
) -> None:
    prompt, num_new = reference.ids(PROMPTS[1]), NUM_PENALISED
    whole = {"model": TASK, "max_tokens": num_new, "extra_body": {}} | asked
    whole["extra_body"] = whole["extra_body"] | {"return_token_ids": True, "ignore_eos": True}

    async def beside(others: int) -> list[Any]:
        url = str(client.base_url)
        async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as many:
            mine = many.completions.create(prompt=prompt, **whole)
            rest = [
                many.completions.create(
                    model=TASK, prompt=PROMPTS[i % 3], temperature=1.0, max_tokens=20, seed=i
                )
                for i in range(others)
            ]
            return await asyncio.gather(mine, *rest)

    [alone], [mixed, *_] = asyncio.run(beside(0)), asyncio.run(beside(6))

    expected = penalised(reference, prompt, num_new, whole)
    assert alone.choices[0].token_ids == mixed.choices[0].token_ids == expected
    assert expected != plain, "it must matter in this test"


def test_logprobs_of_sampled_tokens_are_the_models_own_whatever_the_temperature(
    client: openai.OpenAI, reference: Reference
) -> None:
    answer = client.completions.create(
        model=TASK,
        prompt=PROMPTS[1],
        max_tokens=10,
        temperature=1.7,
        top_p=0.9,
        presence_penalty=1.0,
        n=3,
        seed=5,
        logprobs=5,
        extra_body={"return_token_ids": True},
    )

    prompt = reference.ids(PROMPTS[1])
    assert len({choice.text for choice in answer.choices}) == 3
    for choice in answer.choices:
        made: list[int] = choice.token_ids  # type: ignore[attr-defined]
        expected = reference.logprobs(prompt + made, after_text=True)[len(prompt) - 1 :]
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        own = torch.tensor(choice.logprobs.token_logprobs)
        torch.testing.assert_close(own, expected, atol=TOLERANCE, rtol=0)


def test_the_native_route_has_the_same_numbers(
    server: RunningServer, client: openai.OpenAI, reference: Reference
) -> None:
    prompt = reference.ids(PROMPTS[2])
    body = {
        "prompt": prompt, "max_tokens": 4, "logprobs": 2, "prompt_logprobs": 0,
        "return_token_ids": True,
    }  # fmt: skip

    answer = httpx.post(f"{server.url}/generate?task={TASK}", json=body, timeout=60).json()

    first, *rest = answer["prompt_logprobs"] + answer["logprobs"]
    token_ids = prompt + answer["token_ids"]
    assert (first["token_id"], first["logprob"]) == (prompt[0], None)
    assert [token["token_id"] for token in rest] == token_ids[1:]
    own = torch.tensor([token["logprob"] for token in rest])
    expected = reference.logprobs(token_ids, after_text=True)
    torch.testing.assert_close(own, expected, atol=TOLERANCE, rtol=0)
    assert all(len(token["top"]) == 2 for token in answer["logprobs"])
