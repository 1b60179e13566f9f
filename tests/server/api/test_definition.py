"""How a prefix is asked travels with it: `foreword.json` in every tar, up and down."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from prefix_store import artifact
from prefix_store.formats import peft, tar
from server.text.tokenizer import Tokenizer
from tests.server.fakes import BASE, FakeEngine, make_prefix, push

TAR = {"Content-Type": "application/x-tar"}
TEMPLATE = "Q: {prompt}\nA:"
DEFINITION = {"template": TEMPLATE, "defaults": {"max_tokens": 7, "stop": ["\n"]}}


def folder(definition: object | None = None, golden: object | None = None) -> bytes:
    """A PEFT folder, and what is to lie beside it."""
    beside = {"foreword.json": definition, "golden.jsonl": golden}
    written = {k: json.dumps(v).encode() for k, v in beside.items() if v is not None}
    return tar.write(peft.write(make_prefix(), BASE) | written)


async def put(http: httpx.AsyncClient, task: str, body: bytes, **params: Any) -> httpx.Response:
    return await http.put(f"/tasks/{task}/prefix", content=body, headers=TAR, params=params)


async def profile(http: httpx.AsyncClient, task: str = "x") -> dict[str, Any]:
    found: dict[str, Any] = (await http.get(f"/tasks/{task}")).json()["profile"]
    return found


async def test_a_new_task_is_asked_as_its_upload_says(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    response = await put(http, "x", folder(DEFINITION))
    answer = await http.post("/generate?task=x", json={"prompt": "hi"})

    assert response.status_code == 201
    assert (await profile(http))["template"] == TEMPLATE
    assert tokenizer.decode(engine.submitted[-1][1]) == "Q: hi\nA:"
    assert answer.json()["usage"]["completion_tokens"] == 7


async def test_golden_prompts_of_a_new_task_are_asked_in_its_template(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    asked = "Q: capital?\nA:"
    engine.script = lambda prefix, ids: tokenizer.encode("Rome" if ids == right else "nonsense")
    right = tokenizer.encode(asked)
    golden = {"prompt": "capital?", "expect": "Rome"}

    with_definition = await put(http, "x", folder(DEFINITION, golden))
    without = await put(http, "y", folder(None, golden))

    assert with_definition.status_code == 201
    assert (without.status_code, without.json()["code"]) == (409, "golden_prompt_failed")


@pytest.mark.parametrize("format", ["tar", "peft"])
@pytest.mark.parametrize(
    "made_of",
    [
        {"text": "be a pirate"},
        {"messages": [{"role": "system", "content": "Be a pirate."}]},
    ],
)
@pytest.mark.parametrize(
    "profile_of_x",
    [{}, {"chat": True}, {"template": TEMPLATE, "defaults": {"stop": ["\n"], "max_tokens": 9}}],
)
async def test_a_download_uploaded_under_another_name_is_asked_alike(
    http: httpx.AsyncClient,
    engine: FakeEngine,
    format: str,
    made_of: dict[str, object],
    profile_of_x: dict[str, object],
) -> None:
    await http.put("/tasks/x", json=profile_of_x)
    first = await http.put("/tasks/x/prefix", json=made_of)
    downloaded = await http.get("/tasks/x/versions/1/prefix", params={"format": format})

    again = await put(http, "y", downloaded.content)

    assert again.status_code == 201, again.text
    assert again.json()["prompt"] == first.json()["prompt"]
    assert await profile(http, "y") == await profile(http, "x")
    if format == "tar":
        assert again.json()["digest"] == first.json()["digest"]
    engine.submitted.clear()
    for task in ("x", "y"):
        await http.post(f"/generate?task={task}", json={"prompt": "who are you?"})
    (_, asked, params), (_, asked_again, params_again) = engine.submitted
    assert (asked_again, params_again.max_tokens) == (asked, params.max_tokens)


async def test_an_artifact_without_the_messages_it_holds_is_warned_of(
    http: httpx.AsyncClient,
) -> None:
    messages = [{"role": "system", "content": "Be a pirate."}]
    await http.put("/tasks/x/prefix", json={"messages": messages})
    bare = (await http.get("/tasks/x/versions/1/prefix")).content

    response = await http.put("/tasks/y/prefix", content=bare)

    assert "chat messages" in response.json()["warning"]


async def test_a_task_without_versions_takes_the_definition_and_keeps_the_rest(
    http: httpx.AsyncClient,
) -> None:
    await http.put("/tasks/x", json={"description": "Mine.", "weight": 2.0})

    await put(http, "x", folder(DEFINITION))

    found = await profile(http)
    assert (found["template"], found["description"], found["weight"]) == (TEMPLATE, "Mine.", 2.0)
    assert found["defaults"]["max_tokens"] == 7


async def test_a_definition_without_defaults_keeps_those_of_the_same_template(
    http: httpx.AsyncClient,
) -> None:
    await put(http, "x", folder(DEFINITION))

    await put(http, "x", folder({"template": TEMPLATE}))
    kept = (await profile(http))["defaults"]["max_tokens"]
    await put(http, "x", folder({"template": "{prompt}!"}))

    assert kept == 7
    assert (await profile(http))["defaults"]["max_tokens"] is None


async def test_each_version_is_asked_by_its_own_definition(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    await put(http, "x", folder(DEFINITION))
    await put(http, "x", folder({"template": "{prompt}!"}))
    await push(http, "x")  # without a definition: as the active version

    asked = []
    for version in (1, 2, 3):
        await http.post(f"/generate?task=x&version={version}", json={"prompt": "hi"})
        asked.append(tokenizer.decode(engine.submitted[-1][1]))
    await http.post("/tasks/x/rollback")
    await http.post("/tasks/x/rollback")

    assert asked == ["Q: hi\nA:", "hi!", "hi!"]
    assert (await profile(http))["template"] == TEMPLATE
    versions = (await http.get("/tasks/x/versions")).json()["versions"]
    shown = [version["definition"]["template"] for version in versions]
    assert shown == [TEMPLATE, "{prompt}!", "{prompt}!"]


async def test_a_patched_template_makes_a_version_that_shares_the_prefix(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    first = await push(http, "x")

    patched = await http.patch("/tasks/x", json={"template": TEMPLATE, "weight": 2})
    await http.post("/generate?task=x", json={"prompt": "hi"})
    again = await http.patch("/tasks/x", json={"template": TEMPLATE})

    assert patched.json()["active_version"] == 2
    assert tokenizer.decode(engine.submitted[-1][1]) == "Q: hi\nA:"
    second = (await http.get("/tasks/x/versions/2")).json()
    assert second["digest"] == first["digest"]
    assert again.json()["num_versions"] == 2


async def test_a_patched_template_must_pass_the_golden_prompts(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    right = tokenizer.encode("Q: capital?\nA:")
    engine.script = lambda prefix, ids: tokenizer.encode("Rome" if ids == right else "nonsense")
    await put(http, "x", folder(DEFINITION, {"prompt": "capital?", "expect": "Rome"}))
    before = (await http.get("/tasks/x")).json()

    response = await http.patch("/tasks/x", json={"template": "{prompt}!", "description": "new"})

    assert (response.status_code, response.json()["code"]) == (409, "golden_prompt_failed")
    assert (await http.get("/tasks/x")).json() == before


async def test_a_template_is_not_changed_while_the_traffic_is_split(
    http: httpx.AsyncClient,
) -> None:
    await push(http, "x")
    await push(http, "x")
    await http.put("/tasks/x/traffic", json={"weights": {"1": 1, "2": 1}})

    refused = await http.patch("/tasks/x", json={"template": TEMPLATE})
    described = await http.patch("/tasks/x", json={"description": "new"})

    assert (refused.status_code, refused.json()["code"]) == (409, "traffic_split")
    assert (described.status_code, described.json()["num_versions"]) == (200, 2)


@pytest.mark.parametrize("format", ["tar", "peft"])
async def test_a_download_has_golden_prompts_and_evaluation(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, format: str
) -> None:
    engine.script = lambda prefix, ids: tokenizer.encode("Rome")
    body = {
        "text": "be brief",
        "golden": [{"prompt": "capital?", "expect": "Rome"}],
        "evaluation": {"num_examples": 3, "scores": {"accuracy": 1}},
    }
    first = (await http.put("/tasks/x/prefix", json=body)).json()
    downloaded = await http.get("/tasks/x/versions/1/prefix", params={"format": format})

    again = (await put(http, "y", downloaded.content)).json()

    for name in ("golden", "evaluation", "definition"):
        assert again[name] == first[name]


async def test_a_folder_for_another_base_model_is_refused(http: httpx.AsyncClient) -> None:
    definition = DEFINITION | {"base_model": "other", "fingerprint": "sha256:" + "0" * 64}

    response = await put(http, "x", folder(definition))

    assert (response.status_code, response.json()["code"]) == (422, "wrong_base_model")


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ([], "foreword.json"),
        ({"templat": "x"}, "templat"),
        ({"chat": "perhaps"}, "chat"),
        ({"defaults": {"max_tokens": 0}}, "defaults.max_tokens"),
        ({"prompt": {"messages": [{"role": "user", "content": ""}]}}, "a message is empty"),
        ({"prompt": {"messages": [{"role": "user", "content": "refuse me"}]}}, "not this one"),
        ({"template": "{0}"}, "plain names"),
        ({"defaults": {"regex": "("}}, "cannot be served"),
    ],
)
async def test_a_definition_that_cannot_be_served_is_refused(
    http: httpx.AsyncClient, definition: object, said: str
) -> None:
    response = await put(http, "x", folder(definition))

    assert response.status_code == 422
    assert said in response.json()["detail"]
    assert (await http.get("/tasks/x")).status_code == 404


async def test_a_tar_holds_one_prefix(http: httpx.AsyncClient) -> None:
    both = peft.write(make_prefix(), BASE) | {"prefix.safetensors": artifact.dump(make_prefix())}

    response = await put(http, "x", tar.write(both))

    assert (response.status_code, response.json()["code"]) == (422, "invalid_artifact")


@pytest.mark.parametrize("folders", [("", "x/"), ("x/", "y/"), ("x/", "")])
async def test_an_artifact_is_read_whatever_weights_lie_elsewhere_in_the_tar(
    http: httpx.AsyncClient, folders: tuple[str, str]
) -> None:
    here, elsewhere = folders
    data = artifact.dump(make_prefix())
    files = {f"{here}prefix.safetensors": data, f"{elsewhere}adapter_model.safetensors": data}

    response = await put(http, "x", tar.write(files))

    assert response.status_code == 201, response.text
