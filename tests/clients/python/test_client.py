"""Every case runs on the sync and on the async client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from foreword_client import (
    Client,
    ConnectionLostError,
    ForewordError,
    NoServerError,
    OverloadedError,
    PreconditionFailedError,
    ServerFailureError,
    SetupError,
    TimedOutError,
    UnexpectedAnswerError,
    UnknownTaskError,
)
from tests.clients.python.fake_foreword import manifest

Connect = Callable[..., Any]


class Script:
    """Answers in turn, and remembers the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.requests: list[httpx.Request] = []
        self._answers = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _refusal(status: int, code: str, **headers: str) -> httpx.Response:
    told = {"title": "T", "status": status, "detail": "why", "code": code, "request_id": "r1"}
    return httpx.Response(status, json=told, headers=headers)


def test_generate_sends_what_was_said_and_nothing_else(
    connect: Connect, ending: dict[str, Any]
) -> None:
    script = Script(httpx.Response(200, json=ending | {"text": "hello"}))

    answer = connect(script).generate("hi", task="x", version=3, max_tokens=5, seed=None, stop="\n")

    (request,) = script.requests
    assert (request.method, str(request.url.copy_with(host="h"))) == (
        "POST",
        "http://h/generate?task=x&version=3",
    )
    assert json.loads(request.content) == {"prompt": "hi", "max_tokens": 5, "stop": "\n"}
    assert request.headers["content-type"] == "application/json"
    assert request.headers["content-length"] == str(len(request.content))
    assert (answer.text, answer.version, answer.usage.prefix_tokens) == ("hello", 3, 20)


def test_no_task_is_the_base_model(connect: Connect, ending: dict[str, Any]) -> None:
    nobody = {"task": None, "version": None, "digest": None}
    script = Script(httpx.Response(200, json=ending | nobody | {"text": ""}))
    messages = [{"role": "user", "content": "hi"}]

    answer = connect(script).generate(messages=messages, return_token_ids=True)

    assert script.requests[0].url.query == b""
    assert json.loads(script.requests[0].content) == {
        "messages": messages,
        "return_token_ids": True,
    }
    assert answer.task is None


def test_an_option_that_does_not_exist_is_named(connect: Connect) -> None:
    client = connect(Script())

    with pytest.raises(TypeError, match="max_token'"):
        client.generate("hi", max_token=3)
    with pytest.raises(TypeError, match="'temperature'"):
        client.update_task("x", temperature=3)


def test_a_name_stays_one_segment_of_the_path(connect: Connect) -> None:
    script = Script(_refusal(404, "unknown_task"))

    with pytest.raises(UnknownTaskError):
        connect(script).versions("a/../b?c")

    assert script.requests[0].url.raw_path == b"/tasks/a%2F..%2Fb%3Fc/versions"


def test_a_base_url_may_have_a_path(connect: Connect) -> None:
    paths: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(200, json={})

    with Client("http://h/llm/", transport=httpx.MockTransport(answer)) as client:
        assert client.is_ready()

    assert paths == ["/llm/readyz"]


def test_a_refusal_is_an_error_with_all_its_parts(connect: Connect) -> None:
    client = connect(Script(_refusal(404, "unknown_task")))

    with pytest.raises(UnknownTaskError, match="why") as caught:
        client.generate("hi", task="x")

    assert (caught.value.status, caught.value.code) == (404, "unknown_task")
    assert (caught.value.title, caught.value.request_id) == ("T", "r1")


@pytest.mark.parametrize(
    "body", [b"<html>", b"[1]", b'{"detail": 3}', b"", b'{"code": null}', b"\xff"]
)
def test_what_a_proxy_says_is_an_error_all_the_same(connect: Connect, body: bytes) -> None:
    client = connect(Script(httpx.Response(502, content=body)))

    with pytest.raises(ServerFailureError, match="502 Bad Gateway") as caught:
        client.info()

    assert caught.value.code == "unknown"


def test_a_response_that_is_not_forewords_is_an_error_of_its_own(connect: Connect) -> None:
    client = connect(Script(*[httpx.Response(200, text="<html>")] * 2))

    with pytest.raises(UnexpectedAnswerError, match="Info"):
        client.info()
    with pytest.raises(UnexpectedAnswerError, match="stream"):
        next(client.stream("hi"))


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ReadError("gone"), ConnectionLostError),
        (httpx.RemoteProtocolError("what"), ConnectionLostError),
        (httpx.ReadTimeout("late"), TimedOutError),
        (httpx.ConnectError("refused"), NoServerError),
    ],
)
def test_a_failure_of_the_connection_is_one_of_ours(
    connect: Connect, failure: Exception, kind: type[ForewordError]
) -> None:
    with pytest.raises(kind, match=r"http://foreword\.test"):
        connect(Script(failure), max_retries=0).info()


