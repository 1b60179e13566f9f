"""Completions as OpenAI's routes answer them, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.schemas.generate import ranking_of
from server.api.schemas.logprobs import of_chat, of_completion, scored
from server.api.schemas.openai import ChatRequest, CompletionRequest, StreamOptions
from server.generation.completion import Completion, Piece
from server.text.tokenizer import Tokenizer

NOTHING = Piece("", [], None)


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What all choices and chunks of one answer share, and what its request wants to see."""

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
        """Whether log-probabilities are requested: by a number in completions, a bool in chat."""
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
        """Token counts. A prompt counts once, however many choices it has."""
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


class ChoiceWriter:
    """Writes one completion as a choice, whole or piece by piece."""

    def __init__(self, answer: AnswerFormat, index: int, completion: Completion) -> None:
        self._answer = answer
        self._index = index
        self._completion = completion
        self._offset = 0
        """Number of characters written, by the texts of the tokens with log-probabilities."""
        self._has_begun = False

    def whole(self, piece: Piece) -> dict[str, Any]:
        return self._written(piece, "message", {"role": "assistant", "content": piece.text})

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The chunks of a piece; none for a piece without tokens.

        A chat sends the role with its first token, not before: clients take the time to the first
        chunk for the time to the first token.
        """
        if not (piece.token_ids or piece.finish_reason):
            return
        if self._answer.is_chat and not self._has_begun:
            yield self._written(NOTHING, "delta", {"role": "assistant", "content": ""})
        wants_all = self._answer.has_scores or self._shows_ids
        if wants_all or self.opens_with_echo or piece.text or piece.finish_reason:
            yield self._written(piece, "delta", {"content": piece.text})

    @property
    def opens_with_echo(self) -> bool:
        """Whether the next chunk begins with the prompt."""
        return self._answer.echo and not self._has_begun

    @property
    def _shows_ids(self) -> bool:
        return bool(self._answer.body.return_token_ids)

    def _written(self, piece: Piece, place: str, content: dict[str, Any]) -> dict[str, Any]:
        echo, is_first, self._has_begun = self.opens_with_echo, not self._has_begun, True
        choice: dict[str, Any] = {"index": self._index, "finish_reason": piece.finish_reason}
        if self._shows_ids:
            choice["token_ids"] = piece.token_ids
            choice["prompt_token_ids"] = self._completion.prompt_token_ids if is_first else None
        if (ranking := ranking_of(self._completion)) is not None:
            choice["ranking"] = ranking
        if self._answer.is_chat:
            return choice | {place: content, "logprobs": self._logprobs(piece, echo=False)}
        prompt = self._answer.tokenizer.decode(self._completion.prompt_token_ids) if echo else ""
        return choice | {"text": prompt + piece.text, "logprobs": self._logprobs(piece, echo=echo)}

    def _logprobs(self, piece: Piece, *, echo: bool) -> dict[str, Any] | None:
        answer, completion = self._answer, self._completion
        if not answer.has_scores:
            return None
        tokens = scored(completion.prompt_token_ids, completion.prompt_logprobs) if echo else []
        tokens += scored(piece.token_ids, piece.logprobs)
        as_ids = bool(answer.body.return_tokens_as_token_ids)
        write = of_chat if answer.is_chat else of_completion
        written, self._offset = write(tokens, answer.tokenizer, self._offset, as_ids=as_ids)
        return written
