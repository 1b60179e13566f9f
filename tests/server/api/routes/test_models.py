"""The models that OpenAI's clients see: the base model, tasks and their versions."""

from __future__ import annotations

import httpx
import pytest

from tests.server.fakes import push


async def test_models_are_the_base_model_and_every_task_that_answers(
    http: httpx.AsyncClient,
) -> None:
    await http.put("/tasks/empty", json={})
    await push(http, "x")

    listed = (await http.get("/v1/models")).json()

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tiny", "x"]
    assert [model["parent"] for model in listed["data"]] == [None, "tiny"]
    assert listed["data"][1]["metadata"] == {"version": 1, "description": ""}


async def test_one_model_is_described_with_its_version(http: httpx.AsyncClient) -> None:
    manifest = await push(http, "x", seed=1)
    await push(http, "x", seed=2)

    listed = (await http.get("/v1/models")).json()["data"]
    base = (await http.get("/v1/models/tiny")).json()
    active, first = [(await http.get(f"/v1/models/{name}")).json() for name in ("x", "x@1")]
    unknown = await http.get("/v1/models/nope")

    assert base == listed[0]
    assert {active[key] == listed[1][key] for key in ("id", "created", "root", "parent")} == {True}
    assert (first["id"], first["metadata"]["digest"]) == ("x@1", manifest["digest"])
    assert (active["metadata"]["version"], first["metadata"]["version"]) == (2, 1)
    assert (base["max_model_len"], active["max_model_len"]) == (256, 253)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(("model", "version"), [("x", 2), ("x@1", 1), ("x@2", 2), ("tiny", None)])
async def test_a_model_is_a_task_a_version_of_it_or_the_base_model(
    http: httpx.AsyncClient, model: str, version: int | None
) -> None:
    await push(http, "x", seed=1)
    await push(http, "x", seed=2)

    response = await http.post(
        "/v1/completions", json={"model": model, "prompt": "hi", "max_tokens": 4}
    )

    answer = response.json()
    assert response.headers.get("X-Task-Version") == (str(version) if version else None)
    assert (answer["object"], answer["model"]) == ("text_completion", model)
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 4,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    (choice,) = answer["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert len(choice["text"]) == 4


@pytest.mark.parametrize(
    "model",
    [
        "nope",
        "x@9",
        "x@0",
        "x@",
        "x@01",
        "x@+1",
        "x@1@1",
        "x@999999999",
        "x@2147483647",
        "x@99999999999",
        "../x",
        "X",
        "",
    ],
)
async def test_an_unknown_model_is_a_404_in_openais_shape(
    http: httpx.AsyncClient, model: str
) -> None:
    await push(http, "x")

    response = await http.post("/v1/completions", json={"model": model, "prompt": "hi"})

    error = response.json()["error"]
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/json"
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", "model_not_found")
