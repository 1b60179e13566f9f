"""One function per method of the client: it builds the request and names the response's type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx

from foreword_client import _body, types
from foreword_client._body import Progress
from foreword_client._upload import Upload
from foreword_client._wire import Call, read
from foreword_client.errors import UnexpectedAnswerError

A = TypeVar("A", bound=types.Answer)


def generate(
    prompt: str | Sequence[int] | None,
    task: str | None,
    version: int | None,
    options: Mapping[str, Any],
    *,
    stream: bool,
) -> Call[types.Generation]:
    known = types.GenerateOptions.__annotations__
    fields = {"prompt": prompt, **_only(options, known), "stream": stream or None}
    target: dict[str, str | int | None] = {"task": task, "version": version}
    return Call(
        "POST",
        "/generate",
        _as(types.Generation),
        params={k: v for k, v in target.items() if v is not None},
        body=_body.of_json({k: v for k, v in fields.items() if v is not None}),
        repeatable=True,
    )


def push(
    task: str,
    upload: Upload,
    *,
    activate: bool,
    if_match: int | None,
    progress: Progress | None,
    seen: types.Task | None = None,
) -> Call[types.Uploaded]:
    verb, path, params = _upload(task, upload, activate)
    body = replace(upload.body(), progress=progress)
    return Call(
        verb,
        path,
        _as(types.Uploaded),
        params=params,
        body=body,
        idempotency_key=_new_key(),
        if_match=if_match,
        seen=seen,
    )


def rehearse(task: str, upload: Upload, *, activate: bool) -> Call[types.Rehearsal]:
    verb, path, params = _upload(task, upload, activate)
    params["dry_run"] = "true"
    parse = _as(types.Rehearsal)
    return Call(verb, path, parse, params=params, body=upload.body(), repeatable=True)


def _upload(task: str, upload: Upload, activate: bool) -> tuple[str, str, dict[str, str | int]]:
    """Method, path and query. `PUT .../prefix` creates tasks and activates; a version that shares
    another's prefix needs a task that exists."""
    if activate and upload.prefix_of is None:
        return "PUT", _path("tasks", task, "prefix"), {}
    return "POST", _path("tasks", task, "versions"), {"activate": "true"} if activate else {}


def split(changes: types.PushFields) -> tuple[types.DefinitionFields, types.ProfileFields]:
    """Split what a push changes into fields of the definition and of the task."""
    known = types.DefinitionFields.__annotations__
    given = _only(changes, types.PushFields.__annotations__)
    fields: Any = {k: v for k, v in given.items() if k in known}
    profile: Any = {k: v for k, v in given.items() if k not in known}
    return fields, profile


def tasks(after: str | None, query: Mapping[str, Any]) -> Call[types.TaskPage]:
    asked = {**_only(query, types.TaskQuery.__annotations__), "after": after}
    params = {name: value for name, value in asked.items() if value is not None}
    return Call("GET", "/tasks", _as(types.TaskPage), params=params, repeatable=True)


def task(name: str) -> Call[types.Task]:
    return Call("GET", _path("tasks", name), _as(types.Task), repeatable=True)


def create_task(name: str, profile: Mapping[str, Any]) -> Call[types.Task]:
    known = _only(profile, types.ProfileFields.__annotations__)
    body = _body.of_json({k: v for k, v in known.items() if v is not None})
    return Call("PUT", _path("tasks", name), _as(types.Task), body=body, repeatable=True)


def update_task(name: str, profile: Mapping[str, Any], if_match: int | None) -> Call[types.Task]:
    body = _body.of_json(_only(profile, types.ProfileFields.__annotations__))
    path, parse = _path("tasks", name), _as(types.Task)
    return Call("PATCH", path, parse, body=body, repeatable=True, if_match=if_match)


def delete_task(name: str, if_match: int | None) -> Call[None]:
    path = _path("tasks", name)
    return Call("DELETE", path, _nothing, idempotency_key=_new_key(), if_match=if_match)


def versions(task: str) -> Call[types.Versions]:
    return Call("GET", _path("tasks", task, "versions"), _as(types.Versions), repeatable=True)


def version(task: str, number: int) -> Call[types.Version]:
    path = _path("tasks", task, "versions", number)
    return Call("GET", path, _as(types.Version), repeatable=True)


def activate(task: str, number: int, if_match: int | None) -> Call[types.Activated]:
    body = _body.of_json({"version": number})
    path, parse = _path("tasks", task, "activate"), _as(types.Activated)
    return Call("POST", path, parse, body=body, idempotency_key=_new_key(), if_match=if_match)


