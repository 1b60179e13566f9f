"""What the server generates is what PEFT generates, token for token, alone and in one batch.

The base model is the real SmolLM2 in float32. Every comparison is with PEFT or transformers run on
one unpadded prompt: with `generate` where the server runs one request, and for the many requests of
a batch with one forward over prompt and answer, in which every token has to be the likeliest.
"""

from __future__ import annotations

import asyncio
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.running_server import RunningServer

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.timeout(900),
    # PEFT's own `generate` passes what PEFT's own `forward` then ignores.
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]

NUM_NEW = 32
NUM_GENERATED = 16
"""Tokens that `generate` makes, a forward for each, of these prompts."""
NUM_PROMPTS_GENERATED = 2
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "1, 2, 3, 5, 8,",
    "The three most important things when you bake bread are",
]
TEXT = "You answer in rhymes, you never use the letter Q, and you love the sea.\n\n"


@dataclass(frozen=True)
class Case:
    """A task: its upload, and what stands for it in PEFT or transformers."""

    body: bytes
    media_type: str
    model: torch.nn.Module
    text_ids: list[int]
    """Before every prompt."""
    generated: list[list[int]]
    """Greedy tokens for the first prompts, by `generate`."""

    @torch.inference_mode()
    def greedy_after(self, prompt_ids: list[int], token_ids: list[int]) -> list[int]:
        """The likeliest token in the place of each of `token_ids`, after the prompt and those
        before it."""
        ids = torch.tensor([self.text_ids + prompt_ids + token_ids[:-1]])
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return logits[0, -len(token_ids) :].argmax(-1).tolist()


def peft_configs() -> dict[str, peft.PeftConfig]:
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 12}
    return {
        "prefix": peft.PrefixTuningConfig(**common),
        "projected": peft.PrefixTuningConfig(
            **common, prefix_projection=True, encoder_hidden_size=64
        ),
        "cartridge": peft.CartridgeConfig(**common),
        "prompt": peft.PromptTuningConfig(**common),
        "ptuning": peft.PromptEncoderConfig(**common, encoder_hidden_size=64),
    }


@pytest.fixture(scope="module")
def server(demo_server: RunningServer) -> RunningServer:
    return demo_server


