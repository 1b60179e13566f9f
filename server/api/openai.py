"""OpenAI's completions and chat, so that tools written for them work unchanged.

`model` is a task, `task@version`, or the base model's name.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response

from prefix_store.errors import UnknownTask
from prefix_store.reference import MAX_VERSION
from server.api import problems, sse
from server.api.access import Principal, PrincipalDep, needs
from server.api.deps import JsonRoute, Services, ServicesDep, TrafficKeyHeader, traffic_key
from server.api.disconnect import until_disconnect
from server.api.generate import note, target_headers
from server.api.openai_schemas import ChatRequest, CompletionRequest
from server.completion import Completion, Piece
from server.errors import ServerError

routes = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)

_encoder = msgspec.json.Encoder()
_MODEL = re.compile(r"([a-z0-9_-]+)(?:@([0-9]{1,10}))?", re.ASCII)

MAX_MODELS = 1000
"""Listed at most. A task need not be listed to be asked for."""

Kind = Literal["text_completion", "chat.completion"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What all chunks of one answer share."""

    kind: Kind
    model: str
    request_id: str
    created: int
    include_usage: bool

    def envelope(self, *, chunk: bool) -> dict[str, Any]:
        is_chat = self.kind == "chat.completion"
        return {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{self.request_id}",
            "object": f"{self.kind}.chunk" if is_chat and chunk else self.kind,
            "created": self.created,
            "model": self.model,
        }

    def choice(self, index: int, piece: Piece, *, chunk: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": piece.finish_reason}
        if self.kind == "text_completion":
            return choice | {"text": piece.text, "logprobs": None}
        said = {"content": piece.text} if chunk else {"role": "assistant", "content": piece.text}
        return choice | {"delta" if chunk else "message": said, "logprobs": None}


@routes.get("/models")
@needs("generate", "read")
async def models(services: ServicesDep, principal: PrincipalDep) -> Response:
    """The base model, and every task that has an active version."""
    tasks = await services.off_loop(services.store.list_tasks, None, MAX_MODELS, principal.globs)
    entries = [_model(services.model_name, 0)] + [
        _model(task.name, int(task.created_at.timestamp()))
        for task in tasks
        if task.active_version is not None
    ]
    return _json({"object": "list", "data": entries})


@routes.post("/completions")
@needs("generate")
async def completions(
    body: CompletionRequest,
    request: Request,
    services: ServicesDep,
    principal: PrincipalDep,
    key: TrafficKeyHeader = None,
) -> Response:
    """Complete one prompt or several: text, or token ids."""
    task, version = _target(body.model, services, principal)
    key = traffic_key(key, request)
    running = await services.router.admit_all(task, version, body.params(), key=key)
    answer = _answer("text_completion", body.model, request, body.include_usage)
    return await _respond(answer, running, request, stream=bool(body.stream))


@routes.post("/chat/completions")
@needs("generate")
async def chat_completions(
    body: ChatRequest,
    request: Request,
    services: ServicesDep,
    principal: PrincipalDep,
    key: TrafficKeyHeader = None,
) -> Response:
    """Answer chat messages."""
    task, version = _target(body.model, services, principal)
    key = traffic_key(key, request)
    running = [await services.router.admit(task, version, body.params(), key=key)]
    answer = _answer("chat.completion", body.model, request, body.include_usage)
    return await _respond(answer, running, request, stream=bool(body.stream))


def _target(model: str, services: Services, principal: Principal) -> tuple[str | None, int | None]:
    if model == services.model_name:
        principal.check_task(None)
        return None, None
    match = _MODEL.fullmatch(model)
    if match is None or int(match[2] or 1) not in range(1, MAX_VERSION + 1):
        raise UnknownTask("no task, and not the base model, has this name")
    principal.check_task(match[1])
    return match[1], int(match[2]) if match[2] else None


def _answer(kind: Kind, model: str, request: Request, include_usage: bool) -> Answer:
    return Answer(kind, model, request.state.request_id, int(time.time()), include_usage)


async def _respond(
    answer: Answer, running: Sequence[Completion], request: Request, *, stream: bool
) -> Response:
    headers = target_headers(running[0])
    if stream:
        events = _events(answer, running, request)
        return sse.EventStream(events, close=lambda: _close(running), headers=headers)
    pieces = await until_disconnect(request, _collect(running))
    note(request, *running)
    choices = [answer.choice(i, piece, chunk=False) for i, piece in enumerate(pieces)]
    content = answer.envelope(chunk=False) | {"choices": choices, "usage": _usage(running)}
    return _json(content, headers)


async def _collect(running: Sequence[Completion]) -> list[Piece]:
    try:
        return await asyncio.gather(*(completion.collect() for completion in running))
    finally:
        _close(running)


async def _events(
    answer: Answer, running: Sequence[Completion], request: Request
) -> AsyncGenerator[bytes, None]:
    envelope = answer.envelope(chunk=True) | ({"usage": None} if answer.include_usage else {})
    try:
        if answer.kind == "chat.completion":
            opening = {"role": "assistant", "content": ""}
            first = {"index": 0, "delta": opening, "logprobs": None, "finish_reason": None}
            yield sse.data(envelope | {"choices": [first]})
        async with aclosing(_interleaved(running)) as pieces:
            async for index, piece in pieces:
                if piece.text or piece.finish_reason:
                    choice = answer.choice(index, piece, chunk=True)
                    yield sse.data(envelope | {"choices": [choice]})
        if answer.include_usage:
            yield sse.data(envelope | {"choices": [], "usage": _usage(running)})
    except ServerError as exc:
        yield sse.data(problems.openai_error(problems.status_of(exc), exc.code, str(exc)))
    finally:
        note(request, *running)
    yield sse.DONE


async def _interleaved(running: Sequence[Completion]) -> AsyncGenerator[tuple[int, Piece], None]:
    """Pieces of all completions as they come, each with its completion's index."""
    queue: asyncio.Queue[tuple[int, Piece | ServerError]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(i, c, queue)) for i, c in enumerate(running)]
    try:
        num_left = len(running)
        while num_left:
            index, item = await queue.get()
            if isinstance(item, ServerError):
                raise item
            yield index, item
            num_left -= item.finish_reason is not None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    index: int, completion: Completion, queue: asyncio.Queue[tuple[int, Piece | ServerError]]
) -> None:
    try:
        async for piece in completion:
            queue.put_nowait((index, piece))
    except ServerError as exc:
        queue.put_nowait((index, exc))


def _close(running: Sequence[Completion]) -> None:
    for completion in running:
        completion.close()


def _usage(running: Sequence[Completion]) -> dict[str, Any]:
    num_prompt = sum(completion.num_prompt_tokens for completion in running)
    num_cached = sum(completion.num_cached_tokens for completion in running)
    num_completion = sum(completion.num_completion_tokens for completion in running)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "foreword"}


def _json(content: object, headers: dict[str, str] | None = None) -> Response:
    return Response(_encoder.encode(content), headers=headers, media_type="application/json")
