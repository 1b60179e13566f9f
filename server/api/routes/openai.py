"""OpenAI's completions and chat, so that tools written for them work unchanged.

`model` is a task, `task@version`, or the base model's name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from prefix_store.errors import InvalidName, UnknownTask
from prefix_store.manifest import Task
from prefix_store.reference import Reference
from server.api.http import problems, sse
from server.api.http.access import Principal, PrincipalDep, needs
from server.api.http.deps import JsonRoute, Services, ServicesDep, TrafficKeyHeader, traffic_key
from server.api.http.disconnect import until_disconnect
from server.api.routes.generate import note, scored_choices, target_headers
from server.api.schemas.logprobs import of_chat, of_completion, scored
from server.api.schemas.openai import ChatRequest, CompletionRequest, StreamOptions
from server.errors import ServerError
from server.generation.completion import Completion, Piece
from server.text.tokenizer import Tokenizer

routes = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)

_encoder = msgspec.json.Encoder()

MAX_MODELS = 1000
"""Listed at most. A task need not be listed to be asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What all chunks of one answer share, and how its request wants it written."""

    body: CompletionRequest | ChatRequest
    request_id: str
    created: int
    tokenizer: Tokenizer

    @property
    def is_chat(self) -> bool:
        return isinstance(self.body, ChatRequest)

    @property
    def echo(self) -> bool:
        return isinstance(self.body, CompletionRequest) and bool(self.body.echo)

    @property
    def has_scores(self) -> bool:
        """`logprobs` is a number in completions, yes or no in chat."""
        return self.body.logprobs is not None and self.body.logprobs is not False

    @property
    def stream_options(self) -> StreamOptions:
        return self.body.stream_options or StreamOptions()

    def envelope(self, *, chunk: bool) -> dict[str, Any]:
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.request_id}",
            "object": f"{kind}.chunk" if self.is_chat and chunk else kind,
            "created": self.created,
            "model": self.body.model,
        }

    def usage(self, running: Sequence[Completion]) -> dict[str, Any]:
        """A prompt counts once, however many choices it has."""
        prompts = running[:: self.body.num_choices]
        num_prompt = sum(completion.num_prompt_tokens for completion in prompts)
        num_cached = sum(completion.num_cached_tokens for completion in prompts)
        num_completion = sum(completion.num_completion_tokens for completion in running)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_completion,
            "total_tokens": num_prompt + num_completion,
            "prompt_tokens_details": {"cached_tokens": num_cached},
        }


NOTHING = Piece("", [], None)


class Choice:
    """Writes one completion, whole or piece by piece."""

    def __init__(self, answer: Answer, index: int, completion: Completion) -> None:
        self._answer = answer
        self._index = index
        self._completion = completion
        self._offset = 0
        """Characters written, as far as tokens with scores count them."""
        self._has_begun = False

    def whole(self, piece: Piece) -> dict[str, Any]:
        return self._written(piece, "message", {"role": "assistant", "content": piece.text})

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """None of a piece that says nothing yet. A chat says who speaks with its first token, not
        before: clients take the time of the first chunk for that token's."""
        if not (piece.token_ids or piece.finish_reason):
            return
        if self._answer.is_chat and not self._has_begun:
            yield self._written(NOTHING, "delta", {"role": "assistant", "content": ""})
        wants_all = self._answer.has_scores or self._shows_ids
        if wants_all or self._opens_with_echo or piece.text or piece.finish_reason:
            yield self._written(piece, "delta", {"content": piece.text})

    @property
    def _opens_with_echo(self) -> bool:
        return self._answer.echo and not self._has_begun

    @property
    def _shows_ids(self) -> bool:
        return bool(self._answer.body.return_token_ids)

    def _written(self, piece: Piece, where: str, said: dict[str, Any]) -> dict[str, Any]:
        echo, is_first, self._has_begun = self._opens_with_echo, not self._has_begun, True
        choice: dict[str, Any] = {"index": self._index, "finish_reason": piece.finish_reason}
        if self._shows_ids:
            choice["token_ids"] = piece.token_ids
            choice["prompt_token_ids"] = self._completion.prompt_token_ids if is_first else None
        if (scores := scored_choices(self._completion)) is not None:
            choice["scores"] = scores
        if self._answer.is_chat:
            return choice | {where: said, "logprobs": self._logprobs(piece, echo=False)}
        prompt = self._answer.tokenizer.decode(self._completion.prompt_token_ids) if echo else ""
        return choice | {"text": prompt + piece.text, "logprobs": self._logprobs(piece, echo=echo)}

    def _logprobs(self, piece: Piece, *, echo: bool) -> dict[str, Any] | None:
        answer, completion = self._answer, self._completion
        if not answer.has_scores:
            return None
        tokens = scored(completion.prompt_token_ids, completion.prompt_logprobs) if echo else []
        tokens += scored(piece.token_ids, piece.logprobs)
        as_ids = bool(answer.body.return_tokens_as_token_ids)
        if answer.is_chat:
            return of_chat(tokens, answer.tokenizer, as_ids=as_ids)
        written, self._offset = of_completion(tokens, answer.tokenizer, self._offset, as_ids=as_ids)
        return written


