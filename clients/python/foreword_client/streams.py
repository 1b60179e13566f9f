"""Streamed completions, sync and async."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from types import TracebackType
from typing import Self

import httpx

from foreword_client import errors, types
from foreword_client._sse import Decoder, Event
from foreword_client._wire import Target, error_in_stream, read


class _Reader:
    """The part of both streams without I/O: bytes in, tokens out, and the result at the end."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._headers: httpx.Headers | None = None
        self._decoder = Decoder()
        self._texts: list[str] = []
        self._result: types.Generation | None = None

    @property
    def version(self) -> int | None:
        """Version of the task; None for the base model. Known once the stream is open."""
        given = self._header("x-task-version")
        return int(given) if given.isascii() and given.isdigit() else None

    @property
    def digest(self) -> str | None:
        """Digest of the prefix; None for the base model. Known once the stream is open."""
        return self._header("x-prefix-digest") or None

    @property
    def request_id(self) -> str | None:
        """Id of the request in the server's log. Known once the stream is open."""
        return self._header("x-request-id") or None

    @property
    def result(self) -> types.Generation:
        """The whole completion, its usage and timings. Raises `UnfinishedStreamError` until the
        stream has ended."""
        if self._result is None:
            raise errors.UnfinishedStreamError("the stream has not ended: read all its tokens")
        return self._result

    def _header(self, name: str) -> str:
        if self._headers is None:
            raise errors.UnfinishedStreamError("the stream is not open: enter it with `with`")
        return str(self._headers.get(name, ""))

    def _begin(self, response: httpx.Response) -> bool:
        """Keep the headers. Return whether the response is a stream."""
        self._headers = response.headers
        return str(response.headers.get("content-type", "")).startswith("text/event-stream")

    def _no_stream(self) -> errors.UnexpectedAnswerError:
        return errors.UnexpectedAnswerError(f"{self._target} did not answer with a stream")

    def _feed(self, chunk: bytes, response: httpx.Response) -> Iterator[types.Token]:
        for event in self._decoder.feed(chunk):
            yield from self._take(event, response)

    def _take(self, event: Event, response: httpx.Response) -> Iterator[types.Token]:
        match event.name:
            case "token":
                token = read(types.Token, event.data)
                self._texts.append(token.text)
                yield token
            case "done":
                ending = read(_Ending, event.data)
                self._result = ending.with_text("".join(self._texts))
            case "error":
                raise error_in_stream(event.data, response)

    def _end(self) -> None:
        if self._result is None:
            raise errors.ConnectionLostError(f"the stream from {self._target} broke off")


class _Ending(types.Generation):
    """A `done` event: the generation without its text, which was streamed."""

    text: str = ""

    def with_text(self, text: str) -> types.Generation:
        return types.Generation(**dict(self) | {"text": text})


class Stream(_Reader):
    """Iterator over the tokens of a completion. Leaving it early cancels the request.

    Usage:
        with client.stream("Once upon a time", task="stories") as stream:
            for token in stream:
                print(token.text, end="", flush=True)
        print(stream.result.usage)
    """

    def __init__(self, target: Target, send: Callable[[], httpx.Response]) -> None:
        super().__init__(target)
        self._send = send
        self._response: httpx.Response | None = None
        self._tokens = self._read()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> types.Token:
        return next(self._tokens)

    def close(self) -> None:
        """Close the connection, which cancels the rest of the completion. Idempotent."""
        self._tokens.close()
        if self._response is not None:
            self._response.close()

    def _open(self) -> httpx.Response:
        if self._response is None:
            self._response = self._send()
            if not self._begin(self._response):
                self._response.close()
                raise self._no_stream()
        return self._response

    def _read(self) -> Generator[types.Token, None, None]:
        response = self._open()
        try:
            with self._target.translated():
                for chunk in response.iter_bytes():
                    yield from self._feed(chunk, response)
            self._end()
        finally:
            response.close()


class AsyncStream(_Reader):
    """Iterator over the tokens of a completion. Leaving it early cancels the request.

    Usage:
        async with client.stream("Once upon a time", task="stories") as stream:
            async for token in stream:
                print(token.text, end="", flush=True)
        print(stream.result.usage)
    """

    def __init__(self, target: Target, send: Callable[[], Awaitable[httpx.Response]]) -> None:
        super().__init__(target)
        self._send = send
        self._response: httpx.Response | None = None
        self._tokens = self._read()

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[types.Token]:
        return self

    async def __anext__(self) -> types.Token:
        return await anext(self._tokens)

    async def close(self) -> None:
        """Close the connection, which cancels the rest of the completion. Idempotent."""
        await self._tokens.aclose()
        if self._response is not None:
            await self._response.aclose()

    async def _open(self) -> httpx.Response:
        if self._response is None:
            self._response = await self._send()
            if not self._begin(self._response):
                await self._response.aclose()
                raise self._no_stream()
        return self._response

    async def _read(self) -> AsyncGenerator[types.Token, None]:
        response = await self._open()
        try:
            with self._target.translated():
                async for chunk in response.aiter_bytes():
                    for token in self._feed(chunk, response):
                        yield token
            self._end()
        finally:
            await response.aclose()
