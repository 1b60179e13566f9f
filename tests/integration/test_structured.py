"""Answers that follow a schema, and answers that are chosen, with the real SmolLM2 in float32."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema_rs
import openai
import pytest
import torch
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.running_server import RunningServer

pytestmark = [pytest.mark.smollm2, pytest.mark.timeout(900)]

NUM_ANSWERS = int(os.environ.get("NUM_ANSWERS", "16"))
"""The promise is 200 of 200."""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "kind": {"enum": ["cat", "dog", "bird"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
        "weight": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "kind", "age", "tags", "weight"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA}}
PROMPT = "A pet of mine, as JSON: "
TEXT = "The capital of France is"
TOLERANCE = 5e-4


class Pet(BaseModel):
    name: str
    kind: Literal["cat", "dog"]
    is_old: bool


@pytest.fixture(scope="module")
def server(demo_server: RunningServer) -> RunningServer:
    return demo_server


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(smollm2: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


async def ask(url: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All at once."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        answers = await asyncio.gather(*(http.post("/generate", json=body) for body in bodies))
        assert {answer.status_code for answer in answers} == {200}
        return [answer.json() for answer in answers]


def drawn(seed: int) -> dict[str, Any]:
    return {
        "prompt": TEXT, "max_tokens": 24, "temperature": 1, "seed": seed, "return_token_ids": True,
    }  # fmt: skip


def compile_once(url: str) -> None:
    """The first grammar of a server waits for the vocabulary, on a busy machine beyond the deadline
    of a compile; and one that everybody asks for at once is compiled for each."""
    body = {"prompt": PROMPT, "max_tokens": 1, "response_format": FORMAT}
    for _ in range(20):
        if httpx.post(f"{url}/generate", json=body, timeout=600).status_code == 200:
            return
    raise AssertionError("it is not compiled in time")


def test_every_answer_fits_its_schema_and_no_other_request_notices(server: RunningServer) -> None:
    constrained = [
        {"prompt": PROMPT, "max_tokens": 160, "temperature": 1, "seed": i}
        for i in range(NUM_ANSWERS)
    ]
    free = [drawn(i) for i in range(NUM_ANSWERS // 2)]
    alone = [asyncio.run(ask(server.url, [body]))[0] for body in free[:3]]
    compile_once(server.url)

    bodies = [body | {"response_format": FORMAT} for body in constrained] + free
    mixed = asyncio.run(ask(server.url, bodies))

    validator = jsonschema_rs.validator_for(SCHEMA)
    answers = mixed[:NUM_ANSWERS]
    assert all(validator.is_valid(json.loads(answer["text"])) for answer in answers)
    assert {answer["finish_reason"] for answer in answers} == {"stop"}
    assert len({answer["text"] for answer in answers}) > NUM_ANSWERS // 2
    assert [a["token_ids"] for a in mixed[NUM_ANSWERS:][:3]] == [a["token_ids"] for a in alone]


def test_without_the_schema_hardly_any_answer_fits(server: RunningServer) -> None:
    """Or the test above would prove nothing."""
    bodies = [{"prompt": PROMPT, "max_tokens": 60, "temperature": 1, "seed": i} for i in range(4)]
    answers = asyncio.run(ask(server.url, bodies))

    validator = jsonschema_rs.validator_for(SCHEMA)
    assert not any(is_valid(validator, answer["text"]) for answer in answers)


def is_valid(validator: Any, text: str) -> bool:
    try:
        return bool(validator.is_valid(json.loads(text)))
    except ValueError:
        return False


def test_the_openai_packages_structured_output(client: openai.OpenAI) -> None:
    base = client.models.list().data[0].id
    asked: dict[str, Any] = {
        "model": base,
        "messages": [{"role": "user", "content": "Describe a cat named Tom as JSON."}],
        "max_tokens": 200,
        "seed": 4,
    }

    parsed = client.chat.completions.parse(**asked, response_format=Pet)
    loose = client.chat.completions.create(
        **asked | {"max_tokens": 40}, response_format={"type": "json_object"}
    )
    with client.chat.completions.stream(**asked, response_format=Pet) as stream:
        final = stream.get_final_completion()

    message = parsed.choices[0].message
    assert isinstance(message.parsed, Pet)
    assert final.choices[0].message.parsed == message.parsed
    assert (loose.choices[0].message.content or "").startswith("{")


def test_regular_expressions_and_choices_the_way_of_vllm(client: openai.OpenAI) -> None:
    base = client.models.list().data[0].id
    forms: list[dict[str, Any]] = [
        {"structured_outputs": {"regex": r"\d{4}-\d{2}"}},
        {"structured_outputs": {"choice": ["Paris", "Berlin"]}},
        {"guided_choice": ["Paris", "Berlin"]},
        {"structured_outputs": {"json": {"const": 7}}},
    ]

    texts = [
        client.completions.create(model=base, prompt=TEXT, max_tokens=20, extra_body=form)
        .choices[0]
        .text
        for form in forms
    ]

    assert len(texts[0]) == 7
    assert texts[0][:4].isdecimal()
    assert texts[1] == texts[2] == "Paris"
    assert texts[3] == "7"


CHOICES = [" Paris", " Berlin", " the city of light", " New York", "land"]


@pytest.mark.parametrize("by", ["sum", "mean"])
@pytest.mark.parametrize("prompt", [TEXT, TEXT + " ", [504, 3575, 282, 4649, 314]])
def test_choices_are_scored_as_transformers_scores_them(
    server: RunningServer,
    model: PreTrainedModel,
    smollm2: Path,
    prompt: str | list[int],
    by: str,
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2)
    texts = CHOICES if isinstance(prompt, list) or prompt == TEXT else [c.strip() for c in CHOICES]
    body = {"prompt": prompt, "rank": {"texts": texts, "by": by}}

    [answer] = asyncio.run(ask(server.url, [body]))

    ids = prompt if isinstance(prompt, list) else tokenizer(prompt).input_ids
    if isinstance(prompt, list):
        wholes = [ids + tokenizer(text).input_ids for text in texts]
    else:
        wholes = [tokenizer(prompt + text).input_ids for text in texts]
    num_shared = min(
        next((i for i in range(len(ids)) if whole[i] != ids[i]), len(ids)) for whole in wholes
    )
    expected = [logprob_of(model, whole, num_shared) for whole in wholes]
    got = answer["ranking"]
    assert [choice["text"] for choice in got] == texts
    assert [choice["num_tokens"] for choice in got] == [len(w) - num_shared for w in wholes]
    torch.testing.assert_close(
        torch.tensor([choice["logprob"] for choice in got]),
        torch.tensor(expected),
        atol=TOLERANCE,
        rtol=0,
    )
    lengths = [len(w) - num_shared if by == "mean" else 1 for w in wholes]
    values = torch.tensor(expected) / torch.tensor(lengths)
    torch.testing.assert_close(
        torch.tensor([choice["probability"] for choice in got]),
        values.softmax(-1),
        atol=TOLERANCE,
        rtol=1e-3,
    )
    assert answer["text"] == texts[int(values.argmax())]


@torch.inference_mode()
def logprob_of(model: Any, token_ids: list[int], num_shared: int) -> float:
    logprobs = model(torch.tensor([token_ids])).logits[0].log_softmax(-1)
    rows = range(num_shared - 1, len(token_ids) - 1)
    return sum(float(logprobs[row, token_ids[row + 1]]) for row in rows)
