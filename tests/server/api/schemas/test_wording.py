"""Errors name the field as it stands in the body, and say what would be right."""

from __future__ import annotations

import httpx
import pytest

USER = {"role": "user", "content": "hi"}
PROMPT = "must be a string, a list of token ids, or a list of either"
CONTENT = 'must be a string, or a list of parts such as {"type": "text", "text": "..."}'


async def message(http: httpx.AsyncClient, path: str, body: object) -> str:
    response = await http.post(path, json=body)
    assert response.status_code in (400, 422), response.text
    answer = response.json()
    return str(answer["error"]["message"] if path.startswith("/v1/") else answer["detail"])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": ["x"] * 65}, "`prompt` may have at most 64 items"),
        ({"prompt": [[1]] * 65}, "`prompt` may have at most 64 items"),
        ({"prompt": []}, "`prompt` must not be empty"),
        ({"prompt": [[]]}, "`prompt[0]` must not be empty"),
        ({"prompt": None}, f"`prompt` {PROMPT}, not null"),
        ({"prompt": 7}, f"`prompt` {PROMPT}, not a number"),
        ({"prompt": ["a", 1]}, "`prompt[1]` must be a string, not a number"),
        ({"prompt": [1, "a"]}, "`prompt[1]` must be a whole number, not a string"),
        ({"prompt": [1.5]}, "`prompt[0]` must be a whole number, not a decimal number"),
        ({"stop": [""]}, "`stop[0]` must not be empty"),
        ({"stop": ["a"] * 17}, "`stop`: at most 16 stop strings"),
        ({"stop": ["a" * 257]}, "`stop[0]` may have at most 256 characters"),
        ({"temperature": 3}, "`temperature` must be at most 2"),
        ({"top_p": 0}, "`top_p` must be above 0"),
        ({"n": 0}, "`n` must be at least 1"),
        ({"stream": 7}, "`stream` must be true or false, not a number"),
        ({"rank": {"texts": ["a"], "by": "x"}}, "`rank.by` must be 'sum' or 'mean'"),
        ({"logit_bias": {"a": 1}}, "a name in `logit_bias` must match ^[0-9]{1,9}$"),
        ({"guided_json": 7}, "`guided_json` must be a JSON schema, not a number"),
        ({"model": None}, "`model` must be a string, not null"),
    ],
)
async def test_of_completions(
    http: httpx.AsyncClient, fields: dict[str, object], expected: str
) -> None:
    body = {"model": "tiny", "prompt": "hi"} | fields

    assert await message(http, "/v1/completions", body) == expected


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": None}], f"`messages[0].content` {CONTENT}, not null"),
        ([USER, {"role": "user", "content": 7}], f"`messages[1].content` {CONTENT}, not a number"),
        ([{"role": "user", "content": []}], "`messages[0].content` must not be empty"),
        ([{"role": "user"}], "`messages[0].content` is missing"),
        ("hi", "`messages` must be a list, not a string"),
        (["hi"], "`messages[0]` must be an object, not a string"),
        ([], "`messages` must not be empty"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "`messages[0].content[0].type` must be 'text'",
        ),
        (
            [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "`messages[1].tool_calls` is not supported by this server: leave it out or send []",
        ),
    ],
)
async def test_of_chats(http: httpx.AsyncClient, messages: object, expected: str) -> None:
    body = {"model": "tiny", "messages": messages}

    assert await message(http, "/v1/chat/completions", body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "send a `prompt` or `messages`"),
        ([], "the body must be an object, not a list"),
        ({"prompt": 7}, "`prompt` must be a string or a list of token ids, not a number"),
        ({"prompt": "x", "max_token": 3}, "`max_token` is no field of this request; did you mean "
                                          "`max_tokens`?"),
        ({"prompt": "x", "<script>": 3}, "`?` is no field of this request"),
        ({"prompt": "x", "max_tokens": 1.5}, "`max_tokens` must be a whole number, not a decimal "
                                             "number"),
        ({"messages": [USER | {"name": "a"}]}, "`messages[0].name` is no field of this request"),
        ({"prompt": "x", "fields": {"a": 1}}, "`fields.a` must be a string, not a number"),
    ],
)  # fmt: skip
async def test_of_the_native_route(http: httpx.AsyncClient, body: object, expected: str) -> None:
    assert await message(http, "/generate", body) == expected


async def test_of_a_query(http: httpx.AsyncClient) -> None:
    path = "/generate?task=x&version=0"

    assert await message(http, path, {"prompt": "x"}) == "`version` in the query must be at least 1"


async def test_of_a_union_that_selects_no_branch(http: httpx.AsyncClient) -> None:
    body = {"golden": [{"prompt": "x", "expect": 7}]}

    detail = (await http.put("/tasks/x", json=body)).json()["detail"]

    assert detail == ("`golden[0].expect` must be a string or a list of token ids, not a number")
