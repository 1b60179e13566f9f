"""`POST /generate`: one completion of one prompt, whole or as events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from prefix_store.reference import MAX_VERSION
from server.api.http import problems, sse
from server.api.http.access import PrincipalDep, needs
from server.api.http.deps import (
    JsonRoute,
    Services,
    ServicesDep,
    TrafficKeyHeader,
    traffic_key,
)
from server.api.schemas.generate import GenerateRequest, GenerateResponse, ranking_of
from server.api.schemas.logprobs import plain, scored
from server.errors import ServerError
from server.generation.completion import Completion, Piece, joined
from server.text.tokenizer import Tokenizer

routes = APIRouter(tags=["generate"], route_class=JsonRoute)

_encoder = msgspec.json.Encoder()
_STREAMED = "Events `token`, then `done` or `error`, where `stream` is true."

TaskQuery = Annotated[str | None, Query(description="The task's name. None: the base model.")]
VersionQuery = Annotated[
    int | None, Query(ge=1, le=MAX_VERSION, description="Default: the active version.")
]


class TokenEvent(msgspec.Struct, omit_defaults=True):
    """A stream's `token` event: the next part of the text."""

    text: str
    token_ids: list[int] | None
    logprobs: list[dict[str, Any]] | None = None


@routes.post(
    "/generate",
    response_model=GenerateResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": _STREAMED}},
)
@needs("generate")
async def generate(
    body: GenerateRequest,
    request: Request,
    services: ServicesDep,
    principal: PrincipalDep,
    task: TaskQuery = None,
    version: VersionQuery = None,
    key: TrafficKeyHeader = None,
) -> Response:
    """Complete a prompt after the task's prefix, whole or token by token."""
    principal.check_task(task)
    key = traffic_key(body.traffic_key or key, request)
    completion = await services.router.admit(
        task, version, body.params(), key=key, client=principal.key
    )
    headers = target_headers(completion)
    note(request, completion)
    write = Writer(body, request, completion, services.tokenizer)
    if body.stream:
        events = _events(completion, request, write, services)
        return sse.EventStream(events, close=completion.close, headers=headers)
    whole = await completion.collect()
    note(request, completion)
    content = await services.written(partial(write.whole, whole), is_slow=write.has_scores)
    return Response(content, headers=headers, media_type="application/json")


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes one completion with the fields that its request asks for."""

    body: GenerateRequest
    request: Request
    completion: Completion
    tokenizer: Tokenizer

    @property
    def has_scores(self) -> bool:
        return self.body.logprobs is not None or self.body.prompt_logprobs is not None

    def whole(self, whole: Piece) -> bytes:
        """The answer as JSON."""
        return _encoder.encode(self.answer(whole) | {"text": whole.text})

    def done(self, pieces: Sequence[Piece]) -> bytes:
        """The last event of a stream: the answer without its text."""
        return sse.event("done", self.answer(joined(pieces)))

    def token(self, piece: Piece) -> TokenEvent | None:
        """The event of a piece; None for an empty piece."""
        token_ids = piece.token_ids if self.body.return_token_ids else None
        logprobs = self._logprobs(piece)
        if not (piece.text or token_ids or logprobs):
            return None
        return TokenEvent(piece.text, token_ids, logprobs)

    def answer(self, whole: Piece) -> dict[str, Any]:
        """The answer without its text."""
        completion, target = self.completion, self.completion.target
        answer: dict[str, Any] = {
            "id": f"gen-{self.request.state.request_id}",
            "task": target.task,
            "version": target.version,
            "digest": None if target.digest is None else str(target.digest),
            "token_ids": whole.token_ids if self.body.return_token_ids else None,
            "finish_reason": completion.finish_reason,
            "usage": {
                "prefix_tokens": target.num_prefix_tokens,
                "prompt_tokens": completion.num_prompt_tokens,
                "cached_tokens": completion.num_cached_tokens,
                "completion_tokens": completion.num_completion_tokens,
            },
            "timings": {
                "queue_ms": _ms(completion.queue_s),
                "first_token_ms": _ms(completion.time_to_first_token_s),
                "total_ms": _ms(completion.total_s),
            },
        }
        if (ranking := ranking_of(completion)) is not None:
            answer["ranking"] = ranking
        if (logprobs := self._logprobs(whole)) is not None:
            answer["logprobs"] = logprobs
        if self.body.prompt_logprobs is not None:
            tokens = scored(completion.prompt_token_ids, completion.prompt_logprobs)
            answer["prompt_logprobs"] = plain(tokens, self.tokenizer)
        return answer

    def _logprobs(self, piece: Piece) -> list[dict[str, Any]] | None:
        if self.body.logprobs is None:
            return None
        return plain(scored(piece.token_ids, piece.logprobs), self.tokenizer)


async def _events(
    completion: Completion, request: Request, write: Writer, services: Services
) -> AsyncGenerator[bytes, None]:
    """The events of a stream. The status is sent already: an error becomes an `error` event."""
    pieces: list[Piece] = []
    try:
        async for piece in completion:
            pieces.append(piece)
            if (token := write.token(piece)) is not None:
                yield sse.event("token", token)
        yield await services.written(partial(write.done, pieces), is_slow=write.has_scores)
    except ServerError as exc:
        yield sse.event("error", problems.describe(exc, request.state.request_id))
    finally:
        note(request, completion)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def target_headers(completion: Completion) -> dict[str, str]:
    """Headers that name the version and digest of the prefix."""
    target = completion.target
    if target.digest is None:
        return {}
    return {"X-Task-Version": str(target.version), "X-Prefix-Digest": str(target.digest)}


def note(request: Request, *completions: Completion) -> None:
    """Add the request's completions to its log line."""
    request.state.log |= {
        "task": completions[0].target.task,
        "version": completions[0].target.version,
        "prompt_tokens": sum(completion.num_prompt_tokens for completion in completions),
        "completion_tokens": sum(completion.num_completion_tokens for completion in completions),
        "outcome": completions[0].outcome,
    }