@routes.get("/models")
@needs("generate", "read")
async def models(services: ServicesDep, principal: PrincipalDep) -> Response:
    """The base model, and every task that has an active version."""
    tasks = await services.store.list_tasks(None, MAX_MODELS, principal.globs)
    entries = [_base_model(services)]
    entries += [_model(services, task) for task in tasks if task.active_version is not None]
    return _json({"object": "list", "data": entries})


@routes.get("/models/{model}")
@needs("generate", "read")
async def model(model: str, services: ServicesDep, principal: PrincipalDep) -> Response:
    """One of them, or one version of a task."""
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
    task, version = _target(body.model, services, principal)
    key = traffic_key(key, request)
    admitted = services.router.admit_all(task, version, body.params(), key=key)
    running = await until_disconnect(request, admitted)
    return await _respond(body, running, request, services)


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
    admitted = services.router.admit_all(task, version, body.params(), key=key)
    running = await until_disconnect(request, admitted)
    return await _respond(body, running, request, services)


def _target(model: str, services: Services, principal: Principal) -> tuple[str | None, int | None]:
    if model == services.model_name:
        principal.check_task(None)
        return None, None
    try:
        reference = Reference.parse(model)
    except InvalidName:
        raise UnknownTask("no task, and not the base model, has this name") from None
    principal.check_task(reference.task)
    return reference.task, reference.version


async def _respond(
    body: CompletionRequest | ChatRequest,
    running: Sequence[Completion],
    request: Request,
    services: Services,
) -> Response:
    answer = Answer(body, request.state.request_id, int(time.time()), services.tokenizer)
    choices = [Choice(answer, i, completion) for i, completion in enumerate(running)]
    headers = target_headers(running[0])
    if body.stream:
        events = _events(answer, choices, running, request)
        return sse.EventStream(events, close=lambda: _close(running), headers=headers)
    pieces = await until_disconnect(request, _collect(running))
    note(request, *running)

    def written() -> list[dict[str, Any]]:
        return [choice.whole(piece) for choice, piece in zip(choices, pieces, strict=True)]

    # The scores of long prompts take a while.
    listed = await services.run_for_request(written) if answer.has_scores else written()
    usage = answer.usage(running)
    return _json(answer.envelope(chunk=False) | {"choices": listed, "usage": usage}, headers)


async def _collect(running: Sequence[Completion]) -> list[Piece]:
    try:
        return await asyncio.gather(*(completion.collect() for completion in running))
    finally:
        _close(running)


async def _events(
    answer: Answer, choices: Sequence[Choice], running: Sequence[Completion], request: Request
) -> AsyncGenerator[bytes, None]:
    envelope, options = answer.envelope(chunk=True), answer.stream_options

    def chunk(choice: dict[str, Any]) -> bytes:
        content = envelope | {"choices": [choice]}
        if options.include_usage:
            content["usage"] = answer.usage(running) if options.continuous_usage_stats else None
        return sse.data(content)

    try:
        async with aclosing(_interleaved(running)) as pieces:
            async for index, piece in pieces:
                for written in choices[index].chunks(piece):
                    yield chunk(written)
        if options.include_usage:
            yield sse.data(envelope | {"choices": [], "usage": answer.usage(running)})
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
    """A task stands to the base model as an adapter does elsewhere."""
    return _base_model(services) | {
        "id": task.name,
        "created": int(task.created_at.timestamp()),
        "parent": services.model_name,
        "metadata": {"version": task.active_version, "description": task.profile.description},
    }


def _json(content: object, headers: dict[str, str] | None = None) -> Response:
    return Response(_encoder.encode(content), headers=headers, media_type="application/json")
