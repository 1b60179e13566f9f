"""What an upload must show before it becomes a version, and a version before it gets traffic."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import httpx
import msgspec
import pytest
import torch
from safetensors.torch import save

from prefix_store import artifact
from prefix_store.blobs.blobs import FileBlobStore
from prefix_store.digest import Digest
from prefix_store.formats import peft
from server.engine.ipc.messages import EvictionPreview
from server.errors import PrefixUnavailable, StepFailed
from server.publishing.verification import PROBE
from server.text.tokenizer import Tokenizer
from tests.server.fakes import (
    ARTIFACT,
    BASE,
    INFO,
    FakeEngine,
    expected_tokens,
    make_prefix,
    push,
)

TAR = {"Content-Type": "application/x-tar"}


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def peft_tar(
    *,
    base_model: str = "somebody/Tiny",
    golden: bytes | None = None,
    beside: dict[str, bytes] | None = None,
) -> bytes:
    files = peft.write(make_prefix(), BASE)
    config = json.loads(files[peft.CONFIG]) | {"base_model_name_or_path": base_model}
    files[peft.CONFIG] = json.dumps(config).encode()
    return tar_of(files | ({} if golden is None else {"golden.jsonl": golden}) | (beside or {}))


def checks_of(answer: httpx.Response) -> dict[str, bool]:
    return {check["name"]: check["passed"] for check in answer.json()["verification"]}


# --- a run of the model ---


async def test_every_upload_is_run_before_it_is_a_version(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    manifest = await push(http, "x")

    assert engine.verified == [(Digest(str(manifest["digest"])), tokenizer.encode(PROBE))]


async def test_the_test_prompt_is_cut_to_what_a_long_prefix_leaves(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = artifact.dump(make_prefix(num_tokens=INFO.max_model_len - 3))

    answer = await http.put("/tasks/x/prefix", content=body, headers=ARTIFACT)

    assert answer.status_code == 201, answer.text
    assert len(engine.verified[0][1]) == 2


@pytest.mark.parametrize(
    ("found", "status", "code"),
    [
        (StepFailed("the model's output is not a number"), 422, "unusable_prefix"),
        (0.0, 422, "unusable_prefix"),
        (1e-6, 422, "unusable_prefix"),
        (PrefixUnavailable("too large for the device"), 503, "prefix_unavailable"),
    ],
)
async def test_a_prefix_that_cannot_run_or_does_nothing_leaves_nothing(
    http: httpx.AsyncClient,
    engine: FakeEngine,
    found: float | Exception,
    status: int,
    code: str,
) -> None:
    engine.effect = found  # type: ignore[assignment]
    body = artifact.dump(make_prefix())

    answer = await http.put("/tasks/x/prefix", content=body, headers=ARTIFACT)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (await http.get("/tasks")).json()["tasks"] == []
    assert len(engine.unloaded) == 1


async def test_bfloat16_hides_what_float32_shows(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.info_or_none = msgspec.structs.replace(INFO, dtype="bfloat16")
    engine.effect = 1e-2
    body = artifact.dump(make_prefix())

    answer = await http.put("/tasks/x/prefix", content=body, headers=ARTIFACT)

    assert answer.json()["code"] == "unusable_prefix"


# --- its numbers ---


async def test_norms_are_compared_with_the_models_own(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.info_or_none = msgspec.structs.replace(INFO, kv_norms=[(1.0, 2.0), (1.0, 2.0)])
    good = make_prefix()
    huge = replace(good, values=(good.values[0], good.values[1] * 1e4))

    taken = await http.put("/tasks/x/prefix", content=artifact.dump(good), headers=ARTIFACT)
    refused = await http.put("/tasks/x/prefix", content=artifact.dump(huge), headers=ARTIFACT)

    longest = max(float(keys.norm(dim=-1).max()) for keys in good.keys)
    [norms] = [c["detail"] for c in taken.json()["verification"] if c["name"] == "norms"]
    assert f"{longest:.3g} and " in norms
    assert (refused.status_code, refused.json()["code"]) == (422, "out_of_range")


@pytest.mark.parametrize(
    ("base_model", "passed"),
    [
        ("hub/TINY", True),
        ("/home/me/tiny/", True),
        ("/cache/tiny-d449b8d8", True),
        ("other-7b", False),
    ],
)
async def test_the_name_that_peft_wrote_is_a_hint(
    http: httpx.AsyncClient, engine: FakeEngine, base_model: str, passed: bool
) -> None:
    engine.info_or_none = msgspec.structs.replace(engine.info, model="/cache/tiny-d449b8d8")
    body = peft_tar(base_model=base_model)

    answer = await http.put("/tasks/x/prefix", content=body, headers=TAR)

    assert answer.status_code == 201, answer.text
    assert checks_of(answer)["base_model_name"] is passed
    warning = answer.json()["warning"]
    assert warning is None if passed else warning == "trained for other-7b, served by tiny"
    assert "/home" not in answer.text


# --- what was measured before ---


async def test_an_evaluation_stands_in_the_manifest_as_it_came(http: httpx.AsyncClient) -> None:
    measured = {"num_examples": 500, "scores": {"exact_match": 0.86, "loss": 0.21}}
    body = peft_tar(beside={"evaluation.json": json.dumps(measured).encode()})

    answer = await http.put("/tasks/x/prefix", content=body, headers=TAR)
    manifest = (await http.get("/tasks/x/versions/1")).json()

    assert answer.json()["evaluation"] == manifest["evaluation"] == measured


@pytest.mark.parametrize(
    "measured",
    [b"no JSON", b"[]", b'{"num_examples": 0, "scores": {}}', b'{"num_examples": 1}',
     b'{"num_examples": 1, "scores": {"f1": NaN}}', b'{"num_examples": 1, "scores": {"F 1": 1}}'],
)  # fmt: skip
async def test_an_evaluation_that_cannot_be_read_is_refused(
    http: httpx.AsyncClient, measured: bytes
) -> None:
    body = peft_tar(beside={"evaluation.json": measured})

    answer = await http.put("/tasks/x/prefix", content=body, headers=TAR)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_artifact")


# --- golden prompts ---


async def test_an_upload_that_keeps_its_word_becomes_active(
    http: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = artifact.dump(make_prefix(fingerprint=INFO.fingerprint))
    ids = expected_tokens(Digest.of(body), tokenizer.encode("hi"), 4)
    text = {"prompt": "hi", "expect": tokenizer.decode(ids)}
    await http.put("/tasks/x", json={"golden": [text, {"prompt": "hi", "expect": ids}]})

    answer = await http.put("/tasks/x/prefix", content=body, headers=ARTIFACT)

    assert answer.status_code == 200, answer.text
    assert checks_of(answer)["golden"] is True
    assert answer.json()["active"] is True


@pytest.mark.parametrize("expect", ["never said", [1, 2, 3]])
async def test_an_upload_that_breaks_its_word_is_not_activated(
    http: httpx.AsyncClient, expect: object
) -> None:
    await push(http, "x", seed=1)
    await http.patch("/tasks/x", json={"golden": [{"prompt": "secret words", "expect": expect}]})
    body = artifact.dump(make_prefix(2))

    active = await http.put("/tasks/x/prefix", content=body, headers=ARTIFACT)
    also = await http.post("/tasks/x/versions?activate=true", content=body, headers=ARTIFACT)
    only_kept = await http.post("/tasks/x/versions", content=body, headers=ARTIFACT)
    activated = await http.post("/tasks/x/activate", json={"version": 2})
    canary = await http.put("/tasks/x/traffic", json={"weights": {"1": 9, "2": 1}})

    for refused in (active, also, activated):
        assert (refused.status_code, refused.json()["code"]) == (409, "golden_prompt_failed")
        assert "prompt 1 of the profile" in refused.json()["detail"]
        assert "secret" not in refused.text
    assert (canary.status_code, canary.json()["code"]) == (409, "golden_prompt_failed")
    assert only_kept.status_code == 201
    assert only_kept.json()["version"] == 2
    assert checks_of(only_kept)["golden"] is False
    assert "prompt 1 of the profile" in only_kept.json()["warning"]
    assert (await http.get("/tasks/x")).json()["active_version"] == 1


async def test_a_rollback_is_not_held_up_by_golden_prompts(http: httpx.AsyncClient) -> None:
    await push(http, "x", seed=1)
    await push(http, "x", seed=2)
    await http.patch("/tasks/x", json={"golden": [{"prompt": "hi", "expect": "never said"}]})

    assert (await http.post("/tasks/x/rollback")).json()["active_version"] == 1


async def test_golden_prompts_come_along_in_json(http: httpx.AsyncClient) -> None:
    golden = [{"prompt": "hi", "expect": "never said"}]
    await http.put("/tasks/x", json={})

    active = await http.put("/tasks/x/prefix", json={"text": "Hello", "golden": golden})
    kept = await http.post("/tasks/x/versions", json={"text": "Hello", "golden": golden})

    assert active.json()["code"] == "golden_prompt_failed"
    assert "prompt 1 of the upload" in active.json()["detail"]
    assert kept.json()["golden"] == golden
    assert (await http.post("/tasks/x/activate", json={"version": 1})).status_code == 409


async def test_golden_prompts_come_along_in_a_tar(http: httpx.AsyncClient) -> None:
    plain = (await http.put("/tasks/probe/prefix", content=peft_tar(), headers=TAR)).json()
    bad = await http.put("/tasks/x/prefix", content=peft_tar(golden=b'{"prompt": 1}'), headers=TAR)
    wrong = b'{"prompt": "a", "expect": "b"}\n\n'
    kept = await http.post("/tasks/probe/versions", content=peft_tar(golden=wrong * 2), headers=TAR)

    assert plain["golden"] == []
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_artifact")
    assert "golden.jsonl, prompt 0" in bad.json()["detail"]
    assert len(kept.json()["golden"]) == 2
    assert checks_of(kept)["golden"] is False


async def test_a_golden_prompt_that_is_no_request_fails_and_says_why(
    http: httpx.AsyncClient,
) -> None:
    golden = [{"prompt": "long " * 100, "expect": "b"}]
    await http.put("/tasks/x", json={"golden": golden})
    body = artifact.dump(make_prefix())

    answer = await http.put("/tasks/x/prefix", content=body, headers=ARTIFACT)

    assert answer.json()["code"] == "golden_prompt_failed"
    assert "the context holds 256" in answer.json()["detail"]


async def test_golden_prompts_are_asked_greedily_and_beside_the_tasks_own_queue(
    http: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    profile = {
        "golden": [{"prompt": "hi", "expect": [1, 2]}],
        "template": "<{prompt}>",
        "defaults": {"temperature": 2, "max_tokens": 99, "stop": ["a"]},
        "limits": {"max_concurrency": 1},
    }
    await http.put("/tasks/x", json=profile)
    await http.post("/tasks/x/versions", content=artifact.dump(make_prefix()), headers=ARTIFACT)

    [(_, token_ids, sampling)] = engine.submitted
    assert tokenizer.decode(token_ids) == "<hi>"
    assert (sampling.temperature, sampling.max_tokens) == (0, 2)
    assert (engine.shares[0].queue, engine.shares[0].max_concurrency) == (1, None)


# --- once more, on demand ---


async def test_a_version_is_verified_again(
    http: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path
) -> None:
    manifest = await push(http, "x")

    good = await http.post("/tasks/x/versions/1/verify")
    await http.patch("/tasks/x", json={"golden": [{"prompt": "hi", "expect": "never said"}]})
    golden = await http.post("/tasks/x/versions/1/verify")
    engine.effect = 0.0
    idle = await http.post("/tasks/x/versions/1/verify")
    engine.effect = 0.1
    hexdigits = str(manifest["digest"]).removeprefix("sha256:")
    [blob] = [p for p in tmp_path.rglob("*") if p.is_file() and hexdigits.endswith(p.name)]
    blob.chmod(0o644)
    blob.write_bytes(b"rotten" + blob.read_bytes()[6:])
    rotten = await http.post("/tasks/x/versions/1/verify")
    unknown = await http.post("/tasks/x/versions/9/verify")

    assert (good.status_code, good.json()["passed"]) == (200, True)
    assert checks_of(good).keys() >= {"finite_values", "norms", "forward", "effect"}
    assert (golden.json()["passed"], checks_of(golden)["golden"]) == (False, False)
    assert (idle.json()["passed"], checks_of(idle)) == (False, {"unusable_prefix": False})
    assert rotten.status_code == 200
    assert rotten.json()["passed"] is False
    assert unknown.json()["code"] == "unknown_version"


# --- a rehearsal ---


async def test_a_dry_run_says_what_would_happen_and_changes_nothing(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await push(http, "x", seed=1)
    before = (await http.get("/tasks/x/versions")).json()
    engine.room = EvictionPreview(0, True, ["sha256:" + "e" * 64])
    body = artifact.dump(make_prefix(2))

    there = await http.put("/tasks/x/prefix?dry_run=true", content=body, headers=ARTIFACT)
    kept = await http.post("/tasks/x/versions?dry_run=true", content=body, headers=ARTIFACT)
    new = await http.put("/tasks/y/prefix?dry_run=true", content=body, headers=ARTIFACT)

    assert [answer.status_code for answer in (there, kept, new)] == [200, 200, 200]
    assert (there.json()["version"], there.json()["active"]) == (2, True)
    assert (kept.json()["version"], kept.json()["active"]) == (2, False)
    assert (new.json()["task"], new.json()["version"]) == ("y", 1)
    assert there.json()["device_bytes"] == 3 * BASE.num_bytes_per_token
    assert there.json()["evicted"] == ["sha256:" + "e" * 64]
    assert there.json()["fits"] is True
    assert checks_of(there)["forward"] is True
    assert engine.unloaded
    assert (await http.get("/tasks/x/versions")).json() == before
    assert [task["name"] for task in (await http.get("/tasks")).json()["tasks"]] == ["x"]


async def test_a_dry_run_is_refused_as_the_upload_would_be(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = artifact.dump(make_prefix())
    unknown = await http.post("/tasks/x/versions?dry_run=true", content=body, headers=ARTIFACT)
    engine.effect = 0.0
    idle = await http.put("/tasks/x/prefix?dry_run=true", content=body, headers=ARTIFACT)

    assert unknown.json()["code"] == "unknown_task"
    assert idle.json()["code"] == "unusable_prefix"


async def test_what_is_refused_or_rehearsed_leaves_no_bytes(
    http: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path
) -> None:
    """Else rehearsals fill the disk beyond every quota, until garbage is collected."""
    await push(http, "x", seed=1)
    blobs = FileBlobStore(tmp_path / "blobs")
    kept = {*blobs}
    bodies: list[tuple[bytes, dict[str, str]]] = [
        (artifact.dump(make_prefix(2)), ARTIFACT),
        (b'{"text": "other"}', {"Content-Type": "application/json"}),
        (save({"prompt_embeddings": torch.randn(2, 16)}), ARTIFACT),
    ]

    for body, kind in bodies:
        rehearsed = await http.put("/tasks/x/prefix?dry_run=true", content=body, headers=kind)
        engine.effect = 0.0
        unusable = await http.put("/tasks/x/prefix", content=body, headers=kind)
        engine.effect = 1.0
        assert (rehearsed.status_code, unusable.status_code) == (200, 422)
        assert {*blobs} == kept
    for body, kind in bodies:
        assert (await http.put("/tasks/x/prefix", content=body, headers=kind)).is_success
    assert len({*blobs}) == len(kept) + len(bodies)