def rollback(task: str, if_match: int | None) -> Call[types.Activated]:
    path, parse = _path("tasks", task, "rollback"), _as(types.Activated)
    return Call("POST", path, parse, idempotency_key=_new_key(), if_match=if_match)


def traffic(task: str) -> Call[types.TrafficReport]:
    return Call("GET", _path("tasks", task, "traffic"), _as(types.TrafficReport), repeatable=True)


def set_traffic(
    task: str,
    weights: Mapping[int, int],
    rollback_if: types.RollbackOptions | None,
    if_match: int | None,
) -> Call[types.Traffic]:
    path, parse = _path("tasks", task, "traffic"), _as(types.Traffic)
    if not weights:
        return Call("DELETE", path, parse, idempotency_key=_new_key(), if_match=if_match)
    asked: dict[str, Any] = {"weights": {str(number): w for number, w in weights.items()}}
    if rollback_if is not None:
        asked["rollback_if"] = rollback_if or None  # null removes the rule
    body = _body.of_json(asked)
    return Call("PUT", path, parse, body=body, idempotency_key=_new_key(), if_match=if_match)


def verify(task: str, number: int) -> Call[types.Report]:
    path = _path("tasks", task, "versions", number, "verify")
    return Call("POST", path, _as(types.Report), repeatable=True)


def place(
    task: str, number: int, how: Literal["warm", "pin", "unpin", "evict"]
) -> Call[types.Residency]:
    path = _path("tasks", task, "versions", number, how)
    return Call("POST", path, _as(types.Residency), repeatable=True)


def delete_version(task: str, number: int, if_match: int | None) -> Call[None]:
    path = _path("tasks", task, "versions", number)
    return Call("DELETE", path, _nothing, idempotency_key=_new_key(), if_match=if_match)


def download(task: str, number: int, format: str | None) -> Call[bytes]:
    path = _path("tasks", task, "versions", number, "prefix")
    if format is None:
        return Call("GET", path, _artifact, repeatable=True)
    params: dict[str, str | int] = {"format": format}
    return Call("GET", path, lambda response: response.content, params=params, repeatable=True)


def keys() -> Call[types.KeyList]:
    return Call("GET", "/keys", _as(types.KeyList), repeatable=True)


def create_key(
    name: str, scopes: Sequence[str], tasks: Sequence[str], options: Mapping[str, Any]
) -> Call[types.CreatedKey]:
    known = _only(options, types.KeyOptions.__annotations__)
    fields = {"name": name, "scopes": list(scopes), "tasks": list(tasks)}
    fields |= {k: v for k, v in known.items() if v is not None}
    if isinstance(expires_at := fields.get("expires_at"), datetime):
        fields["expires_at"] = expires_at.isoformat()
    return Call("POST", "/keys", _as(types.CreatedKey), body=_body.of_json(fields))


def revoke_key(id: str) -> Call[None]:
    return Call("DELETE", _path("keys", id), _nothing, repeatable=True)


def audit(after: int) -> Call[types.AuditPage]:
    params: dict[str, str | int] = {"after": after, "limit": 1000}
    return Call("GET", "/audit", _as(types.AuditPage), params=params, repeatable=True)


def info() -> Call[types.Info]:
    return Call("GET", "/info", _as(types.Info), repeatable=True)


def metrics() -> Call[str]:
    return Call("GET", "/metrics", lambda response: response.text, repeatable=True)


def is_alive() -> Call[bool]:
    return Call("GET", "/livez", lambda response: True, timeout_s=10.0)


def is_ready() -> Call[bool]:
    return Call("GET", "/readyz", lambda response: True, timeout_s=10.0)


def _as(kind: type[A]) -> Callable[[httpx.Response], A]:
    return lambda response: read(kind, response.content)


def _artifact(response: httpx.Response) -> bytes:
    """Return the body, checked against the digest in its header. Raises
    `UnexpectedAnswerError`."""
    named = response.headers.get("x-prefix-digest")
    if named is not None and named != f"sha256:{sha256(response.content).hexdigest()}":
        raise UnexpectedAnswerError("the download does not match the version's digest")
    return response.content


def _nothing(response: httpx.Response) -> None:
    return None


def _new_key() -> str:
    return uuid4().hex


def _path(*segments: str | int) -> str:
    return "".join("/" + quote(str(segment), safe="") for segment in segments)


def _only(given: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in given.keys() - known.keys():
        raise TypeError(f"no such option: {name!r}; there are {', '.join(known)}")
    return given
