from __future__ import annotations

import json

import pytest

from prefix_store import formats
from prefix_store.errors import InvalidArtifact, InvalidUpload, UnsupportedMediaType
from prefix_store.prefix import BaseModelSpec, TextPrompt


def read(data: bytes, base: BaseModelSpec, media_type: str = formats.JSON) -> formats.Source:
    return formats.read(data, media_type, base, max_prefix_tokens=64).source


@pytest.mark.parametrize("media_type", [formats.JSON, "Application/JSON; charset=utf-8"])
def test_text_is_taken_as_it_is(base: BaseModelSpec, media_type: str) -> None:
    data = json.dumps({"text": "  Be brief. \U0001f600\n"}).encode()

    assert read(data, base, media_type) == TextPrompt(text="  Be brief. \U0001f600\n")


def test_messages_are_taken_in_order(base: BaseModelSpec) -> None:
    messages = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})

    assert read(json.dumps({"messages": messages}).encode(), base) == TextPrompt(messages=messages)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"text":""}',
        b'{"text":null}',
        b'{"text":1}',
        b'{"text":["a"]}',
        b'{"text":"a","text":"b"}',
        b'{"text":"\\ud800"}',
        b'{"text":"\xff"}',
        b'\xef\xbb\xbf{"text":"a"}',
        b'{"text":NaN}',
        b'{"text":"a","extra":NaN}',
        b'{"text":"a","extra":1}',
        b'{"text":"a","\\ud800":1}',
        b'{"text":"a","messages":[{"role":"user","content":"b"}]}',
        b'{"messages":[]}',
        b'{"messages":{}}',
        b'{"messages":["a"]}',
        b'{"messages":[{"role":"user"}]}',
        b'{"messages":[{"role":"user","content":""}]}',
        b'{"messages":[{"role":"root","content":"a"}]}',
        b'{"messages":[{"role":"user","content":"a","name":"x"}]}',
        b'{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}]}',
        b'{"text":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"text":' + b"9" * 5000 + b"}",
        b'{"text":"' + b"x" * 4_000_001 + b'"}',
    ],
    ids=lambda body: ascii(body[:40]),
)
def test_a_malformed_body_is_refused_in_few_words(base: BaseModelSpec, body: bytes) -> None:
    with pytest.raises(InvalidArtifact) as refusal:
        read(body, base)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "the body must be an object, not a list"),
        ({}, "give exactly one of `text`, `messages` and `prefix_of`"),
        ({"prefix_of": True}, "`prefix_of` must be a whole number, not true or false"),
        ({"prefix_of": 2**31}, "`prefix_of` must be at most 2147483647"),
        ({"text": ""}, "`text` must not be empty"),
        (
            {"text": "x", "golden": [{"prompt": "x", "expect": []}]},
            "`golden[0].expect` must not be empty",
        ),
        (
            {"text": "x", "golden": [{"prompt": "x", "expect": 5}]},
            "`golden[0].expect` must be a string or a list of token ids, not a number",
        ),
        ({"text": "x", "definition": {"templat": ""}}, "`definition.templat` is no field"),
        (
            {"text": "x", "definition": {"prompt": {}}},
            "leave out `definition.prompt`, which follows from `text` and `messages`",
        ),
        (
            {"prefix_of": 1, "definition": {"prompt": {"messages": [{"role": "user"}]}}},
            "`definition.prompt.messages[0].content` is missing",
        ),
    ],
)
def test_a_refusal_names_the_field_in_a_sentence(
    base: BaseModelSpec, body: object, said: str
) -> None:
    with pytest.raises(InvalidArtifact) as refusal:
        read(json.dumps(body).encode(), base)
    assert str(refusal.value).startswith(said)


def test_a_refusal_does_not_echo_the_text(base: BaseModelSpec) -> None:
    body = {"messages": [{"role": "s3cret", "content": "s3cret"}], "text": "s3cret"}

    with pytest.raises(InvalidUpload) as refusal:
        read(json.dumps(body).encode(), base)
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    "media_type", ["text/plain", "multipart/form-data; boundary=x", "x", "*/*"]
)
def test_another_media_type_is_told_which_are_taken(base: BaseModelSpec, media_type: str) -> None:
    with pytest.raises(UnsupportedMediaType) as refusal:
        read(b"{}", base, media_type)
    assert all(known in str(refusal.value) for known in formats.MEDIA_TYPES)