def test_generate_waits_as_long_as_the_server_asks_and_tries_again(
    connect: Connect, ending: dict[str, Any]
) -> None:
    busy = [_refusal(429, "overloaded", **{"Retry-After": "0"}) for _ in range(2)]
    script = Script(*busy, httpx.Response(200, json=ending | {"text": "at last"}))

    assert connect(script).generate("hi").text == "at last"
    assert [json.loads(r.content) for r in script.requests] == [{"prompt": "hi"}] * 3


def test_patience_has_an_end(connect: Connect) -> None:
    script = Script(*[_refusal(429, "overloaded", **{"Retry-After": "0"}) for _ in range(9)])

    with pytest.raises(OverloadedError):
        connect(script, max_retries=3).generate("hi")

    assert len(script.requests) == 4


def test_an_upload_is_sent_again_under_the_same_key(connect: Connect, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"w" * 100)
    lost = httpx.ReadError("lost")
    done = [httpx.Response(200, json=manifest("x", number)) for number in (1, 2)]
    script = Script(httpx.ConnectError("refused"), lost, *done)
    client = connect(script)

    assert client.push("x", weights, activate=False).version == 1
    assert client.push("x", weights, activate=False).version == 2

    assert [request.content for request in script.requests] == [b"w" * 100] * 4
    first, second, third, other = (r.headers["Idempotency-Key"] for r in script.requests)
    assert first == second == third != other


def test_a_change_can_be_meant_for_one_revision(connect: Connect) -> None:
    script = Script(_refusal(412, "precondition_failed"))

    with pytest.raises(PreconditionFailedError):
        connect(script).activate("x", 1, if_match=7)

    assert script.requests[0].headers["If-Match"] == '"7"'


@pytest.mark.parametrize(
    ("call", "repeats"),
    [
        (lambda client: client.create_key("x", ["read"]), False),
        (lambda client: client.rollback("x", if_match=1), True),
        (lambda client: client.delete_task("x"), True),
        (lambda client: client.delete_version("x", 1), True),
        (lambda client: client.set_traffic("x", {1: 1, 2: 1}, if_match=1), True),
        (lambda client: client.push("x", text="t", activate=False), True),
        (lambda client: client.activate("x", 1, if_match=1), True),
        (lambda client: client.tasks(), True),
        (lambda client: client.download("x", 1), True),
        (lambda client: next(client.stream("hi")), True),
    ],
)
def test_only_what_does_no_harm_twice_is_tried_twice(
    connect: Connect, call: Callable[[Any], Any], repeats: bool
) -> None:
    script = Script(*[_refusal(503, "draining", **{"Retry-After": "0"}) for _ in range(3)])

    with pytest.raises(ServerFailureError):
        call(connect(script))

    assert len(script.requests) == (3 if repeats else 1)


def test_a_download_that_is_not_what_its_digest_says_is_refused(connect: Connect) -> None:
    named = {"X-Prefix-Digest": "sha256:" + hashlib.sha256(b"whole").hexdigest()}
    script = Script(*(httpx.Response(200, content=c, headers=named) for c in (b"whole", b"rotten")))
    client = connect(script)

    assert client.download("x", 1) == b"whole"
    with pytest.raises(UnexpectedAnswerError, match="digest"):
        client.download("x", 1)


def test_readiness_is_returned_not_raised(connect: Connect) -> None:
    for answer, expected in (
        (httpx.Response(200, json={"status": "ok"}), True),
        (httpx.Response(503, json={"status": "unavailable"}), False),
        (httpx.ReadTimeout("late"), False),
        (httpx.ConnectError("refused"), False),
    ):
        assert connect(Script(answer), max_retries=0).is_ready() is expected


def test_the_key_is_sent_and_never_shown(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(*[httpx.Response(200, json={})] * 2, httpx.LocalProtocolError("Bearer s3cret"))
    monkeypatch.setenv("FOREWORD_API_KEY", "from-outside\n")

    connect(script, api_key="s3cret").is_ready()
    connect(script).is_ready()
    with pytest.raises(ConnectionLostError) as lost:
        connect(script, api_key="s3cret").info()
    told = str(lost.value)
    for bad in ("s3cret\nX-Evil:1", "s3crét", "s3cret key"):
        with pytest.raises(SetupError) as refused:
            connect(script, api_key=bad)
        told += str(refused.value)

    keys = [request.headers["authorization"] for request in script.requests]
    assert keys == ["Bearer s3cret", "Bearer from-outside", "Bearer s3cret"]
    assert "s3cret" not in told
