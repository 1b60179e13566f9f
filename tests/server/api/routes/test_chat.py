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


DOORS = ["/generate?task=x", "/v1/completions", "/v1/chat/completions"]


def body_for(door: str, prompt: str, **fields: str) -> dict[str, object]:
    """A request with a prompt, or with the message that is one."""
    user = {"role": "user", "content": prompt}
    asked = {"messages": [user]} if "chat" in door else {"prompt": prompt}
    model = {"model": "x"} if "/v1/" in door else {}
    return asked | model | ({"fields": fields} if fields else {}) | {"max_tokens": 3}


@pytest.mark.parametrize("door", DOORS)
async def test_the_named_fields_of_a_template_come_in_fields_at_every_door(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, door: str
) -> None:
    await make(http, template="{tone}: {prompt}")

    answer = await http.post(door, json=body_for(door, "hi", tone="kind"))
    without = await http.post(door, json=body_for(door, "hi"))
    wrong = await http.post(door, json=body_for(door, "hi", tone="kind", time="now"))

    assert answer.status_code == 200, answer.text
    assert [tokenizer.decode(token_ids) for _, token_ids, _ in engine.submitted] == ["kind: hi"]
    assert "template_mismatch" in without.text
    assert "the task's template needs `fields` with `tone`" in without.text
    assert "it has `prompt`, `tone`" in wrong.text


@pytest.mark.parametrize("door", DOORS)
async def test_an_empty_prompt_goes_with_a_template_that_has_no_place_for_one(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, door: str
) -> None:
    """OpenAI's clients cannot leave it out."""
    await make(http, template="{word} ->")

    answer = await http.post(door, json=body_for(door, "", word="hot"))
    refused = await http.post(door, json=body_for(door, "hi", word="hot"))

    assert answer.status_code == 200, answer.text
    assert [tokenizer.decode(token_ids) for _, token_ids, _ in engine.submitted] == ["hot ->"]
    assert "the task's template has no {prompt}: send `fields` with `word` only" in refused.text


async def test_messages_and_fields_go_together_at_the_native_route(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    await make(http, template="{tone}: {prompt}")

    await http.post("/generate?task=x", json={"messages": [USER], "fields": {"tone": "kind"}})
    base = {"messages": [USER], "fields": {"tone": "kind"}}
    refused = await http.post("/generate", json=base)

    assert tokenizer.decode(engine.submitted[0][1]) == "kind: hi"
    assert (refused.status_code, refused.json()["code"]) == (422, "template_mismatch")


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
