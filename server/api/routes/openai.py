"""OpenAI's models, completions and chat completions, for tools written for them.

`model` is a task, `task@version`, or the base model's name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from prefix_store.errors import InvalidName, UnknownTask
from prefix_store.manifest import Task
from prefix_store.reference import Reference
from server.api.http import problems, sse
from server.api.http.access import Principal, PrincipalDep, needs
from server.api.http.deps import OpenAIRoute, Services, ServicesDep, TrafficKeyHeader, traffic_key
from server.api.routes.generate import note, target_headers
from server.api.schemas.openai import ChatRequest, CompletionRequest
from server.api.schemas.openai_answer import AnswerFormat, ChoiceWriter
from server.errors import ServerError
from server.generation.completion import Completion, Piece

routes = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

_encoder = msgspec.json.Encoder()

MAX_MODELS = 1000
"""Maximum number of models in the list. Tasks beyond it can still be used."""


@routes.get("/models")
@needs("generate", "read")
async def models(services: ServicesDep, principal: PrincipalDep) -> Response:
    """List the base model and every task with an active version."""
    tasks = await services.store.list_tasks(None, MAX_MODELS, principal.globs)
    entries = [_base_model(services)]
    entries += [_model(services, task) for task in tasks if task.active_version is not None]
    return _json({"object": "list", "data": entries})


@routes.get("/models/{model}")
@needs("generate", "read")
async def model(model: str, services: ServicesDep, principal: PrincipalDep) -> Response:
    """Describe the base model, a task, or one version of a task."""
    if model == services.model_name:
        return _json(_base_model(services))
    name, version = _target(model, services, principal)
    assert name is not None, "only the base model is no task"
    task = await services.store.get_task(name)
    manifest = await services.store.resolve(name, version)
    entry = _model(services, task) | {"id": model}
    entry["max_model_len"] -= manifest.num_virtual_tokens
    entry["metadata"] |= {
        "version": manifest.version,
        "digest": manifest.digest,
        "prefix_tokens": manifest.num_virtual_tokens,
    }
    return _json(entry)


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
    return await _complete(body, request, services, principal, key)


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
    return await _complete(body, request, services, principal, key)


async def _complete(
    body: CompletionRequest | ChatRequest,
    request: Request,
    services: Services,
    principal: Principal,
    key: str | None,
) -> Response:
    task, version = _target(body.model, services, principal)
    running = await services.router.admit_all(
        task, version, body.params(), key=traffic_key(key, request), client=principal.key
    )
    return await _respond(body, running, request, services)


def _target(model: str, services: Services, principal: Principal) -> tuple[str | None, int | None]:
    if model == services.model_name:
        principal.check_task(None)
        return None, None
    try:
        reference = Reference.parse(model)
    except InvalidName:
        raise UnknownTask("neither a task nor the base model has this name") from None
    principal.check_task(reference.task)
    return reference.task, reference.version


async def _respond(
    body: CompletionRequest | ChatRequest,
    running: Sequence[Completion],
    request: Request,
    services: Services,
) -> Response:
    answer = AnswerFormat(body, request.state.request_id, int(time.time()), services.tokenizer)
    choices = [ChoiceWriter(answer, i, completion) for i, completion in enumerate(running)]
    headers = target_headers(running[0])
    if body.stream:
        events = _events(answer, choices, running, request, services)
        return sse.EventStream(events, close=lambda: _close(running), headers=headers)
    pieces = await _collect(running)
    note(request, *running)

    def write() -> bytes:
        listed = [choice.whole(piece) for choice, piece in zip(choices, pieces, strict=True)]
        rest = {"choices": listed, "usage": answer.usage(running)}
        return _encoder.encode(answer.envelope(chunk=False) | rest)

    content = await services.written(write, is_slow=answer.has_scores or answer.echo)
    return Response(content, headers=headers, media_type="application/json")


async def _collect(running: Sequence[Completion]) -> list[Piece]:
    try:
        return await asyncio.gather(*(completion.collect() for completion in running))
    finally:
        _close(running)


async def _events(
    answer: AnswerFormat,
    choices: Sequence[ChoiceWriter],
    running: Sequence[Completion],
    request: Request,
    services: Services,
) -> AsyncGenerator[bytes, None]:
    envelope, options = answer.envelope(chunk=True), answer.stream_options

    def chunk(choice: dict[str, Any]) -> bytes:
        content = envelope | {"choices": [choice]}
        if options.include_usage:
            content["usage"] = answer.usage(running) if options.continuous_usage_stats else None
        return sse.data(content)

    def chunks(choice: ChoiceWriter, piece: Piece) -> list[bytes]:
        return [chunk(written) for written in choice.chunks(piece)]

    try:
        async with aclosing(_interleaved(running)) as pieces:
            async for index, piece in pieces:
                write = partial(chunks, choices[index], piece)
                is_slow = choices[index].opens_with_echo
                for written in await services.written(write, is_slow=is_slow):
                    yield written
        if options.include_usage:
            yield sse.data(envelope | {"choices": [], "usage": answer.usage(running)})
    except ServerError as exc:
        yield sse.data(problems.openai_error(problems.status_of(exc), exc.code, str(exc)))
    finally:
        note(request, *running)
    yield sse.DONE


async def _interleaved(running: Sequence[Completion]) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield the pieces of all completions as they arrive, each with its completion's index."""
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


def _base_model(services: Services) -> dict[str, Any]:
    return {
        "id": services.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "foreword",
        "root": services.model_name,
        "parent": None,
        "max_model_len": services.engine.info.max_model_len,
        "metadata": None,
    }


def _model(services: Services, task: Task) -> dict[str, Any]:
    """A task as a model whose parent is the base model, as other servers show LoRA adapters."""
    return _base_model(services) | {
        "id": task.name,
        "created": int(task.created_at.timestamp()),
        "parent": services.model_name,
        "metadata": {"version": task.active_version, "description": task.profile.description},
    }


def _json(content: object, headers: dict[str, str] | None = None) -> Response:
    return Response(_encoder.encode(content), headers=headers, media_type="application/json")
