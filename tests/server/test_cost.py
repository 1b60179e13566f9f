"""How much work a request makes: a wrong one little, and every other once what it needs once."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from prefix_store.formats import text
from prefix_store.manifest import Profile
from prefix_store.registry.keys import Grant, KeyStore
from server.api.http.deps import Services
from server.api.schemas.generate import GenerateRequest
from server.api.schemas.openai import ChatRequest, CompletionRequest
from server.api.schemas.traffic import TrafficRequest
from server.engine import grammar
from server.engine.grammar import GrammarError
from server.generation.prompt import GenerateParams
from server.text import tokenizer as tokenizers
from server.text.template import Marks, Part
from server.text.tokenizer import Tokenizer
from tests.server.fakes import INFO, FakeEngine, push

MANY = 10_000
HELLO = {"role": "user", "content": "hello"}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is tokenised."""
    texts: list[str] = []
    real = tokenizers._ids

    def spy(backend: Any, text: str) -> list[int]:
        texts.append(text)
        return real(backend, text)

    monkeypatch.setattr(tokenizers, "_ids", spy)
    return texts


# --- validation ---


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (GenerateRequest, {"prompt": [-1] * MANY}),
        (GenerateRequest, {"prompt": "x", "stop": [1] * MANY}),
        (GenerateRequest, {"prompt": "x", "choice": [1] * MANY}),
        (GenerateRequest, {"prompt": "x", "rank": {"texts": [1] * MANY}}),
        (GenerateRequest, {"prompt": "x", "logit_bias": {f"x{i}": 1 for i in range(MANY)}}),
        (GenerateRequest, {"fields": {f"x{i}": 1 for i in range(MANY)}}),
        (GenerateRequest, {"messages": [1] * MANY}),
        (CompletionRequest, {"model": "a", "prompt": [-1] * MANY}),
        (CompletionRequest, {"model": "a", "prompt": [[-1] * MANY] * 64}),
        (ChatRequest, {"model": "a", "messages": [1] * MANY}),
        (ChatRequest, {"model": "a", "messages": [{"role": "user", "content": [1] * MANY}]}),
        (ChatRequest, {"model": "a", "messages": [HELLO], "guided_choice": [1] * MANY}),
        (text.JsonUpload, {"text": "x", "golden": [[]] * MANY}),
        (text.JsonUpload, {"text": "x", "golden": [{"prompt": "x", "expect": [-1] * MANY}]}),
        (text.JsonUpload, {"messages": [1] * MANY}),
        (Profile, {"golden": [1] * MANY}),
        (Profile, {"defaults": {"stop": [1] * MANY, "choice": [1] * MANY}}),
        (TrafficRequest, {"weights": {f"x{i}": 1 for i in range(MANY)}}),
        (Grant, {"name": "x", "scopes": [1] * MANY, "tasks": [1] * MANY}),
    ],
    ids=range(19),
)
def test_validation_ends_at_the_first_wrong_item(
    model: type[BaseModel], body: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)

    assert caught.value.error_count() <= 4


async def test_a_body_of_too_many_values_is_refused_and_said_to_be(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefix_store.strict_json.MAX_VALUES", 100)
    body = {"prompt": "x", "stop": ["a"] * 100}

    response = await http.post("/generate", json=body)

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert "100 texts, lists and objects" in response.json()["detail"]


def test_no_more_of_a_schema_is_written_than_may_be_compiled() -> None:
    never_reached = object()  # which JSON cannot write
    schema = {"enum": ["x" * grammar.MAX_GRAMMAR_BYTES, never_reached]}

    with pytest.raises(GrammarError, match="longer than 64 KiB"):
        grammar.from_json_schema(schema)
    with pytest.raises(GrammarError, match="longer than 64 KiB"):
        grammar.from_texts(["x" * 4096] * 1000)


# --- tokenising ---


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "x" * 1000}),
        ("/generate", {"prompt": "x" * 1000, "rank": {"texts": ["a", "b"]}}),
        ("/generate", {"messages": [HELLO] * 60}),
        ("/v1/completions", {"model": "tiny", "prompt": "x" * 1000, "n": 4}),
    ],
    ids=range(4),
)
async def test_a_text_that_cannot_fit_is_not_tokenised(
    http: httpx.AsyncClient,
    encoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: Tokenizer,
    path: str,
    body: dict[str, Any],
) -> None:
    monkeypatch.setattr(tokenizer, "_max_token_size", 1)  # special tokens are the longest there
    encoded.clear()

    response = await http.post(path, json=body)

    assert "at least" in response.text
    assert "the context holds 256" in response.text
    assert "prompt_too_long" in response.text or "context_length_exceeded" in response.text
    assert encoded == []


async def test_a_text_that_no_prefix_can_hold_is_not_tokenised(
    http: httpx.AsyncClient, encoded: list[str], tokenizer: Tokenizer
) -> None:
    await http.put("/tasks/a", json={})
    encoded.clear()

    response = await http.post("/tasks/a/versions", json={"text": "x" * 5000})

    assert (response.status_code, response.json()["code"]) == (422, "prefix_too_long")
    assert encoded == []


