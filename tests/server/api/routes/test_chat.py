"""One user message is a task's prompt, at every door; what a task cannot take is refused."""

from __future__ import annotations

import httpx
import pytest

from server.text.tokenizer import Tokenizer
from tests.server.fakes import FakeEngine, push

USER = {"role": "user", "content": "hi"}
CONVERSATIONS: list[list[dict[str, str]]] = [
    [USER, {"role": "assistant", "content": "yo"}, USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [USER, USER],
    [{"role": "assistant", "content": "yo"}],
]


async def make(http: httpx.AsyncClient, **profile: object) -> None:
    await http.put("/tasks/x", json=profile)
    await push(http, "x")


async def ask(http: httpx.AsyncClient, messages: list[dict[str, str]]) -> list[httpx.Response]:
    """At `/generate` and at OpenAI's chat, whole and streamed."""
    generate, chat = {"messages": messages}, {"model": "x", "messages": messages}
    return [
        await http.post(url, json=body | {"stream": stream, "max_tokens": 3})
        for url, body in (("/generate?task=x", generate), ("/v1/chat/completions", chat))
        for stream in (False, True)
    ]


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"template": "Q: {prompt}\nA:"},
        {"chat": True},
        {"template": "Q: {prompt}\nA:", "chat": True},
    ],
)
async def test_one_user_message_is_the_prompt_at_every_door(
    http: httpx.AsyncClient, engine: FakeEngine, profile: dict[str, object]
) -> None:
    await make(http, **profile)
    await http.post("/generate?task=x", json={"prompt": "hi", "max_tokens": 3})

    responses = await ask(http, [USER])

    assert [response.status_code for response in responses] == [200] * 4
    first, *others = (token_ids for _, token_ids, _ in engine.submitted)
    assert others == [first] * 4


@pytest.mark.parametrize("profile", [{}, {"template": "Q: {prompt}\nA:"}])
@pytest.mark.parametrize("messages", CONVERSATIONS)
async def test_a_conversation_with_a_task_that_is_no_chat_is_refused(
    http: httpx.AsyncClient,
    engine: FakeEngine,
    profile: dict[str, object],
    messages: list[dict[str, str]],
) -> None:
    await make(http, **profile)

    responses = await ask(http, messages)

    assert [response.status_code for response in responses] == [400] * 4
    problem, openai = responses[0].json(), responses[2].json()["error"]
    assert problem["code"] == openai["code"] == "not_a_chat"
    assert "exactly one user message" in problem["detail"] == openai["message"]
    assert engine.submitted == []


async def test_a_chat_with_a_template_takes_no_conversation(http: httpx.AsyncClient) -> None:
    await make(http, chat=True, template="Translate: {prompt}")

    assert {response.status_code for response in await ask(http, CONVERSATIONS[0])} == {400}


@pytest.mark.parametrize("messages", CONVERSATIONS)
async def test_a_chat_and_the_base_model_take_every_conversation(
    http: httpx.AsyncClient,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    messages: list[dict[str, str]],
) -> None:
    await make(http, chat=True)

    responses = await ask(http, messages)
    await http.post("/generate", json={"messages": messages})
    await http.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})

    assert {response.status_code for response in responses} == {200}
    expected = tokenizer.encode_chat(messages)
    assert [token_ids for _, token_ids, _ in engine.submitted] == [expected] * 6


async def test_the_fields_of_a_template_go_with_one_message(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    await make(http, template="{tone}: {prompt}")
    body = {"messages": [USER], "fields": {"tone": "kind"}}

    await http.post("/generate?task=x", json=body)
    without = await http.post("/generate?task=x", json={"messages": [USER]})

    assert tokenizer.decode(engine.submitted[0][1]) == "kind: hi"
    assert (without.status_code, without.json()["code"]) == (422, "template_mismatch")


async def test_a_prompt_after_messages_is_one_more_user_message(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    held = [{"role": "system", "content": "Be a pirate."}]
    await http.put("/tasks/x/prefix", json={"messages": held})
    engine.submitted.clear()

    await http.post("/generate?task=x", json={"prompt": "hi"})
    await ask(http, [USER])

    expected = tokenizer.encode_chat([USER], after=held)
    assert [token_ids for _, token_ids, _ in engine.submitted] == [expected] * 5
