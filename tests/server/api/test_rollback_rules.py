"""Rules of splits, as `PUT /tasks/{task}/traffic` takes, keeps and refuses them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.fakes import push

RULE = {"error_rate_above": 0.1, "min_requests": 10}


@pytest.fixture
async def split(http: httpx.AsyncClient) -> httpx.AsyncClient:
    """Task x has two versions; 2 is active."""
    for seed in (1, 2):
        await push(http, "x", seed)
    return http


async def put_rule(http: httpx.AsyncClient) -> httpx.Response:
    body = {"weights": {"2": 90, "1": 10}, "rollback_if": RULE}
    return await http.put("/tasks/x/traffic", json=body)


async def report(http: httpx.AsyncClient) -> dict[str, Any]:
    return dict((await http.get("/tasks/x/traffic")).json())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"rollback_if": {"min_requests": 5}}, "needs a condition"),
        ({"rollback_if": {"error_rate_above": 1}}, "below 1"),
        ({"rollback_if": {"error_rate_above": "0.1"}}, "number"),
        ({"rollback_if": {"errors": 0.1}}, "is no field"),
        ({"rollback_if": {"golden_fails": True}}, "golden prompts"),
        ({"weights": {"2": 1}, "rollback_if": RULE}, "besides the active one"),
    ],
)
async def test_a_rule_that_could_never_apply_is_refused(
    split: httpx.AsyncClient, body: dict[str, Any], said: str
) -> None:
    answer = await split.put("/tasks/x/traffic", json={"weights": {"1": 1, "2": 1}} | body)

    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert (await report(split))["weights"] is None


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"weights": {"2": 50, "1": 50}}, True),
        ({"weights": {"2": 50, "1": 50}, "rollback_if": None}, False),
        ({"weights": {"2": 1}}, False),  # no canary is left
    ],
)
async def test_a_split_keeps_the_rule_of_the_one_before(
    split: httpx.AsyncClient, body: dict[str, Any], kept: bool
) -> None:
    put = await put_rule(split)
    again = await split.put("/tasks/x/traffic", json=body)

    assert again.status_code == 200
    assert again.json()["rollback_if"] == (put.json()["rollback_if"] if kept else None)
    assert (await report(split))["rollback_if"] == again.json()["rollback_if"]


async def test_a_rule_does_not_outlive_its_split(split: httpx.AsyncClient) -> None:
    await put_rule(split)
    await split.delete("/tasks/x/traffic")
    assert (await report(split))["rollback_if"] is None

    await split.put("/tasks/x/traffic", json={"weights": {"2": 1, "1": 1}})
    assert (await report(split))["rollback_if"] is None
