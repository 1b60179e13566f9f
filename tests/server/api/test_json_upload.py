"""JSON uploads: the definition beside a text, and a version from the prefix of another one."""

from __future__ import annotations

import httpx
import pytest

from prefix_store import artifact
from server.text.tokenizer import Tokenizer
from tests.server.fakes import ARTIFACT, FakeEngine, make_prefix, push

TEMPLATE = "Q: {prompt}\nA:"
DEFINITION = {"template": TEMPLATE, "defaults": {"max_tokens": 7, "stop": ["\n"]}}


async def test_a_json_upload_carries_the_whole_definition(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    engine.script = lambda prefix, ids: tokenizer.encode("Rome")
    body = {
        "text": "be brief",
        "definition": DEFINITION,
        "golden": [{"prompt": "capital?", "expect": "Rome"}],
        "evaluation": {"num_examples": 3, "scores": {"accuracy": 1}},
    }

    response = await http.put("/tasks/x/prefix", json=body)

    made = response.json()
    assert response.status_code == 201
    assert (made["definition"]["template"], made["evaluation"]["num_examples"]) == (TEMPLATE, 3)
    assert made["definition"]["prompt"] == {"add_special_tokens": False, "messages": None}
    assert (await http.get("/tasks/x")).json()["profile"]["defaults"]["max_tokens"] == 7


async def test_a_version_is_made_from_the_prefix_of_another_one(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    engine.script = lambda prefix, ids: tokenizer.encode("Rome")
    scores = {"evaluation": {"num_examples": 3, "scores": {"accuracy": 1}}}
    golden = [{"prompt": "capital?", "expect": "Rome"}]
    await http.put("/tasks/x/prefix", json={"text": "be brief", "golden": golden} | scores)
    body = {"prefix_of": 1, "definition": DEFINITION}

    second = await http.post("/tasks/x/versions", json=body)
    missing = await http.post("/tasks/x/versions", json=body | {"prefix_of": 7})

    made, first = second.json(), (await http.get("/tasks/x/versions/1")).json()
    assert (second.status_code, made["active"]) == (201, False)
    assert (made["digest"], made["golden"]) == (first["digest"], first["golden"])
    assert (made["definition"]["template"], made["evaluation"]) == (TEMPLATE, None)
    assert made["definition"]["prompt"] == first["definition"]["prompt"]
    assert first["definition"]["template"] is None
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_version")


@pytest.mark.parametrize(
    "body",
    [
        {"text": "x", "prefix_of": 1},
        {"prefix_of": 0},
        {"definition": DEFINITION},
        {"text": "x", "definition": {"prompt": {"add_special_tokens": True}}},
        {"text": "x", "definition": {"templat": "x"}},
    ],
)
async def test_a_json_upload_that_contradicts_itself_is_refused(
    http: httpx.AsyncClient, body: dict[str, object]
) -> None:
    await push(http, "x")

    response = await http.post("/tasks/x/versions", json=body)

    assert (response.status_code, response.json()["code"]) == (422, "invalid_artifact")


async def test_a_prefix_stays_loaded_while_another_version_has_it(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    first = await push(http, "x")
    await http.patch("/tasks/x", json={"template": TEMPLATE})

    await http.delete("/tasks/x/versions/1")
    shared = list(engine.unloaded)
    await http.delete("/tasks/x")

    assert (shared, [str(digest) for digest in engine.unloaded]) == ([], [first["digest"]])


async def test_a_refused_upload_does_not_evict_the_prefix_of_the_active_version(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await push(http, "x")
    await http.patch("/tasks/x", json={"golden": [{"prompt": "capital?", "expect": "Rome"}]})
    engine.script = lambda prefix, ids: [1]

    body = artifact.dump(make_prefix())
    refused = await http.put("/tasks/x/prefix", content=body, headers=ARTIFACT)

    assert (refused.status_code, engine.unloaded) == (409, [])


async def test_a_version_of_a_text_that_is_used_again_adds_no_second_special_tokens(
    http: httpx.AsyncClient,
) -> None:
    await http.put("/tasks/x/prefix", json={"text": "be brief"})

    made = await http.post("/tasks/x/versions", json={"prefix_of": 1, "definition": {"prompt": {}}})

    assert made.json()["definition"]["prompt"]["add_special_tokens"] is False


async def test_messages_that_a_definition_lacks_can_be_given_later(http: httpx.AsyncClient) -> None:
    messages = [{"role": "system", "content": "be brief"}]
    await http.put("/tasks/x/prefix", json={"messages": messages})
    bare = (await http.get("/tasks/x/versions/1/prefix")).content
    without = await http.post("/tasks/x/versions", content=bare, headers=ARTIFACT)
    body = {"prefix_of": 2, "definition": {"prompt": {"messages": messages}}}

    repaired = await http.post("/tasks/x/versions", json=body)
    broken = await http.post(
        "/tasks/x/versions", json={"prefix_of": 1, "definition": {"prompt": {}}}
    )

    assert "chat messages" in without.json()["warning"]
    assert repaired.json()["warning"] is None
    assert "chat messages" in broken.json()["warning"]