@pytest.fixture(scope="module")
def base(smollm2: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # 32 tokens whatever they are
    return model


@pytest.fixture(scope="module")
def prompt_ids(smollm2: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return [tokenizer(prompt).input_ids for prompt in PROMPTS]


@pytest.fixture(scope="module")
def text_ids(smollm2: Path) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(smollm2)(TEXT).input_ids
    return ids


@pytest.fixture(scope="module")
def cases(
    base: PreTrainedModel,
    prompt_ids: list[list[int]],
    text_ids: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Case]:
    made = {}
    first_ids = prompt_ids[:NUM_PROMPTS_GENERATED]
    for i, (name, config) in enumerate(peft_configs().items()):
        model = peft.get_peft_model(base, config)
        randomise(model, seed=i)
        directory = tmp_path_factory.mktemp(name)
        model.save_pretrained(directory)
        generated = [greedy(model.eval(), ids) for ids in first_ids]
        made[name] = Case(tar_of(directory), "application/x-tar", model, [], generated)
    after_text = [greedy(base, text_ids + ids) for ids in first_ids]
    body = b'{"text": %s}' % json_string(TEXT)
    made["text"] = Case(body, "application/json", base, text_ids, after_text)
    return made


@pytest.fixture(scope="module")
def base_case(base: PreTrainedModel, prompt_ids: list[list[int]]) -> Case:
    """No task; nothing is uploaded."""
    generated = [greedy(base, ids) for ids in prompt_ids[:NUM_PROMPTS_GENERATED]]
    return Case(b"", "", base, [], generated)


def randomise(model: peft.PeftModel, seed: int) -> None:
    """A seeded random prompt, large enough to change what the model says."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.prompt_encoder["default"].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)


@torch.inference_mode()
def greedy(model: torch.nn.Module, ids: list[int]) -> list[int]:
    """`generate` on one unpadded prompt."""
    prompt = torch.tensor([ids])
    out = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NUM_GENERATED,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, -NUM_GENERATED:].tolist()


def tar_of(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(directory, arcname=directory.name)
    return buffer.getvalue()


def json_string(text: str) -> bytes:
    return httpx.Request("POST", "http://x", json=text).content


def upload(server: RunningServer, task: str, case: Case) -> None:
    response = httpx.put(
        f"{server.url}/tasks/{task}/prefix",
        content=case.body,
        headers={"Content-Type": case.media_type},
        timeout=120,
    )
    assert response.is_success, response.text


async def generated(
    client: httpx.AsyncClient, task: str | None, ids: list[int], num_new: int = NUM_GENERATED
) -> list[int]:
    response = await client.post(
        "/generate",
        params={"task": task} if task else {},
        json={
            "prompt": ids,
            "max_tokens": num_new,
            "ignore_eos": True,
            "return_token_ids": True,
        },
    )
    assert response.status_code == 200, response.text
    return response.json()["token_ids"]


@pytest.fixture(scope="module")
def uploaded(server: RunningServer, cases: dict[str, Case]) -> dict[str, Case]:
    for task, case in cases.items():
        upload(server, task, case)
    return cases


async def test_alone_every_task_makes_the_tokens_that_peft_makes(
    server: RunningServer,
    uploaded: dict[str, Case],
    base_case: Case,
    prompt_ids: list[list[int]],
) -> None:
    expected = {None: base_case.generated}
    expected |= {task: case.generated for task, case in uploaded.items()}
    assert len({str(tokens) for tokens in expected.values()}) == len(expected), "no effect"

    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        for task, tokens in expected.items():
            got = [await generated(client, task, ids) for ids in prompt_ids[:NUM_PROMPTS_GENERATED]]
            assert got == tokens, task


async def test_in_one_mixed_batch_every_request_makes_the_same_tokens(
    server: RunningServer,
    uploaded: dict[str, Case],
    base_case: Case,
    prompt_ids: list[list[int]],
) -> None:
    cases: dict[str | None, Case] = {None: base_case, **uploaded}
    asked = [(task, ids) for ids in prompt_ids for task in cases]

    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        got = await asyncio.gather(*(generated(client, *one, NUM_NEW) for one in asked))

    assert len(asked) >= 32
    assert len(cases) >= 7
    assert {len(tokens) for tokens in got} == {NUM_NEW}
    for (task, ids), tokens in zip(asked, got, strict=True):
        assert tokens == cases[task].greedy_after(ids, tokens), task
    for (task, ids), tokens in zip(asked, got, strict=True):
        for first_ids, expected in zip(prompt_ids, cases[task].generated, strict=False):
            assert ids != first_ids or tokens[:NUM_GENERATED] == expected, task


async def test_with_the_prefixes_of_two_tasks_exchanged_the_tokens_differ(
    server: RunningServer, uploaded: dict[str, Case], prompt_ids: list[list[int]]
) -> None:
    """The control: the tests above can fail."""
    upload(server, "prefix", uploaded["cartridge"])
    upload(server, "cartridge", uploaded["prefix"])
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            for task in ("prefix", "cartridge"):
                got = await generated(client, task, prompt_ids[0])
                assert got != uploaded[task].generated[0]
                assert got != uploaded[task].greedy_after(prompt_ids[0], got)
            same = await generated(client, "prompt", prompt_ids[0])
            assert same == uploaded["prompt"].generated[0]
    finally:
        for task in ("prefix", "cartridge"):
            httpx.post(f"{server.url}/tasks/{task}/rollback").raise_for_status()


def test_a_downloaded_text_prefix_gives_the_texts_logits_in_peft(
    server: RunningServer,
    uploaded: dict[str, Case],
    base: PreTrainedModel,
    text_ids: list[int],
    prompt_ids: list[list[int]],
    tmp_path: Path,
) -> None:
    versions = f"{server.url}/tasks/text/versions/1/prefix"
    response = httpx.get(versions, params={"format": "peft"}).raise_for_status()
    with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
        tar.extractall(tmp_path, filter="data")
    [config] = tmp_path.rglob("adapter_config.json")
    model = peft.PeftModel.from_pretrained(base, config.parent).eval()
    ids = torch.tensor([prompt_ids[1]])

    with torch.inference_mode():
        behind_prefix = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        behind_text = base(input_ids=torch.tensor([text_ids + prompt_ids[1]])).logits

    torch.testing.assert_close(behind_prefix, behind_text[:, len(text_ids) :], atol=1e-3, rtol=0)
