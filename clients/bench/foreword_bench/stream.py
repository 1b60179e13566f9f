"""Streamed completions: the content and arrival times of their events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from foreword_bench.wire import Exchange


class EventSplitter:
    """Incremental parser of an event stream: bytes in, complete events (name, data) out."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif line.startswith(b"event:"):
                self._name = line[6:].strip().decode()
            elif not line:
                if self._data:
                    yield self._name, b"\n".join(self._data)
                self._name, self._data = "", []


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as seen by its sender. Times are of `time.perf_counter`."""

    model: str
    due_s: float
    """When it should have been sent. Waiting in the client counts."""
    sent_s: float
    head_s: float = 0.0
    version: int | None = None
    """The version of the task that answered, if the server names it."""
    token_s: tuple[float, ...] = ()
    """Arrival times of events with tokens. The server decides how many tokens an event has."""
    num_tokens: int = 0
    num_prompt_tokens: int | None = None
    error: str | None = None
    """Why the request failed; None if it succeeded."""

    @property
    def ttft_s(self) -> float:
        return self.token_s[0] - self.due_s

    @property
    def tpot_s(self) -> float:
        """Time per output token, after the first."""
        return (self.token_s[-1] - self.token_s[0]) / max(1, self.num_tokens - 1)

    @property
    def total_s(self) -> float:
        return self.token_s[-1] - self.due_s


def read(exchange: Exchange, *, model: str, due_s: float, num_new_tokens: int) -> Answer:
    """Parse an exchange. An answer with another number of tokens than requested is an error."""
    events = _Events()
    if exchange.status != 200:
        events.error = _refusal(exchange)
    else:
        splitter = EventSplitter()
        for at_s, data in exchange.parts():
            for name, event in splitter.feed(data):
                events.add(at_s, name, event)
        events.check(num_new_tokens)
    version = exchange.headers.get("x-task-version")
    return Answer(
        model,
        due_s,
        exchange.sent_s,
        head_s=exchange.head_s,
        version=int(version) if version else None,
        token_s=tuple(events.token_s),
        num_tokens=events.usage.get("completion_tokens", len(events.token_s)),
        num_prompt_tokens=events.usage.get("prompt_tokens"),
        error=events.error,
    )


class _Events:
    """The events of a stream so far, in OpenAI's format or Foreword's."""

    def __init__(self) -> None:
        self.token_s: list[float] = []
        self.usage: dict[str, int] = {}
        self.error: str | None = None
        self._is_done = False

    def add(self, at_s: float, name: str, data: bytes) -> None:
        if data == b"[DONE]":
            self._is_done = True
            return
        try:
            event: dict[str, Any] = json.loads(data)
        except ValueError:
            self.error = "an event is not JSON"
            return
        if name == "error" or event.get("error"):
            about = event.get("error") or event
            self.error = f"stream: {about.get('code') or about.get('message')}"
        elif name == "token" or event.get("choices"):
            self.token_s.append(at_s)
        self.usage = event.get("usage") or self.usage
        self._is_done = self._is_done or name == "done"

    def check(self, num_new_tokens: int) -> None:
        num_tokens = self.usage.get("completion_tokens", len(self.token_s))
        if self.error is None and not self._is_done:
            self.error = "the stream ended early"
        if self.error is None and (num_tokens != num_new_tokens or not self.token_s):
            self.error = f"{num_tokens} tokens instead of {num_new_tokens}"


def _refusal(exchange: Exchange) -> str:
    """Format the status and the server's error code or message."""
    text = exchange.body().decode(errors="replace")
    try:
        body = json.loads(text)
        about = body["error"] if isinstance(body.get("error"), dict) else body
        said = about.get("code") or about.get("message") or ""
        if isinstance(said, int):  # vLLM repeats the status
            said = about.get("message", "")
    except (ValueError, AttributeError):
        said = text
    return f"HTTP {exchange.status}: {str(said)[:200]}".rstrip(": ")
