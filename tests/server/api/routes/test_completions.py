"""`/v1/completions`: prompts, choices, streams, log-probabilities."""

from __future__ import annotations

import httpx
import pytest

from server.text.tokenizer import Tokenizer
from tests.server.api.routes.openai_chunks import chunks
from tests.server.fakes import FakeEngine


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", ["ab"]),
        ([1, 2], [[1, 2]]),
        (["ab", "c"], ["ab", "c"]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
async def test_prompts_are_text_or_token_ids_one_or_several(
    http: httpx.AsyncClient,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    prompt: object,
    prompts: list[str | list[int]],
) -> None:
    response = await http.post("/v1/completions", json={"model": "tiny", "prompt": prompt})

    ids = [tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
    assert [token_ids for _, token_ids, _ in engine.submitted] == ids
    assert [c["index"] for c in response.json()["choices"]] == list(range(len(prompts)))


@pytest.mark.parametrize("prompt", ["hi", ["hi", "ho", "hu"]])
async def test_a_stream_of_completions_is_the_whole_answer_in_chunks(
    http: httpx.AsyncClient, prompt: object
) -> None:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 5}
    options = {"stream": True, "stream_options": {"include_usage": True}}

    whole = (await http.post("/v1/completions", json=body)).json()
    *pieces, last = chunks((await http.post("/v1/completions", json=body | options)).text)

    for choice in whole["choices"]:
        mine = [p["choices"][0] for p in pieces if p["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        assert [piece["finish_reason"] for piece in mine] == [None] * 4 + ["length"]
    assert all(piece["usage"] is None for piece in pieces)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


async def test_a_stream_without_usage_does_not_mention_it(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "hi", "stream": True}

    pieces = chunks((await http.post("/v1/completions", json=body)).text)

    assert all("usage" not in piece for piece in pieces)


async def test_logprobs_of_a_completion_are_lined_up_with_its_tokens(
    http: httpx.AsyncClient,
) -> None:
    body = {"model": "tiny", "prompt": "hiya", "max_tokens": 3, "logprobs": 2}

    [plain] = (await http.post("/v1/completions", json=body)).json()["choices"]
    [echoed] = (await http.post("/v1/completions", json=body | {"echo": True})).json()["choices"]
    [alone] = (
        await http.post("/v1/completions", json=body | {"echo": True, "max_tokens": 0})
    ).json()["choices"]

    logprobs = echoed["logprobs"]
    assert plain["logprobs"]["tokens"] == list(plain["text"])
    assert plain["logprobs"]["token_logprobs"] == [-0.5] * 3
    assert [set(top.values()) for top in plain["logprobs"]["top_logprobs"]] == [{-0.5, -1.0}] * 3
    assert plain["logprobs"]["text_offset"] == [0, 1, 2]
    assert echoed["text"] == "hiya" + plain["text"]
    assert logprobs["tokens"] == list(echoed["text"])
    assert logprobs["token_logprobs"] == [None] + [-0.5] * 6
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == list(range(7))
    assert (alone["text"], alone["finish_reason"]) == ("hiya", "length")
    assert alone["logprobs"]["token_logprobs"] == [None] + [-0.5] * 3


async def test_offsets_count_characters_and_not_tokens(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    token_ids = tokenizer.encode("\N{GIRL}ok", add_special_tokens=False)
    engine.script = lambda digest, prompt: token_ids
    body = {"model": "tiny", "prompt": "hi", "max_tokens": len(token_ids), "logprobs": 0}

    [choice] = (await http.post("/v1/completions", json=body)).json()["choices"]

    offsets = choice["logprobs"]["text_offset"]
    assert offsets[:1] + offsets[4:] == [0, 1, 2]  # the emoji is four tokens
    assert choice["text"][offsets[4] :] == "ok"


async def test_tokens_are_named_by_their_ids_on_request(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {
        "model": "tiny", "prompt": [1, 2], "max_tokens": 2, "logprobs": 0,
        "return_tokens_as_token_ids": True, "return_token_ids": True,
    }  # fmt: skip

    [choice] = (await http.post("/v1/completions", json=body)).json()["choices"]

    assert choice["prompt_token_ids"] == [1, 2]
    names = [f"token_id:{i}" for i in choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == names
    assert [list(top) for top in choice["logprobs"]["top_logprobs"]] == [[name] for name in names]


@pytest.mark.parametrize("extra", [{}, {"echo": True}, {"n": 3}, {"return_token_ids": True}])
async def test_a_stream_with_logprobs_is_the_whole_answer_in_chunks(
    http: httpx.AsyncClient, extra: dict[str, object]
) -> None:
    body = {"model": "tiny", "prompt": ["hiya", "ho"], "max_tokens": 4, "logprobs": 1} | extra

    whole = (await http.post("/v1/completions", json=body)).json()["choices"]
    pieces = chunks((await http.post("/v1/completions", json=body | {"stream": True})).text)

    for choice in whole:
        mine = [p["choices"][0] for p in pieces if p["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        for name, column in choice["logprobs"].items():
            assert [x for piece in mine for x in piece["logprobs"][name]] == column, name
        if "return_token_ids" in extra:
            assert [i for piece in mine for i in piece["token_ids"]] == choice["token_ids"]
            first, *rest = [piece["prompt_token_ids"] for piece in mine]
            assert (first, set(rest)) == (choice["prompt_token_ids"], {None})


@pytest.mark.parametrize("seed", [None, 7])
async def test_several_choices_of_a_prompt_have_seeds_of_their_own(
    http: httpx.AsyncClient, engine: FakeEngine, seed: int | None
) -> None:
    body = {"model": "tiny", "prompt": ["hi", "hoho"], "n": 3, "max_tokens": 2, "seed": seed}

    answer = (await http.post("/v1/completions", json=body)).json()
    prompts = [token_ids for _, token_ids, _ in engine.submitted]
    seeds = [sampling.seed for _, _, sampling in engine.submitted]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "n": 2}
    streamed = chunks((await http.post("/v1/chat/completions", json=chat | {"stream": True})).text)

    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [len(prompt) for prompt in prompts] == [2, 2, 2, 4, 4, 4]
    assert len(set(seeds)) == (6 if seed is None else 3)
    assert seeds[:3] == [7, 8, 9] or seed is None
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (6, 12)
    openings = [p["choices"][0] for p in streamed if "role" in p["choices"][0]["delta"]]
    assert [opening["index"] for opening in openings] == [0, 1]


async def test_usage_is_in_every_chunk_on_request(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.delay_s = 0.01
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 3, "stream": True}

    pieces = chunks(
        (await http.post("/v1/completions", json=body | {"stream_options": options})).text
    )

    assert [piece["usage"]["completion_tokens"] for piece in pieces] == [1, 2, 3, 3]
    assert (pieces[-1]["choices"], pieces[-1]["usage"]["prompt_tokens"]) == ([], 2)


async def test_stop_strings_wait_for_the_least_number_of_tokens(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    engine.script = lambda prefix, token_ids: tokenizer.encode("a.b.c.d")
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 9, "stop": "."}

    async def text(**fields: int) -> str:
        answer = await http.post("/v1/completions", json=body | fields)
        return str(answer.json()["choices"][0]["text"])

    assert [await text(min_tokens=n) for n in (0, 1, 2, 4, 6)] == [
        "a", "a", "a.b", "a.b.c", "a.b.c.d",
    ]  # fmt: skip
