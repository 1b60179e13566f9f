"""Inputs grown towards cost: hypothesis looks for the most expensive one, not for variety.

Cost is processor time of the thread, in units of what the same function takes for plain input of
the largest size. An input that costs many times as much is a loop without a bound.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings, target
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from prefix_store import reference, strict_json, wording
from prefix_store.errors import PrefixStoreError
from prefix_store.formats import text
from prefix_store.manifest import Profile
from prefix_store.registry.keys import Grant
from server.api.schemas.generate import GenerateRequest
from server.api.schemas.logprobs import of_chat, of_completion, plain, scored
from server.api.schemas.openai import ChatRequest, CompletionRequest
from server.api.schemas.traffic import TrafficRequest
from server.engine.grammar import GrammarError
from server.errors import ServerError
from server.generation.constraint import Constraint
from server.generation.prompt import GenerateParams, PromptContext, prepare
from server.text import template
from server.text.detokenizer import StopStrings
from server.text.tokenizer import Tokenizer
from tests.server.fakes import INFO, make_transformers_tokenizer, make_vocabulary
from tests.server.scores import fake_scores

SIZE = 32 << 10
"""Bytes of an input, about."""
_EXPENSIVE = 40.0
grow = settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate, Phase.target],
    suppress_health_check=list(HealthCheck),
)
REFUSALS = (ServerError, PrefixStoreError, GrammarError, ValueError)


def spent_s(work: Callable[[], object]) -> float:
    started_s = time.thread_time()
    with contextlib.suppress(*REFUSALS):
        work()
    return time.thread_time() - started_s


@cache
def unit_s() -> float:
    """What strict parsing of an input of this size takes."""
    raw = b"[%b1]" % (b"1," * (SIZE // 2))
    return min(spent_s(lambda: strict_json.parse(raw)) for _ in range(5))


def check(work: Callable[[], object], most: float = _EXPENSIVE) -> None:
    """Aim at the cost of `work`; it must stay within `most` units."""
    units = spent_s(work) / unit_s()
    if units > most:  # once more: this thread may have shared its core
        units = min(units, *(spent_s(work) / unit_s() for _ in range(2)))
    target(min(units, 1e6))
    assert units <= most


def full(pieces: list[str]) -> str:
    """The pieces, repeated to the size of an input."""
    whole = "".join(pieces) or "x"
    return (whole * (SIZE // len(whole) + 1))[:SIZE]


PIECES = st.lists(
    st.sampled_from(
        ["a", " ", "\n", "{", "}", "[", "]", '"', ",", ":", "\\", "\\u0041", "0", "1e9", "é", "😀",
         "<|im_end|>", "<|im_start|>", "<s>", "<", "|", "{prompt}", "{a}", "{{", "null", "*", "?"]
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip
TEXT = PIECES.map(full)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["", "x", "a" * 99])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["type", "text", "content", "role", "a", "x"]), inner, max_size=4
        ),
        st.tuples(inner, st.sampled_from([10, 200])).map(lambda pair: [pair[0]] * pair[1]),
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(make_transformers_tokenizer())


@grow
@given(whole=TEXT)
def test_json(whole: str) -> None:
    check(lambda: strict_json.parse(whole.encode()))


@pytest.mark.parametrize(
    "model",
    [
        GenerateRequest,
        CompletionRequest,
        ChatRequest,
        text.JsonUpload,
        Profile,
        TrafficRequest,
        Grant,
    ],
    ids=lambda model: model.__name__,
)
@settings(grow, max_examples=25)
@given(data=st.data())
def test_bodies(model: type[BaseModel], data: st.DataObject) -> None:
    """A valid body with any JSON, often a long list, in some of its fields."""
    fields = st.sampled_from([*model.model_fields, "y" * 5000])
    body = {"model": "tiny"} | data.draw(st.dictionaries(fields, JSON, max_size=4))

    def validate() -> None:
        try:
            whole = model.model_validate(body)
        except ValidationError as exc:
            raise ValueError(wording.first(exc)) from None
        if isinstance(whole, CompletionRequest | ChatRequest | GenerateRequest):
            whole.params()

    check(validate)


@grow
@given(
    pieces=PIECES,
    kind=st.sampled_from(["prompt", "messages", "template", "chat"]),
    size=st.integers(1, 400),
)
def test_prompts(tokenizer: Tokenizer, pieces: list[str], kind: str, size: int) -> None:
    whole = ("".join(pieces) * 50)[:size]
    info = msgspec.structs.replace(INFO, max_model_len=8192)
    context = PromptContext(is_base=True)
    params = GenerateParams(prompt=full(pieces)[:8000])
    if kind == "messages":
        params = GenerateParams(
            messages=[{"role": "user", "content": whole}] * (8000 // (size + 20))
        )
    if kind in ("template", "chat"):
        definition = context.definition.model_copy(
            update={"template": "{a}" * 1000, "chat": kind == "chat"}
        )
        context = PromptContext(definition=definition)
        params = GenerateParams(fields={"a": whole * 8})

    check(lambda: prepare(params, context, tokenizer=tokenizer, info=info))


@grow
@given(whole=TEXT)
def test_templates(whole: str) -> None:
    check(lambda: template.fill(whole, "x", {"a": "x"}))


@grow
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=16),
    times=st.integers(1, 32),
    piece=st.text("abc", min_size=1, max_size=8),
)
def test_stop_strings(stops: list[str], times: int, piece: str) -> None:
    """Sixteen of 256 characters, and a text that nearly is one again and again."""
    cutter = StopStrings([(stop * times)[:255] + "z" for stop in stops])
    answer = (piece * 4000)[:4000]

    check(lambda: [cutter.push(char) for char in answer])


@grow
@given(globs=st.lists(st.text("a*?", min_size=1, max_size=63), min_size=1, max_size=100))
def test_globs(globs: list[str]) -> None:
    re.purge()

    check(lambda: reference.matches(globs, "a" * 62 + "b"))


@settings(grow, max_examples=25)
@given(
    regex=st.recursive(
        st.sampled_from(["a", ".", "[a-z]", r"\w", "(a|b)"]),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{9}", "{1,99}"])).map(
                lambda two: f"({two[0]}){two[1]}"
            ),
        ),
        max_leaves=10,
    )
)
def test_regular_expressions(regex: str) -> None:
    """What is compiled in the engine too, within the limits of the compiler."""
    vocabulary = make_vocabulary()

    def compile_regex() -> None:
        grammar = Constraint(regex=regex).grammar()
        assert grammar is not None
        vocabulary.compile(grammar)

    check(compile_regex, most=200)


@settings(grow, max_examples=20)
@given(schema=JSON.map(lambda value: {"anyOf": [value], "properties": {"a": value}}))
def test_schemas_are_written_in_time(schema: dict[str, Any]) -> None:
    check(lambda: Constraint(json_schema=json.loads(json.dumps(schema))).grammar())


@pytest.mark.parametrize("write", [plain, of_completion, of_chat])
def test_scores_are_written_in_time_that_grows_with_their_number(
    tokenizer: Tokenizer, write: Callable[..., Any]
) -> None:
    more = {} if write is plain else {"offset": 0, "as_ids": False}

    def answer(num_tokens: int) -> float:
        ids = [i % 256 for i in range(num_tokens)]
        tokens = scored(ids, fake_scores(ids, 20))
        return min(spent_s(lambda: write(tokens, tokenizer, **more)) for _ in range(3))

    assert answer(4000) < 20 * answer(500)  # eight times as much if linear


def test_a_loop_without_a_bound_is_found() -> None:
    pieces = ["x" * 100] * 20_000

    def quadratic() -> None:
        row = [""]
        for piece in pieces:
            row[-1] += piece

    assert spent_s(quadratic) > _EXPENSIVE * unit_s()
    assert spent_s(lambda: "".join(pieces)) < _EXPENSIVE * unit_s()
