"""How the clients send calls: HTTP connections, retries and errors, sync and async."""

from __future__ import annotations

import time
from contextlib import aclosing, closing
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import httpx

from foreword_client import _calls, errors
from foreword_client._retry import Retries
from foreword_client._wire import DEFAULT_TIMEOUT, Call, Target, error_of, sent_again

T = TypeVar("T")


class Connection:
    """Connections to a server. Close it, or use it as a context manager."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        max_retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._target = Target.of(base_url, api_key)
        self._max_retries = max_retries
        self._http = httpx.Client(
            base_url=self._target.url,
            headers=self._target.headers,
            timeout=timeout,
            transport=transport,
            trust_env=not self._target.is_loopback,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _call(self, call: Call[T]) -> T:
        with self._target.translated(), closing(self._send(call)) as response:
            response.read()
        return call.parse(response)

    def _send(self, call: Call[Any]) -> httpx.Response:
        """Return the response of the first attempt that succeeds, with its body not yet read."""
        retries = Retries(
            self._max_retries,
            repeatable=call.repeatable,
            idempotent=call.idempotency_key is not None,
        )
        while True:
            try:
                return self._attempt(call)
            except errors.ForewordError as exc:
                delay_s = retries.delay_s(exc)
                if delay_s is None:
                    raise
            time.sleep(delay_s)
            if call.seen is not None:
                call = sent_again(call, self._call(_calls.task(call.seen.name)))

    def _attempt(self, call: Call[Any]) -> httpx.Response:
        content = None if call.body is None else call.body.chunks()
        args = {"params": call.params, "headers": call.headers, "timeout": call.timeout}
        request = self._http.build_request(call.method, call.path, content=content, **args)
        with self._target.translated():
            response = self._http.send(request, stream=True)
            if not response.is_success:
                with closing(response):
                    response.read()
                raise error_of(response)
        return response


class AsyncConnection:
    """Connections to a server. Close it, or use it as an async context manager."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        max_retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._target = Target.of(base_url, api_key)
        self._max_retries = max_retries
        self._http = httpx.AsyncClient(
            base_url=self._target.url,
            headers=self._target.headers,
            timeout=timeout,
            transport=transport,
            trust_env=not self._target.is_loopback,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _call(self, call: Call[T]) -> T:
        with self._target.translated():
            async with aclosing(await self._send(call)) as response:
                await response.aread()
        return call.parse(response)

    async def _send(self, call: Call[Any]) -> httpx.Response:
        """Return the response of the first attempt that succeeds, with its body not yet read."""
        retries = Retries(
            self._max_retries,
            repeatable=call.repeatable,
            idempotent=call.idempotency_key is not None,
        )
        while True:
            try:
                return await self._attempt(call)
            except errors.ForewordError as exc:
                delay_s = retries.delay_s(exc)
                if delay_s is None:
                    raise
            await anyio.sleep(delay_s)
            if call.seen is not None:
                call = sent_again(call, await self._call(_calls.task(call.seen.name)))

    async def _attempt(self, call: Call[Any]) -> httpx.Response:
        content = None if call.body is None else call.body.async_chunks()
        args = {"params": call.params, "headers": call.headers, "timeout": call.timeout}
        request = self._http.build_request(call.method, call.path, content=content, **args)
        with self._target.translated():
            response = await self._http.send(request, stream=True)
            if not response.is_success:
                async with aclosing(response):
                    await response.aread()
                raise error_of(response)
        return response
