"""Token ids to text, piece by piece, and where the text has to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
_MAX_PENDING = 64
"""Bytes that never become a character are given out after so many tokens: a bound on the work."""


class Detokenizer:
    """Text of one completion as its tokens come, never half a character.

    The pieces joined are the whole text. Method: decode a short window twice, with and without
    the new tokens, and hand out the difference, as text-generation-inference does it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is still incomplete."""
        self._ids.append(token_id)
        return self._take(whole=len(self._ids) - self._read > _MAX_PENDING)

    def flush(self) -> str:
        """What is left when no more tokens come: an incomplete character becomes U+FFFD."""
        return self._take(whole=True) if len(self._ids) > self._read else ""

    def _take(self, *, whole: bool) -> str:
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        if len(after) <= len(before):
            del self._ids[self._read :]  # special tokens: without them the window stays short
            return ""
        if after.endswith(_REPLACEMENT) and not whole:
            return ""
        del self._ids[: self._start]
        self._start, self._read = self._read - self._start, len(self._ids)
        return after[len(before) :]


class StopStrings:
    """Cuts a text exactly before the first stop string, wherever the pieces of it are split.

    Text that may be the start of a stop string is held back. The match that is complete first
    wins, so that the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that is safe to hand out. Empty for ever once `matched`."""
        if self.matched:
            return ""
        if not self._stops:
            return text
        self._held += text
        if ends := [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]:
            self.matched = True
            return self._release(min(ends)[1])
        return self._release(len(self._held) - self._num_suspect())

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        return "" if self.matched else self._release(len(self._held))

    def _release(self, num_chars: int) -> str:
        text, self._held = self._held[:num_chars], self._held[num_chars:]
        return text

    def _num_suspect(self) -> int:
        """Length of the longest end of the held text that starts a stop string."""
        longest = min(max(map(len, self._stops)) - 1, len(self._held))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
