"""A minimal HTTP/1.1 client that uses little CPU time.

Client and server share the cores, so the client's CPU time is missing from the server's. While a
response arrives, only the bytes and their arrival times are kept; it is parsed when it is complete.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_LAST_CHUNK = b"0\r\n\r\n"
_IDLE_S = 1.0
"""A connection that has been idle for longer is not reused: the server may be closing it."""


class WireError(Exception):
    """The response was incomplete."""


@dataclass(slots=True)
class Exchange:
    """A request sent, and its response as it arrived."""

    sent_s: float
    status: int = 0
    head_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    """Raw reads of the body: (time, bytes)."""

    @property
    def is_chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() == "chunked"

    def parts(self) -> Iterator[tuple[float, bytes]]:
        """Yield the body in pieces, each with its arrival time."""
        chunks = Dechunker()
        for at_s, data in self.reads:
            yield at_s, chunks.feed(data) if self.is_chunked else data

    def body(self) -> bytes:
        return b"".join(data for _, data in self.parts())

    def is_whole(self) -> bool:
        """Return whether the body is complete. False if only the connection's end can show it."""
        if self.is_chunked:
            chunks = Dechunker()
            for _, data in self.reads:
                chunks.feed(data)
            return chunks.is_done
        length = self.headers.get("content-length")
        return length is not None and sum(len(data) for _, data in self.reads) >= int(length)


class Dechunker:
    """Incremental decoder of the chunked transfer encoding."""

    def __init__(self) -> None:
        self._rest = b""
        self._num_left = 0
        self.is_done = False

    def feed(self, data: bytes) -> bytes:
        """Return the part of the body in these bytes."""
        self._rest += data
        out = []
        while not self.is_done:
            if self._num_left:  # inside a chunk, its CR LF included
                taken = self._rest[: self._num_left]
                self._rest = self._rest[len(taken) :]
                out.append(taken[: max(0, self._num_left - 2)])
                self._num_left -= len(taken)
                if self._num_left:
                    break
            line, end, rest = self._rest.partition(b"\r\n")
            if not end:
                break
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                self.is_done = rest.endswith(b"\r\n")  # after trailers, if any
                break
            self._rest, self._num_left = rest, size + 2
        return b"".join(out)


class Connection(asyncio.Protocol):
    """A connection with one exchange at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[Exchange] | None = None
        self._head = b""
        self._tail = b""
        self.used_s = time.perf_counter()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def exchange(self, request: bytes) -> Exchange:
        """Send, and wait for the complete response. Raises `WireError`."""
        assert self._transport is not None
        self._head = self._tail = b""
        self._done = self._loop.create_future()
        self._exchange = Exchange(time.perf_counter())
        self._transport.write(request)
        try:
            return await self._done
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self.used_s = time.perf_counter()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        at_s = time.perf_counter()
        exchange = self._exchange
        if exchange is None:
            self.close()  # a response without a request
            return
        if not exchange.status:
            self._head += data
            if b"\r\n\r\n" not in self._head:
                return
            head, _, data = self._head.partition(b"\r\n\r\n")
            exchange.head_s = at_s
            _read_head(head, exchange)
        exchange.reads.append((at_s, data))
        self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        if (not exchange.is_chunked or self._tail == _LAST_CHUNK) and exchange.is_whole():
            self._finish(exchange)

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self._exchange
        if exchange is None or self._done is None or self._done.done():
            return
        until_close = not exchange.is_chunked and "content-length" not in exchange.headers
        if exchange.status and exc is None and until_close:
            self._finish(exchange)
        else:
            self._done.set_exception(WireError("the connection was lost in mid-response"))

    def _finish(self, exchange: Exchange) -> None:
        self._exchange = None
        if exchange.headers.get("connection", "").lower() == "close":
            self.close()
        if self._done is not None and not self._done.done():
            self._done.set_result(exchange)


def _read_head(head: bytes, exchange: Exchange) -> None:
    status_line, *lines = head.decode("latin-1").split("\r\n")
    exchange.status = int(status_line.split(" ", 2)[1])
    for line in lines:
        name, _, value = line.partition(":")
        exchange.headers[name.lower()] = value.strip()


class Http:
    """A pool of connections to one server, one per concurrent request."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or "127.0.0.1"
        self._is_tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._base = parts.path.rstrip("/")
        self._common = f"Host: {parts.netloc}\r\n"
        if api_key:
            self._common += f"Authorization: Bearer {api_key}\r\n"
        self._timeout_s = timeout_s
        self._free: list[Connection] = []

    def request(self, method: str, path: str, body: bytes, media_type: str) -> bytes:
        """Build the bytes to send."""
        head = (
            f"{method} {self._base}{path} HTTP/1.1\r\n{self._common}"
            f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def exchange(self, request: bytes) -> Exchange:
        """Send bytes and wait for the complete response. Raises `WireError`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connection()
                exchange = await connection.exchange(request)
        except TimeoutError:
            raise WireError(f"no complete response in {self._timeout_s:g} s") from None
        except OSError as exc:
            raise WireError(f"cannot connect: {exc.strerror or exc}") from None
        self._free.append(connection)
        return exchange

    def close(self) -> None:
        for connection in self._free:
            connection.close()

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.is_open and time.perf_counter() - connection.used_s < _IDLE_S:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            Connection, self._host, self._port, ssl=self._is_tls or None
        )
        return connection
