"""A server that speaks the protocol and holds no model."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

NOW = "2026-01-02T03:04:05Z"
DIGEST = "sha256:" + "ab" * 32
ENDING: dict[str, Any] = {
    "id": "gen-1",
    "task": "x",
    "version": 3,
    "digest": DIGEST,
    "token_ids": None,
    "finish_reason": "stop",
    "usage": {"prefix_tokens": 20, "prompt_tokens": 2, "completion_tokens": 3},
    "timings": {"queue_ms": 0.1, "first_token_ms": 5.0, "total_ms": 9.0},
    "of_a_newer_server": True,
}
SPLIT: dict[str, Any] = {
    "weights": {"3": 90, "4": 10},
    "rollback_if": {"error_rate_above": 0.05, "golden_fails": True, "min_requests": 20},
    "rollback_reason": None,
    "window_s": 900,
    "versions": [
        {
            "version": 3,
            "share": 0.9,
            "requests": 1200,
            "errors": 0,
            "error_rate": 0.0,
            "refused": 2,
            "first_token_ms": {"p50": 31.26, "p95": 80.1},
            "total_ms": {"p50": 412.4, "p95": 1250.9},
            "evaluation": {"num_examples": 500, "scores": {"exact_match": 0.8612345}},
        },
        {
            "version": 4,
            "share": 0.1,
            "requests": 130,
            "errors": 13,
            "error_rate": 0.1,
            "refused": 0,
            "first_token_ms": None,
            "total_ms": None,
            "evaluation": None,
        },
    ],
}


@dataclass
class FakeForeword:
    """Speaks the protocol over a real socket, and records requests."""

    url: str = ""
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    """Set when the reader of an endless stream is gone."""

    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, _, body in self.seen if body]

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/generate", self._generate, methods=["POST"]),
                Route("/info", self._info),
                Route("/readyz", self._ready),
                Route("/tasks", self._tasks),
                Route("/tasks/{task}", self._task, methods=["GET", "PUT", "PATCH", "DELETE"]),
                Route("/tasks/{task}/prefix", self._upload, methods=["PUT"]),
                Route("/tasks/{task}/versions", self._versions, methods=["GET"]),
                Route("/tasks/{task}/versions", self._upload, methods=["POST"]),
                Route("/tasks/{task}/versions/{n}", self._version, methods=["GET", "DELETE"]),
                Route("/tasks/{task}/versions/{n}/prefix", self._download),
                Route("/tasks/{task}/activate", self._activated, methods=["POST"]),
                Route("/tasks/{task}/rollback", self._activated, methods=["POST"]),
                Route("/tasks/{task}/traffic", self._traffic, methods=["GET", "PUT", "DELETE"]),
                Route("/keys", self._keys, methods=["GET", "POST"]),
                Route("/keys/{id}", self._key, methods=["DELETE"]),
                Route("/audit", self._audit),
            ]
        )

    async def _note(self, request: Request) -> bytes:
        body = await request.body()
        where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        self.seen.append((request.method, where, dict(request.headers), body))
        return body

    async def _generate(self, request: Request) -> Response:
        body = json.loads(await self._note(request))
        task = request.query_params.get("task")
        if task == "nope":
            return problem(404, "unknown_task", "there is no such task")
        if task == "hidden" and len(body["messages"]) > 1:
            return problem(400, "not_a_chat", "send exactly one user message")
        if texts := body.get("rank", {}).get("texts"):
            numbers = {"logprob": -1.0, "num_tokens": 1}
            ranking = [{"text": texts[0], "probability": 0.75} | numbers]
            ranking += [{"text": text, "probability": 0.25} | numbers for text in texts[1:]]
            return JSONResponse(ENDING | {"text": texts[0], "ranking": ranking})
        if not body.get("stream"):
            return JSONResponse(ENDING | {"task": task, "text": "one two three"})
        headers = {"X-Task-Version": "3", "X-Prefix-Digest": DIGEST, "X-Request-Id": "r1"}
        return StreamingResponse(
            self._events(task), media_type="text/event-stream", headers=headers
        )

    async def _events(self, task: str | None) -> AsyncIterator[bytes]:
        try:
            for text in ("one", " two", " three"):
                yield event("token", {"text": text, "token_ids": None})
            while task == "endless":
                await asyncio.sleep(0.01)
                yield event("token", {"text": " and", "token_ids": None})
            if task == "failing":
                told = {"status": 500, "code": "step_failed", "title": "x", "detail": "it failed"}
                yield event("error", told | {"request_id": "r1"})
            elif task != "torn":
                yield event("done", ENDING | {"task": task})
        finally:
            self.left.set()

    async def _info(self, request: Request) -> Response:
        await self._note(request)
        shape = {"num_layers": 2, "num_kv_heads": 1, "head_dim": 8, "dtype": "float32"}
        limits = {"max_model_len": 128, "max_upload_bytes": 2_000_000}
        told = {"model": "tiny", "fingerprint": DIGEST, "device": "cpu", "limits": limits}
        return JSONResponse(shape | told)

    async def _ready(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "reasons": []})

    async def _tasks(self, request: Request) -> Response:
        await self._note(request)
        after = request.query_params.get("after")
        names = ["a", "b"] if after is None else ["c"]
        page = {"tasks": [task(name) for name in names]}
        if "search" in request.query_params:
            return JSONResponse({"tasks": [], "next_after": None})
        return JSONResponse(page | {"next_after": "b" if after is None else None})

    async def _task(self, request: Request) -> Response:
        await self._note(request)
        if request.path_params["task"] == "nope":
            return problem(404, "unknown_task", "there is no such task")
        if request.path_params["task"] == "hidden":
            return problem(403, "insufficient_scope", "this needs a key with the scope read")
        if request.method == "DELETE":
            return Response(status_code=204)
        found = task(request.path_params["task"])
        return JSONResponse(found | {"digest": DIGEST, "residency": "device"})

    async def _upload(self, request: Request) -> Response:
        await self._note(request)
        active = request.method == "PUT"
        return JSONResponse(manifest(request.path_params["task"], 4) | {"active": active}, 201)

    async def _versions(self, request: Request) -> Response:
        await self._note(request)
        name = request.path_params["task"]
        told = {"seq": 1, "version": 1, "action": "activate", "at": NOW, "by": None}
        split = {"seq": 2, "action": "traffic", "weights": {"1": 90, "2": 10}}
        ended = {"seq": 3, "action": "rollback", "reason": "v2: 13 of 130 requests failed"}
        history = [told | ended, told | split, told]
        found = [manifest(name, n) for n in (1, 2, 3)]
        return JSONResponse(
            {"task": name, "active_version": 3, "versions": found, "history": history}
        )

    async def _version(self, request: Request) -> Response:
        await self._note(request)
        if request.method == "DELETE":
            return problem(409, "version_active", "version 3 is active: activate another first")
        return JSONResponse(manifest(request.path_params["task"], int(request.path_params["n"])))

    async def _download(self, request: Request) -> Response:
        await self._note(request)
        return Response(b"bytes of " + request.query_params.get("format", "artifact").encode())

    async def _activated(self, request: Request) -> Response:
        await self._note(request)
        name = request.path_params["task"]
        return JSONResponse({"task": name, "active_version": 2, "digest": DIGEST, "warning": None})

    async def _traffic(self, request: Request) -> Response:
        body = await self._note(request)
        split = {"task": request.path_params["task"], "active_version": 3} | (
            json.loads(body) if body else {"weights": None}
        )
        if request.method == "GET":
            split |= SPLIT
        return JSONResponse(split)

    async def _keys(self, request: Request) -> Response:
        body = await self._note(request)
        if request.method == "POST":
            return JSONResponse(key(**json.loads(body)) | {"key": "fwd_k1_secret"}, 201)
        return JSONResponse({"keys": [key("one", ["read"], ["*"])]})

    async def _key(self, request: Request) -> Response:
        await self._note(request)
        return Response(status_code=204)

    async def _audit(self, request: Request) -> Response:
        await self._note(request)
        row = {"seq": 8, "at": NOW, "action": "rollback", "task": "x", "version": 2}
        hashes = {"prev_hash": "a" * 64, "hash": "b" * 64}
        return JSONResponse({"entries": [row | hashes], "next_after": None})


def problem(status: int, code: str, detail: str) -> Response:
    told = {"type": "about:blank", "title": "No", "status": status, "code": code, "detail": detail}
    return JSONResponse(told | {"request_id": "r1"}, status, media_type="application/problem+json")


def event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def task(name: str) -> dict[str, Any]:
    profile = {"description": f"[bold]{name}[/bold]", "template": None, "chat": False}
    numbers = {"active_version": 3, "num_versions": 3, "revision": 7}
    times = {"created_at": NOW, "updated_at": NOW}
    return {"name": name, "profile": profile} | numbers | times


def key(name: str, scopes: list[str], tasks: list[str], **limits: Any) -> dict[str, Any]:
    made = {"id": "k1", "created_at": NOW, "created_by": None, "revoked_at": None}
    return {"name": name, "scopes": scopes, "tasks": tasks} | limits | made


def manifest(name: str, number: int) -> dict[str, Any]:
    numbers = {"version": number, "num_virtual_tokens": 20, "num_bytes": 1_500_000}
    return {"task": name, "digest": DIGEST, "source_format": "peft", "created_at": NOW} | numbers
