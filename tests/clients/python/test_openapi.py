"""The client is what the server's own OpenAPI document says: its calls, and its types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_type_hints

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, create_model

from foreword_client import APIStatusError, Client, Stream, types
from server.app import ROUTERS

Schema = dict[str, Any]

ANSWERS = {
    "Activation": types.Activation,
    "ActivationResponse": types.Activated,
    "AuditPage": types.AuditPage,
    "Check": types.Check,
    "CreatedKey": types.CreatedKey,
    "Defaults-Output": types.Defaults,
    "Entry": types.AuditEntry,
    "GenerateResponse": types.Generation,
    "GoldenPrompt": types.GoldenPrompt,
    "Info": types.Info,
    "Key": types.Key,
    "KeyList": types.KeyList,
    "LikelyToken": types.LikelyToken,
    "Message": types.Message,
    "Profile-Output": types.Profile,
    "PromptFormat": types.PromptFormat,
    "Rank": types.Rank,
    "RankedText": types.RankedText,
    "Rehearsal": types.Rehearsal,
    "ScoredToken": types.ScoredToken,
    "Task": types.Task,
    "TaskDescription": types.Task,
    "TaskPage": types.TaskPage,
    "Timings": types.Timings,
    "Percentiles": types.Percentiles,
    "RollbackRule": types.RollbackRule,
    "TrafficReport": types.TrafficReport,
    "TrafficResponse": types.Traffic,
    "Uploaded": types.Uploaded,
    "Usage": types.Usage,
    "VerificationReport": types.Report,
    "VersionDescription": types.Version,
    "VersionList": types.Versions,
    "VersionResidency": types.Residency,
    "VersionTraffic": types.VersionTraffic,
    "Evaluation": types.Evaluation,
    "TaskLimits": types.TaskLimits,
    "ServerLimits": types.ServerLimits,
}
REQUESTS = {
    "GenerateRequest": (types.GenerateOptions, {"prompt", "stream"}),
    "Profile-Input": (types.ProfileFields, set()),
    "Grant": (types.KeyOptions, {"name", "scopes", "tasks"}),
    "RollbackRule": (types.RollbackOptions, set()),
}
"""In the set: arguments whose names differ between client and server."""
NOT_ANSWERED = {"Health", "HTTPValidationError", "ValidationError"}
"""Routes of which a client needs only the status."""
NOT_CALLED = re.compile(r"/v1/|/health$")
"""For OpenAI's clients; another name of /readyz."""
ARGUMENTS: dict[str, Any] = {
    "after": 1,
    "id": "k",
    "if_match": 1,
    "name": "x",
    "number": 1,
    "prompt": "hi",
    "scopes": ["read"],
    "task": "x",
    "text": "t",
    "weights": {1: 1},
}


@pytest.fixture(scope="module")
def document() -> Schema:
    app = FastAPI()
    for router in ROUTERS:
        app.router.routes.extend(router.routes)
    return app.openapi()


def schema_of(kind: type) -> Schema:
    if not issubclass(kind, BaseModel):
        fields: dict[str, Any] = {name: (hint, None) for name, hint in get_type_hints(kind).items()}
        kind = create_model(kind.__name__, **fields)
    return kind.model_json_schema()


def kinds(schema: Schema, document: Schema) -> set[str]:
    """Which kinds of JSON value a schema takes, without bounds: `array of integer`, `null`."""
    if parts := schema.get("anyOf") or schema.get("oneOf"):
        return set().union(*(kinds(part, document) for part in parts))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        definitions = document.get("$defs") or document["components"]["schemas"]
        return kinds(definitions[name], document)
    if (kind := schema.get("type")) is None:
        values = schema.get("enum", [schema.get("const")])
        return {"string"} if all(isinstance(v, str) for v in values) else {"any"}
    if kind == "array" and "items" in schema:
        return {f"array of {one}" for one in kinds(schema["items"], document)}
    return {kind}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_have_the_servers_fields_and_types(name: str, document: Schema) -> None:
    server, client = document["components"]["schemas"][name], schema_of(ANSWERS[name])
    theirs, ours = server["properties"], client["properties"]

    # A task of a list has fewer fields than one that was asked for: one type is for both.
    extra = set() if name != "Task" else {"digest", "residency", "weights"}
    assert set(ours) - extra == set(theirs)
    for field, schema in theirs.items():
        assert kinds(schema, document) <= kinds(ours[field], client), field
    assert set(client.get("required", [])) <= set(server.get("required", []))


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_say_what_the_server_takes(name: str, document: Schema) -> None:
    kind, arguments = REQUESTS[name]
    theirs = document["components"]["schemas"][name]["properties"]
    client = schema_of(kind)

    assert set(client["properties"]) | arguments == set(theirs)
    for field, schema in client["properties"].items():
        ours, taken = kinds(schema, client) - {"null"}, kinds(theirs[field], document)
        assert "object" in taken or ours <= taken | {"any"}, field


def test_every_answer_of_the_server_has_a_type(document: Schema) -> None:
    answered: set[str] = set()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            found = re.findall(r"#/components/schemas/(\w[\w-]*)", str(operation["responses"]))
            answered |= set(found) if not NOT_CALLED.match(path) else set()

    assert answered - NOT_ANSWERED <= set(ANSWERS)


def test_every_operation_of_the_server_has_a_method(document: Schema) -> None:
    called: set[tuple[str, str]] = set()

    def note(request: httpx.Request) -> httpx.Response:
        called.add((request.method, request.url.path))
        return httpx.Response(418)

    client = Client("http://127.0.0.1:1", transport=httpx.MockTransport(note), max_retries=0)
    for name, method in inspect.getmembers(client, inspect.ismethod):
        if not name.startswith("_") and name != "close":
            _call(method)
    with pytest.raises(APIStatusError):
        client.set_traffic("x", {}, if_match=1)
    with pytest.raises(APIStatusError):
        client.push("x", text="t", activate=False)

    missing = [
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
        if not NOT_CALLED.match(path)
        and not any(
            method.upper() == verb and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), where)
            for verb, where in called
        )
    ]
    assert missing == []


def _call(method: Callable[..., Any]) -> None:
    """Call a method with a value for every required argument, chosen by its name."""
    parameters = inspect.signature(method).parameters
    given = {name: ARGUMENTS[name] for name in parameters if name in ARGUMENTS}
    with suppress(APIStatusError):
        found = method(**given)
        if isinstance(found, Stream):
            next(iter(found))
