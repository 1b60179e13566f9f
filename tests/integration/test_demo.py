"""What `make serve` begins with, on the real model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner

from foreword_client import Client
from foreword_client.cli import make_app
from server.demo.tasks import DEMO_TASKS
from server.engine.sizing import choose_dtype
from tests.running_server import RunningServer, SharedServers

pytestmark = pytest.mark.smollm2

ANSWERS = {"banking77": "card_arrival", "clinc150": "alarm"}


BFLOAT16 = pytest.param(
    "bfloat16",
    marks=pytest.mark.skipif(
        choose_dtype("auto", "cpu") != "bfloat16",
        reason="this processor does not multiply bfloat16: nothing is served in it, and slowly",
    ),
)


@pytest.fixture(scope="module", params=["float32", BFLOAT16])
def demo(shared_servers: SharedServers, request: pytest.FixtureRequest) -> RunningServer:
    if request.param == "float32":
        server: RunningServer = request.getfixturevalue("demo_server")
        return server
    return shared_servers.get("default", "--demo", "--dtype", request.param, "--num-threads", "1")


def test_every_demo_task_answers_its_example(demo: RunningServer) -> None:
    with httpx.Client(base_url=demo.url, timeout=60) as client:
        answers = {
            task.name: client.post(
                "/generate", params={"task": task.name}, json={"prompt": task.example}
            ).json()["text"]
            for task in DEMO_TASKS
        }

    assert all(answers.values()), answers
    assert answers.items() >= ANSWERS.items()
    assert "The Owl" in answers["e2e"]


def test_those_that_were_tuned_are_verified_with_golden_prompts(demo: RunningServer) -> None:
    with httpx.Client(base_url=demo.url, timeout=60) as client:
        for task in DEMO_TASKS:
            if task.folder is not None:
                version = client.get(f"/tasks/{task.name}/versions/1").json()
                checks = {check["name"]: check["passed"] for check in version["verification"]}
                assert checks["golden"]
                assert all(checks.values()), checks
                assert version["evaluation"]["num_examples"] > 100


def test_a_chat_client_answers_alike(demo: RunningServer) -> None:
    with httpx.Client(base_url=demo.url, timeout=60) as client:
        if client.get("/info").json()["dtype"] != "float32":
            pytest.skip("once is enough")

        def ask(task: str, prompt: str) -> str:
            answer = client.post("/generate", params={"task": task}, json={"prompt": prompt})
            text: str = answer.raise_for_status().json()["text"]
            return text

        answers = {task.name: ask(task.name, task.example) for task in DEMO_TASKS}
        for task in DEMO_TASKS:
            messages = [{"role": "user", "content": task.example}]
            chat = {"model": task.name, "messages": messages}
            answer = client.post("/v1/chat/completions", json=chat).json()
            assert answer["choices"][0]["message"]["content"] == answers[task.name]


async def test_every_task_downloaded_and_pushed_again_answers_alike(
    demo: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_URL", demo.url)
    with Client(demo.url) as client:
        if client.info().dtype != "float32":
            pytest.skip("once is enough")
    kinds = {"artifact": [], "peft": ["--peft"]}
    copies = {task.name: [f"{task.name}-{kind}" for kind in kinds] for task in DEMO_TASKS}
    for task, names in copies.items():
        for name, options in zip(names, kinds.values(), strict=True):
            path = str(tmp_path / name)
            for command in (["download", task, "1", "-o", path, *options], ["push", name, path]):
                done = CliRunner().invoke(make_app(), command)
                assert done.exit_code == 0, done.stderr

    async with httpx.AsyncClient(base_url=demo.url, timeout=120) as http:

        async def ask(name: str, prompt: str) -> str:
            body = {"prompt": prompt}
            answer = await http.post("/generate", params={"task": name}, json=body)
            return str(answer.raise_for_status().json()["text"])

        for number in (0, 1):
            prompts = {
                t.name: (t.example, *ASKED.get(t.name, ["cold"]))[number] for t in DEMO_TASKS
            }
            names = {name: prompts[task] for task in prompts for name in (task, *copies[task])}
            asked = await asyncio.gather(*(ask(*pair) for pair in names.items()))
            answers = dict(zip(names, asked, strict=True))
            assert all(answers.values())
            for task in prompts:
                assert [answers[copy] for copy in copies[task]] == [answers[task]] * 2, task


ASKED = {
    "banking77": ["How do I change my PIN?", "Someone stole my phone!", "Can I pay in euros?"],
    "clinc150": ["tell me a joke", "will it rain in oslo", "what is on my shopping list"],
    "e2e": [
        "name[The Mill], eatType[pub], food[English]",
        "name[Bo], area[riverside], near[The Mill]",
    ],
}


def test_every_door_of_a_tuned_task_gives_the_same_answers(demo: RunningServer) -> None:
    package = openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0)
    with httpx.Client(base_url=demo.url, timeout=60) as client, package:
        if client.get("/info").json()["dtype"] != "float32":
            pytest.skip("once is enough")

        def post(path: str, **body: object) -> Any:
            return client.post(path, json=body).raise_for_status().json()

        def ask(prompt: str) -> list[str | None]:
            task = {"model": "banking77"}
            messages: Any = [{"role": "user", "content": prompt}]
            chat = post("/v1/chat/completions", **task, messages=messages)
            by_package = package.chat.completions.create(model="banking77", messages=messages)
            return [
                post("/generate?task=banking77", prompt=prompt)["text"],
                post("/generate?task=banking77", messages=messages)["text"],
                post("/v1/completions", **task, prompt=prompt)["choices"][0]["text"],
                chat["choices"][0]["message"]["content"],
                package.completions.create(model="banking77", prompt=prompt).choices[0].text,
                by_package.choices[0].message.content,
            ]

        answers = [ask(prompt) for prompt in ASKED["banking77"]]

    assert [len(set(texts)) for texts in answers] == [1] * len(answers)
    assert len({texts[0] for texts in answers}) == len(answers)


async def test_tuned_tasks_answer_together_as_alone(demo: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=demo.url, timeout=120) as client:
        if (await client.get("/info")).json()["dtype"] != "float32":
            pytest.skip("only in float32 do answers not depend on the batch")

        async def ask(task: str, prompt: str) -> str:
            answer = await client.post("/generate", params={"task": task}, json={"prompt": prompt})
            text: str = answer.raise_for_status().json()["text"]
            return text

        pairs = [(task, prompt) for task, prompts in ASKED.items() for prompt in prompts]
        alone = [await ask(*pair) for pair in pairs]
        together = await asyncio.gather(*(ask(*pair) for pair in pairs))
        stranger = await ask("clinc150", ASKED["banking77"][0])

    assert together == alone
    assert stranger != alone[0]  # the control: the prefix decides
