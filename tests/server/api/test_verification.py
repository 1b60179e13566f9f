"""Checks of an upload before it becomes a version, and again on demand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import httpx
import msgspec
import pytest

from prefix_store import artifact
from prefix_store.digest import Digest
from server.errors import PrefixUnavailable, StepFailed
from server.publishing.verification import PROBE
from server.text.tokenizer import Tokenizer
from tests.server.api.uploads import TAR, checks_of, peft_tar
from tests.server.fakes import (
    ARTIFACT,
    INFO,
    FakeEngine,
    make_prefix,
    push,
)


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
