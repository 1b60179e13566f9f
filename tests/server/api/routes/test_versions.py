from __future__ import annotations

import io
import tarfile

import httpx
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save

from prefix_store import artifact
from prefix_store.digest import Digest
from server.errors import PrefixUnavailable
from server.text.tokenizer import Tokenizer
from tests.server.fakes import ARTIFACT, INFO, FakeEngine, make_prefix, push

JSON = {"Content-Type": "application/json"}


async def test_the_short_way_creates_verifies_and_activates(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = artifact.dump(make_prefix())

    new = await http.put("/tasks/x/prefix", content=body, headers=ARTIFACT)
    again = await http.put("/tasks/x/prefix", content=body, headers=ARTIFACT)

    assert (new.status_code, again.status_code) == (201, 200)
    manifest = new.json()
    assert (manifest["task"], manifest["version"], manifest["active"]) == ("x", 1, True)
    assert (manifest["num_virtual_tokens"], manifest["position_offset"]) == (3, 3)
    assert manifest["base_model"] == "tiny"
    assert manifest["source_digest"] == str(Digest.of(body))
    assert all(check["passed"] for check in manifest["verification"])
    assert {check["name"] for check in manifest["verification"]} == (
        {"format", "base_model", "shapes", "finite_values", "norms", "forward", "effect"}
    )
    assert str(engine.loaded[0]) == manifest["digest"]
    assert again.json()["version"] == 2


async def test_a_version_waits_until_it_is_activated(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await http.put("/tasks/x", json={})
    body = artifact.dump(make_prefix())

    waiting = await http.post("/tasks/x/versions", content=body, headers=ARTIFACT)
    before = await http.post("/generate?task=x", json={"prompt": "hi"})
    active = await http.post("/tasks/x/versions?activate=true", content=body, headers=ARTIFACT)
    after = await http.post("/generate?task=x", json={"prompt": "hi"})

    assert (waiting.status_code, active.status_code) == (201, 201)
    assert (waiting.json()["active"], active.json()["active"]) == (False, True)
    assert (before.status_code, before.json()["code"]) == (409, "nothing_active")
    assert after.json()["version"] == 2


async def test_text_is_computed_behind_the_tokens_of_the_model(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    response = await http.put("/tasks/x/prefix", json={"text": "<|im_start|>Hi: "})

    manifest = response.json()
    asked = engine.compiled[0]
    assert response.status_code == 201
    assert asked["token_ids"] is not None
    assert tokenizer.decode(asked["token_ids"]) == "Hi: "  # type: ignore[arg-type]
    assert len(asked["token_ids"]) == 5  # type: ignore[arg-type]
    assert manifest["num_virtual_tokens"] == 5
    assert manifest["source_format"] == "text"
    assert manifest["prompt"] == {"add_special_tokens": False, "messages": None}


async def test_a_text_with_a_token_that_the_model_has_no_embedding_for_is_no_prefix(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.info_or_none = replace(INFO, vocab_size=256)

    response = await http.put("/tasks/x/prefix", json={"text": "Hi <|im_start|>"})

    assert response.status_code == 422
    assert "vocabulary of 256" in response.json()["detail"]
    assert not engine.compiled


async def test_messages_are_kept_and_continued(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    messages = [{"role": "system", "content": "Be brief."}]
    await http.put("/tasks/x/prefix", json={"messages": messages})

    asked = {"messages": [{"role": "user", "content": "yo"}]}
    response = await http.post("/generate?task=x", json=asked)

    held = engine.compiled[0]["token_ids"]
    assert tokenizer.decode(held) == "system\nBe brief.\n"  # type: ignore[arg-type]
    assert tokenizer.decode(engine.submitted[0][1]) == "user\nyo\nassistant\n"
    assert response.json()["usage"]["prefix_tokens"] == len(held)  # type: ignore[arg-type]
    manifest = (await http.get("/tasks/x/versions/1")).json()
    assert manifest["prompt"]["messages"] == messages


async def test_a_learned_soft_prompt_goes_to_the_engine_by_digest(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = save({"prompt_embeddings": torch.randn(2, 16)})

    response = await http.put("/tasks/x/prefix", content=body)

    assert response.status_code == 201, response.text
    assert isinstance(engine.compiled[0]["embeddings"], Digest)
    assert response.json()["prompt"]["add_special_tokens"] is True


async def test_what_was_uploaded_can_be_downloaded_and_uploaded_again(
    http: httpx.AsyncClient,
) -> None:
    manifest = await push(http, "x")

    response = await http.get("/tasks/x/versions/1/prefix")
    again = await http.put("/tasks/y/prefix", content=response.content)

    assert response.headers["Content-Type"] == "application/vnd.safetensors"
    assert response.headers["Content-Disposition"] == 'attachment; filename="x-1.safetensors"'
    assert str(Digest.of(response.content)) == manifest["digest"]
    assert again.json()["digest"] == manifest["digest"]


async def test_a_download_for_peft_is_a_tar_that_uploads_as_the_same_prefix(
    http: httpx.AsyncClient,
) -> None:
    await push(http, "x")

    response = await http.get("/tasks/x/versions/1/prefix?format=peft")
    again = await http.put(
        "/tasks/y/prefix", content=response.content, headers={"Content-Type": "application/x-tar"}
    )

    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        names = archive.getnames()
    assert response.headers["Content-Type"] == "application/x-tar"
    assert {name.rpartition("/")[2] for name in names} >= (
        {"adapter_config.json", "adapter_model.safetensors"}
    )
    assert (again.status_code, again.json()["num_virtual_tokens"]) == (201, 3)
    before, after = [
        artifact.read((await http.get(f"/tasks/{task}/versions/1/prefix")).content)
        for task in ("x", "y")
    ]
    assert all(torch.equal(a, b) for a, b in zip(before.keys, after.keys, strict=True))


async def test_versions_are_listed_with_their_history(http: httpx.AsyncClient) -> None:
    await push(http, "x", seed=1)
    await push(http, "x", seed=2)
    await http.post("/tasks/x/rollback")

    listed = (await http.get("/tasks/x/versions")).json()

    assert [manifest["version"] for manifest in listed["versions"]] == [1, 2]
    assert listed["active_version"] == 1
    assert [(a["version"], a["action"]) for a in listed["history"]] == [
        (1, "rollback"),
        (2, "activate"),
        (1, "activate"),
    ]


async def test_a_version_is_deleted_unless_it_is_active(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    first = await push(http, "x", seed=1)
    await push(http, "x", seed=2)

    active = await http.delete("/tasks/x/versions/2")
    other = await http.delete("/tasks/x/versions/1")

    assert (active.status_code, active.json()["code"]) == (409, "version_active")
    assert other.status_code == 204
    assert [str(digest) for digest in engine.unloaded] == [first["digest"]]
    assert (await http.get("/tasks/x/versions/1")).status_code == 404


async def test_a_prefix_that_does_not_load_at_once_is_a_warning(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.load_error = PrefixUnavailable("not now")

    manifest = await push(http, "x")

    assert (manifest["active"], manifest["warning"]) == (True, "not now")


GOOD = artifact.dump(make_prefix())


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", ARTIFACT, 422, "invalid_artifact"),
        (b"\0" * 8, ARTIFACT, 422, "invalid_artifact"),
        (GOOD[:-1], ARTIFACT, 422, "invalid_artifact"),
        (GOOD + b"PK", ARTIFACT, 422, "invalid_artifact"),
        (b"\x80\x04}.", {}, 422, None),
        (GOOD, {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (GOOD, {"Content-Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
        (GOOD, ARTIFACT | {"Content-Encoding": "gzip"}, 415, "unsupported_body"),
        (b'{"text": ""}', JSON, 422, "invalid_artifact"),
        (b'{"text": "a", "messages": []}', JSON, 422, "invalid_artifact"),
        (b'{"text": "\\ud800"}', JSON, 422, "invalid_artifact"),
        (b'{"text": "a", "text": "b"}', JSON, 422, "invalid_artifact"),
        (b"[" * 100_000, JSON, 422, "invalid_artifact"),
        (
            artifact.dump(make_prefix(fingerprint="sha256:" + "0" * 64)),
            ARTIFACT,
            422,
            "wrong_base_model",
        ),
        (artifact.dump(make_prefix(num_tokens=255)), ARTIFACT, 422, "prefix_too_long"),
    ],
)
async def test_a_bad_upload_is_refused_and_leaves_nothing(
    http: httpx.AsyncClient, body: bytes, headers: dict[str, str], status: int, code: str | None
) -> None:
    response = await http.put("/tasks/x/prefix", content=body, headers=headers)

    assert response.status_code == status, response.text
    assert code in (None, response.json()["code"])
    assert response.headers["Content-Type"] == "application/problem+json"
    assert (await http.get("/tasks")).json()["tasks"] == []


async def test_a_version_that_is_no_number_is_refused(http: httpx.AsyncClient) -> None:
    await push(http, "x")

    for version in ("0", "-1", "latest", "1" * 30, "1.5"):
        assert (await http.get(f"/tasks/x/versions/{version}")).status_code == 422
    assert (await http.get("/tasks/x/versions/2")).status_code == 404
    assert (await http.get("/tasks/x/versions/1/prefix?format=zip")).status_code == 422
