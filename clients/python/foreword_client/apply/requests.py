"""Calls that a plan needs beyond those of `AsyncClient`: each is one step, done once or not."""

from __future__ import annotations

from typing import Any

from foreword_client import _body, _calls, types
from foreword_client._body import Body
from foreword_client._wire import Call
from foreword_client.apply.models import DEFINITION_FIELDS, Definition, Settings


def upload(task: str, body: Body, *, activate: bool, if_match: int | None) -> Call[types.Uploaded]:
    """Upload a prefix with its definition, and make it active in the same request."""
    verb, path = _calls._upload(task, activate)
    key, parse = _calls._new_key(), _calls._as(types.Uploaded)
    return Call(verb, path, parse, body=body, idempotency_key=key, if_match=if_match)


def redefine(
    task: str, of: int, definition: Definition, *, activate: bool, if_match: int | None
) -> Call[types.Uploaded]:
    """Make a version of an existing version's prefix, with another definition."""
    body = _body.of_json({"prefix_of": of, "definition": definition.to_json()})
    return Call(
        "POST",
        _calls._path("tasks", task, "versions"),
        _calls._as(types.Uploaded),
        params={"activate": "true"} if activate else {},
        body=body,
        idempotency_key=_calls._new_key(),
        if_match=if_match,
    )


def put_profile(
    task: str, settings: Settings, definition: Definition | None, *, if_match: int | None
) -> Call[types.Task]:
    """Create a task, or replace its whole profile."""
    profile: dict[str, Any] = settings.model_dump(mode="json", exclude_none=True)
    if definition is not None:
        asked = definition.to_json()
        profile |= {name: asked[name] for name in DEFINITION_FIELDS if name in asked}
    path, parse = _calls._path("tasks", task), _calls._as(types.Task)
    return Call("PUT", path, parse, body=_body.of_json(profile), repeatable=True, if_match=if_match)