@pytest.mark.parametrize("text", ["", "x", "é€😀" * 50, "<|im_end|>" * 20, " \n\t" * 30])
def test_no_text_has_fewer_tokens_than_is_said(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.least_tokens([text]) <= len(tokenizer.encode(text))
    assert tokenizer.least_tokens(["x" * 1000, "y" * 1000]) >= 2000 // len("<|im_start|>")


async def test_the_choices_of_an_answer_share_their_prompt(
    http: httpx.AsyncClient, engine: FakeEngine, encoded: list[str]
) -> None:
    body = {"model": "tiny", "prompt": ["hello", "other"], "n": 2, "seed": 7, "max_tokens": 1}

    response = await http.post("/v1/completions", json=body)

    assert response.status_code == 200, response.text
    assert sorted(encoded) == ["hello", "other"]
    assert [sampling.seed for _, _, sampling in engine.submitted] == [7, 8, 7, 8]


async def test_choices_without_a_seed_differ_in_it(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "n": 4})

    assert len({sampling.seed for _, _, sampling in engine.submitted}) == 4


async def test_a_prompt_that_is_too_long_is_not_tokenised_with_every_choice(
    http: httpx.AsyncClient, encoded: list[str]
) -> None:
    response = await http.post(
        "/generate",
        json={"prompt": "x" * INFO.max_model_len + "x", "rank": {"texts": ["a", "b", "c"]}},
    )

    assert response.json()["code"] == "prompt_too_long"
    assert len(encoded) == 1


def test_a_chat_is_rendered_once_for_all_that_may_come_behind_it(
    tokenizer: Tokenizer, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_rendered = 0
    render = Tokenizer._render

    def count(self: Tokenizer, *args: Any, **kwargs: Any) -> str:
        nonlocal num_rendered
        num_rendered += 1
        return render(self, *args, **kwargs)

    monkeypatch.setattr(Tokenizer, "_render", count)
    messages = [{"role": "user", "content": f"<|im_end|> {i}"} for i in range(100)]

    alone = [Tokenizer.encode_chat(tokenizer, messages, then=then) for then in ("", "a", " b")]

    assert num_rendered == 2  # as it is, and with marks
    assert len(encoded) < 2 * len(messages) + 20
    prompt, *wholes = alone
    assert wholes == [prompt + tokenizer.encode(then) for then in ("a", " b")]


def test_a_chat_that_changed_is_rendered_again(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode_chat([HELLO])
    other = tokenizer.encode_chat([HELLO | {"content": "other"}])
    system = tokenizer.encode_chat([HELLO], after=[{"role": "system", "content": "x"}])

    assert tokenizer.encode_chat([HELLO]) == first
    assert len({tuple(first), tuple(other), tuple(system)}) == 3


def test_a_template_is_cut_at_every_mark_in_one_pass() -> None:
    marks = Marks()
    contents = [" a ", "0" * 40, "", "b" * 32]
    stand_ins = [marks.mark(content) for content in contents]

    parts = marks.cut("<s>" + "\n".join(stand_ins) + stand_ins[0].strip())

    assert "".join(part.text for part in parts) == "<s>" + "\n".join(contents) + "a"
    untrusted = [Part("a", False), Part("0" * 40, False), Part("b" * 32, False), Part("a", False)]
    assert [part for part in parts if not part.trusted] == untrusted


def test_other_threads_run_while_a_text_is_tokenised(tokenizer: Tokenizer) -> None:
    is_done = threading.Event()
    num_turns = 0

    def take_turns() -> None:
        nonlocal num_turns
        while not is_done.is_set():
            time.sleep(0.001)
            num_turns += 1

    thread = threading.Thread(target=take_turns)
    thread.start()
    before = num_turns
    tokenizers._ids(tokenizer._strict, "x" * 500_000)
    during = num_turns - before
    is_done.set()
    thread.join()

    assert during >= 5


# --- threads ---


async def test_health_and_keys_do_not_wait_for_requests(
    http: httpx.AsyncClient, services: Services, keys: KeyStore
) -> None:
    await push(http, "a")
    _, key = keys.create(Grant(name="app", scopes=("read", "admin")))
    may_end = threading.Event()
    busy = [services.store.request_executor.submit(may_end.wait, 30) for _ in range(8)]
    try:
        async with asyncio.timeout(10):
            ready = await http.get("/readyz")
            read = await http.get("/tasks/a", headers={"Authorization": f"Bearer {key}"})
    finally:
        may_end.set()

    assert (ready.status_code, read.status_code) == (200, 200)
    assert all(future.result() for future in busy)


async def test_what_waits_for_a_thread_is_not_begun_once_its_client_has_left(
    services: Services, encoded: list[str]
) -> None:
    may_end = threading.Event()
    busy = [services.store.request_executor.submit(may_end.wait, 30) for _ in range(4)]

    admitted = asyncio.create_task(services.router.admit(None, None, GenerateParams(prompt="x")))
    await asyncio.sleep(0.05)
    admitted.cancel()
    await asyncio.wait({admitted})
    may_end.set()
    await services.run_for_request(busy[-1].result)

    assert admitted.cancelled()
    assert encoded == []
