"""Every field that OpenAI's clients send is served, changes nothing, or is refused by name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any, get_type_hints

import httpx
import pytest
from openai.resources.chat.completions import Completions as Chat
from openai.resources.completions import Completions
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionMessage,
    ChatCompletionStreamOptionsParam,
)

from server.api.schemas import openai_fields
from server.api.schemas.openai import (
    ChatRequest,
    CompletionRequest,
    OpenAIMessage,
    StreamOptions,
    TextPart,
)
from server.api.schemas.openai_fields import Open, Unserved
from tests.server.fakes import FakeEngine

OF_THE_PACKAGE = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
"""Parameters of `create` that are not sent."""
USER = {"role": "user", "content": "hi"}
PATHS = {
    "": openai_fields.REQUEST,
    "stream_options": openai_fields.STREAM_OPTIONS,
    "structured_outputs": openai_fields.STRUCTURED_OUTPUTS,
    "messages[1]": openai_fields.MESSAGE,
    "messages[0].content[0]": openai_fields.TEXT_PART,
}
ROWS = [(place, name) for place, table in PATHS.items() for name in table]


def body_with(place: str, name: str, value: object) -> dict[str, Any]:
    """A chat with the field at one of the places."""
    said: dict[str, Any] = {"role": "assistant", "content": "ho"}
    part: dict[str, Any] = {"type": "text", "text": "hi"}
    options: dict[str, Any] = {"include_usage": True}
    forms: dict[str, Any] = {"regex": "[a-z]+"}
    body: dict[str, Any] = {
        "model": "tiny", "max_tokens": 3, "stream": True, "stream_options": options,
        "structured_outputs": forms,
        "messages": [{"role": "user", "content": [part]}, said, USER],
    }  # fmt: skip
    objects = [body, options, forms, said, part]
    objects[list(PATHS).index(place)][name] = value
    return body


def parameters(create: Callable[..., object]) -> set[str]:
    return inspect.signature(create).parameters.keys() - OF_THE_PACKAGE


def harmless(field: Unserved) -> list[object]:
    return [None, *field.no_ops, *(["x", 7, {"a": []}, True] if field.is_ignored else [])]


@pytest.mark.parametrize(("place", "name"), ROWS)
async def test_what_changes_nothing_is_accepted_and_all_else_refused_by_name(
    http: httpx.AsyncClient, engine: FakeEngine, place: str, name: str
) -> None:
    field = PATHS[place][name]
    await http.post("/v1/chat/completions", json=body_with(place, "x", None))
    for value in harmless(field):
        response = await http.post("/v1/chat/completions", json=body_with(place, name, value))
        assert response.status_code == 200, response.text
    first, *others = [(ids, sampling.grammar) for _, ids, sampling in engine.submitted]
    assert others == [first] * len(harmless(field))

    other = await http.post("/v1/chat/completions", json=body_with(place, name, "other"))

    if not field.is_ignored:
        error = other.json()["error"]
        where = f"{place}.{name}".removeprefix(".")
        assert (other.status_code, error["code"]) == (400, "unsupported_parameter")
        assert error["param"] == where
        assert error["message"].startswith(f"`{where}` is not supported by this server: leave it")
        assert all(json.dumps(value) in error["message"] for value in field.no_ops)


@pytest.mark.parametrize(
    ("sent", "model"),
    [
        (parameters(Chat.create), ChatRequest),
        (parameters(Completions.create), CompletionRequest),
        (get_type_hints(ChatCompletionStreamOptionsParam).keys(), StreamOptions),
        (get_type_hints(ChatCompletionAssistantMessageParam).keys(), OpenAIMessage),
        (ChatCompletionMessage.model_fields.keys(), OpenAIMessage),
        (get_type_hints(ChatCompletionContentPartTextParam).keys(), TextPart),
    ],
    ids=lambda value: getattr(value, "__name__", "fields"),
)
def test_every_field_of_the_openai_package_is_decided(sent: set[str], model: type[Open]) -> None:
    assert sent
    assert sent <= model.model_fields.keys() | model.unserved.keys()
    assert not model.model_fields.keys() & model.unserved.keys(), "no field is in both"


async def test_an_answer_comes_back_as_the_package_dumps_it(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {"model": "tiny", "messages": [USER], "max_tokens": 3}
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    said = ChatCompletionMessage(**answer["choices"][0]["message"], annotations=[]).model_dump()
    plain = {"role": "assistant", "content": said["content"]}

    for message in (plain, said, said | {"id": "msg_1", "reasoning_content": "Hm."}):
        again = body | {"messages": [USER, message, USER]}
        response = await http.post("/v1/chat/completions", json=again)
        assert response.status_code == 200, response.text

    _, first, *others = [token_ids for _, token_ids, _ in engine.submitted]
    assert others == [first, first]


@pytest.mark.parametrize(
    ("field", "meant"), [("max_token", "max_tokens"), ("Temperature", "temperature")]
)
async def test_a_misspelt_field_is_refused_with_the_one_that_was_meant(
    http: httpx.AsyncClient, field: str, meant: str
) -> None:
    body = {"model": "tiny", "prompt": "hi", field: 1}

    error = (await http.post("/v1/completions", json=body)).json()["error"]

    assert error["message"].endswith(f"did you mean `{meant}`?")


async def test_unknown_fields_of_a_part_are_refused(http: httpx.AsyncClient) -> None:
    body = body_with("messages[0].content[0]", "language", "fr")

    error = (await http.post("/v1/chat/completions", json=body)).json()["error"]

    assert error["param"] == "messages[0].content[0].language"
