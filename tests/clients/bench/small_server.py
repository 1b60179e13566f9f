"""A small server that speaks as much of both APIs as the load generator needs, and no model."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

BASE = "small"
GAP_S = 0.005


@dataclass
class SmallServer:
    """A small server whose faults a test sets."""

    url: str = ""
    is_foreword: bool = True
    lag_s: float = 0.0
    """A new version answers only so long after its upload's 200."""
    stall_s: float = 0.0
    """Streams stand still so long after a swap."""
    refuse_every: int = 0
    """One of so many requests gets a 429."""
    cut_short_every: int = 0
    """One of so many streams ends a token early."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_versions: dict[str, int] = field(default_factory=dict)
    swaps: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """When a version of a task was made active, and which."""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/completions", self._openai, methods=["POST"]),
                Route("/generate", self._native, methods=["POST"]),
                Route("/info", self._info),
                Route("/tasks/{task}", self._task),
                Route("/tasks/{task}/prefix", self._upload, methods=["PUT"]),
                Route("/tasks/{task}/activate", self._activate, methods=["POST"]),
            ]
        )

    def version(self, task: str) -> int:
        """The one that answers now."""
        now = time.monotonic()
        seen = [number for at, number in self.swaps.get(task, []) if now - at >= self.lag_s]
        return seen[-1] if seen else 1

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": BASE}, *({"id": name} for name in self.swaps)]})

    async def _info(self, request: Request) -> Response:
        if not self.is_foreword:
            return JSONResponse({}, 404)
        return JSONResponse({"fingerprint": "f", "num_layers": 2, "num_kv_heads": 1, "head_dim": 4})

    async def _task(self, request: Request) -> Response:
        task = request.path_params["task"]
        if task not in self.swaps:
            return JSONResponse({"code": "unknown_task"}, 404)
        return JSONResponse({"active_version": self.version(task)})

    async def _upload(self, request: Request) -> Response:
        task, body = request.path_params["task"], await request.body()
        assert len(body) > 64
        number = self.num_versions[task] = self.num_versions.get(task, 0) + 1
        self._swap(task, number)
        return JSONResponse({"version": number}, 201)

    async def _activate(self, request: Request) -> Response:
        number = (await request.json())["version"]
        self._swap(request.path_params["task"], number)
        return JSONResponse({"active_version": number})

    def _swap(self, task: str, number: int) -> None:
        self.swaps.setdefault(task, []).append((time.monotonic(), number))

    async def _openai(self, request: Request) -> Response:
        body = await self._take(request)
        if body["model"] != BASE and body["model"] not in self.swaps:
            return JSONResponse({"error": {"code": "unknown_task", "message": "no"}}, 404)
        if self._is_turn(self.refuse_every):
            return JSONResponse({"error": {"code": "overloaded", "message": "later"}}, 429)
        return self._stream(self._openai_events(body), body["model"])

    async def _native(self, request: Request) -> Response:
        body = await self._take(request)
        return self._stream(self._native_events(body), request.query_params.get("task", BASE))

    async def _take(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(await request.body())
        self.bodies.append(body | {"query": str(request.url.query)})
        return body

    def _is_turn(self, every: int) -> bool:
        return bool(every) and len(self.bodies) % every == 0

    def _stream(self, events: AsyncIterator[bytes], model: str) -> Response:
        headers = {} if model == BASE else {"X-Task-Version": str(self.version(model))}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _openai_events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        count = body["max_tokens"] - self._is_turn(self.cut_short_every)
        for _ in range(count):
            await self._next_token()
            yield data({"choices": [{"index": 0, "text": "ä"}], "usage": None})
        yield data({"choices": [], "usage": usage(body, count)})
        yield b"data: [DONE]\n\n"

    async def _native_events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        for _ in range(body["max_tokens"]):
            await self._next_token()
            yield b"event: token\n" + data({"text": "a", "token_ids": None})
        yield b"event: done\n" + data({"usage": usage(body, body["max_tokens"])})

    async def _next_token(self) -> None:
        await asyncio.sleep(GAP_S)
        swaps = [at for swaps in self.swaps.values() for at, _ in swaps[1:]]
        if swaps:
            await asyncio.sleep(max(0.0, max(swaps) + self.stall_s - time.monotonic()))


def data(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def usage(body: dict[str, Any], count: int) -> dict[str, int]:
    return {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}
