"""docs/http-api.md says what the server's own OpenAPI document says: routes, scopes, fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from server.api.http.access import required_scopes
from server.api.schemas.generate import GenerateRequest
from server.api.schemas.openai import ChatRequest, CompletionRequest
from server.app import ROUTERS
from server.generation.prompt import DEFAULT_MAX_TOKENS

PAGE = (Path(__file__).parents[3] / "docs/http-api.md").read_text("utf-8")
ROUTES = [r for router in ROUTERS for r in router.routes if isinstance(r, APIRoute)]
OF_THE_FRAMEWORK = {("GET", "/docs"), ("GET", "/openapi.json")}
GREEDY = {
    "temperature": "0",
    "top_p": "1",
    "top_k": "0",
    "min_p": "0",
    "min_tokens": "0",
    "presence_penalty": "0",
    "frequency_penalty": "0",
    "repetition_penalty": "1",
    "priority": "0",
    "max_tokens": str(DEFAULT_MAX_TOKENS),
}
"""What a field that is left out comes to in the end; other defaults are in the schema."""


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def general(path: str) -> str:
    """Without the names of parameters: a version is `n` for readers."""
    return re.sub(r"\{\w+(:\w+)?\}", "{}", path)


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]


def documented() -> set[tuple[str, str]]:
    found = re.findall(r"`(GET|PUT|POST|PATCH|DELETE) (/[^`\[?]*)", PAGE)
    return {(method, general(path)) for method, path in found}


def test_every_route_is_on_the_page_and_no_other() -> None:
    served = {(method, general(r.path)) for r in ROUTES for method in r.methods}

    assert documented() == served | OF_THE_FRAMEWORK


def test_every_query_parameter_is_on_the_page() -> None:
    app = FastAPI()
    app.router.routes.extend(ROUTES)
    parameters = [
        (path, parameter["name"])
        for path, operations in app.openapi()["paths"].items()
        for operation in operations.values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] != "path"
    ]

    page = PAGE.lower()
    missing = [(path, name) for path, name in parameters if name.lower() not in page]
    assert missing == []


def test_scopes_are_those_of_the_routes() -> None:
    needs = {(method, general(r.path)): required_scopes(r) for r in ROUTES for method in r.methods}

    num_compared = 0
    for title in ("Tasks and versions", "The server"):
        for cells in rows(section(title)):
            for method, path in re.findall(r"`(GET|PUT|POST|PATCH|DELETE) (/[^`\[?]*)", cells[0]):
                if (scopes := needs.get((method, general(path)))) is None:
                    continue
                told = set(re.findall(r"`(\w+)`", cells[-1]))
                uploads = path.endswith(("/prefix", "/versions")) and method != "GET"
                assert told == scopes | ({"promote"} if uploads else set()), path
                num_compared += 1
    assert num_compared >= 25


def test_the_fields_of_generate_and_their_defaults() -> None:
    defaults: dict[str, str] = {}
    for names, default, _ in rows(section("Generate").partition("\n### ")[0])[2:]:
        fields = re.findall(r"`(\w+)`", names)
        values = default.strip("`").split(", ")
        defaults |= dict(zip(fields, values * len(fields), strict=False))

    assert set(defaults) == set(GenerateRequest.model_fields)
    for name, told in defaults.items():
        field = GenerateRequest.model_fields[name]
        in_schema = field.get_default(call_default_factory=True)
        expected = GREEDY.get(name, told if in_schema is None else str(in_schema).lower())
        assert told == expected, name


@pytest.mark.parametrize("model", [CompletionRequest, ChatRequest])
def test_the_fields_of_openais_routes(model: Any) -> None:
    table = "".join(" | ".join(row) for row in rows(section("OpenAI")))

    assert set(model.model_fields) <= set(re.findall(r"`(\w+)`", table))
