"""Token ids to text, piece by piece, and stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
_MAX_PENDING = 64
"""Tokens after which bytes that form no character are returned anyway, to bound the work."""


class Detokenizer:
    """Incremental text of one completion. Returns only complete characters.

    The pieces joined are the whole text. As in text-generation-inference, a short window is decoded
    with and without the new tokens, and the difference is returned.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, token_id: int) -> str:
        """Add a token. Returns the text it completes; empty while a character is incomplete."""
        self._ids.append(token_id)
        return self._take(whole=len(self._ids) - self._read > _MAX_PENDING)

    def flush(self) -> str:
        """The rest of the text, when no tokens follow. An incomplete character becomes U+FFFD."""
        return self._take(whole=True) if len(self._ids) > self._read else ""

    def _take(self, *, whole: bool) -> str:
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        if len(after) <= len(before):
            del self._ids[
                self._read :
            ]  # special tokens have no text; dropping them keeps the window short
            return ""
        if after.endswith(_REPLACEMENT) and not whole:
            return ""
        del self._ids[: self._start]
        self._start, self._read = self._read - self._start, len(self._ids)
        return after[len(before) :]


class StopStrings:
    """Cuts a text exactly before the first stop string, however the text is split into pieces.

    Text that may be the start of a stop string is held back. The match that completes first wins,
    so the result does not depend on the split.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """Add text. Returns what can no longer be part of a stop string; empty once `matched`."""
        if self.matched:
            return ""
        if not self._stops:
            return text
        self._held += text
        if ends := [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]:
            self.matched = True
            return self._release(min(ends)[1])
        return self._release(len(self._held) - self._num_held_back())

    def flush(self) -> str:
        """The text held back, when no text follows."""
        return "" if self.matched else self._release(len(self._held))

    def _release(self, num_chars: int) -> str:
        text, self._held = self._held[:num_chars], self._held[num_chars:]
        return text

    def _num_held_back(self) -> int:
        """Length of the longest suffix of the held text that is the start of a stop string."""
        longest = min(max(map(len, self._stops)) - 1, len(self._held))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
