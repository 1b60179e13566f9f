"""Golden prompts, which a version must pass before it gets traffic."""

from __future__ import annotations

import httpx
import pytest

from prefix_store import artifact
from prefix_store.digest import Digest
from server.engine.params import GOLDEN
from server.text.tokenizer import Tokenizer
from tests.server.api.uploads import TAR, checks_of, peft_tar
from tests.server.fakes import (
    ARTIFACT,
    INFO,
    FakeEngine,
    expected_tokens,
    make_prefix,
    push,
)


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
    assert "golden.jsonl: `[0].prompt`" in bad.json()["detail"]
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
    assert (engine.shares[0].queue, engine.shares[0].max_concurrency) == (GOLDEN, None)
