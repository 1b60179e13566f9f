"""Grammars, which restrict the next token so that a completion has the requested form.

llguidance compiles grammars and tracks completions in them (decision 17). The API process compiles
a grammar to refuse one that cannot be compiled, the engine process to run it. No tensors here, and
llguidance is imported on first use only.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from llguidance import LLMatcher

V = TypeVar("V")

MAX_GRAMMAR_BYTES = 64 << 10
"""Maximum length of a grammar's text. A grammar of this length compiles within half a second."""
TOO_LONG = f"it is longer than {MAX_GRAMMAR_BYTES >> 10} KiB"
_MAX_LEXER_STATES = 10_000
"""Each state takes 1 to 2 KiB."""
_STEP_LEXER_FUEL, _STEP_MAX_ITEMS = 100_000, 25_000
"""Limits for the computation of one mask: about 8 ms."""
_NUM_TRIED_TOKENS = 16
"""Tokens for which a new grammar is followed, to find errors that the compile does not."""
_JSON_STYLE = {
    # JSON on one line: at a high temperature a model may never end optional white space.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,
}
_ENTRY_BYTES = 32 << 10
_BYTES_PER_BYTE = 8
"""Memory of a compiled grammar, measured: a constant part, and a part per byte of its text."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


class GrammarError(Exception):
    """A grammar cannot be compiled or followed. The message may quote the user's grammar."""


def from_json_schema(schema: dict[str, Any]) -> str:
    """Return the grammar of all JSON that a schema allows. Raises `GrammarError`."""
    try:
        return _encode({"grammars": [{"json_schema": _with_style(schema)}]})
    except RecursionError:
        raise GrammarError("recursion limit exceeded") from None


def from_regex(regex: str) -> str:
    """Return the grammar of all texts that a regular expression matches from start to end."""
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(regex)


def from_texts(texts: Sequence[str]) -> str:
    """Return the grammar of exactly these texts. Raises `GrammarError`."""
    if sum(map(len, texts)) > MAX_GRAMMAR_BYTES:
        raise GrammarError(TOO_LONG)
    return from_regex("|".join(map(_escape, texts)))


def _encode(grammar: dict[str, Any]) -> str:
    """Encode a grammar as JSON; stop as soon as it is too long. Raises `GrammarError`."""
    pieces: list[str] = []
    num_chars = 0
    for piece in json.JSONEncoder().iterencode(grammar):
        pieces.append(piece)
        num_chars += len(piece)
        if num_chars > MAX_GRAMMAR_BYTES:
            raise GrammarError(TOO_LONG)
    return "".join(pieces)


def _with_style(schema: dict[str, Any]) -> dict[str, Any]:
    given = schema.get("x-guidance")
    return schema | {"x-guidance": _JSON_STYLE | (given if isinstance(given, dict) else {})}


def _escape(text: str) -> str:
    """Escape a text for a regular expression: special characters become their code points."""
    return "".join(c if c in _PLAIN else f"\\x{{{ord(c):x}}}" for c in text)


class Vocabulary:
    """A model's tokens, prepared for grammars. Its construction takes a moment."""

    def __init__(
        self, tokenizer_json: str, *, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        """`tokenizer_json`: the serialised fast tokenizer. Raises `ValueError`, `ImportError`."""
        from llguidance import LLParserLimits, LLTokenizer

        self._limits = LLParserLimits(
            max_lexer_states=_MAX_LEXER_STATES,
            step_lexer_fuel=_STEP_LEXER_FUEL,
            step_max_items=_STEP_MAX_ITEMS,
            verbose_errors=False,
        )
        num_known = 1 + max(_token_ids(tokenizer_json), default=0)
        self._tokens = LLTokenizer(
            tokenizer_json, n_vocab=max(vocab_size, num_known), eos_token=list(eos_token_ids)
        )

    def compile(self, grammar: str) -> Matcher:
        """Compile a grammar, and check that some text can follow it. Raises `GrammarError`."""
        from llguidance import LLMatcher

        compiled = LLMatcher(self._tokens, grammar, log_level=0, limits=self._limits)
        _follow(compiled.deep_copy(), self._tokens.vocab_size)
        return Matcher(compiled, self._tokens.vocab_size)


def _follow(matcher: LLMatcher, vocab_size: int) -> None:
    """Follow a grammar for some tokens: some limits show only then. Raises `GrammarError`."""
    for _ in range(_NUM_TRIED_TOKENS):
        allowed = 0 if matcher.is_error() else int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        allowed &= (1 << vocab_size) - 1
        if matcher.is_stopped() or not allowed:
            return
        matcher.consume_token(allowed.bit_length() - 1)


def _token_ids(tokenizer_json: str) -> list[int]:
    content = json.loads(tokenizer_json)
    vocab = content["model"].get("vocab", {})
    ids = [*vocab.values()] if isinstance(vocab, dict) else [*range(len(vocab))]
    return ids + [token["id"] for token in content.get("added_tokens", [])]


class Matcher:
    """State of one text in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self.matcher = matcher
        self.vocab_size = vocab_size
        """Number of tokens in a mask."""

    def copy(self) -> Matcher:
        """Return an independent matcher with the current state."""
        return Matcher(self.matcher.deep_copy(), self.vocab_size)

    def accept(self, token_id: int) -> None:
        """Append a token to the text."""
        self.matcher.consume_token(token_id)

    @property
    def is_stopped(self) -> bool:
        """Whether the text is complete and no token may follow."""
        return self.matcher.is_stopped() and not self.matcher.is_error()

    @property
    def error(self) -> str | None:
        """Why the text cannot continue; None if it can."""
        return "the grammar became too complex" if self.matcher.is_error() else None


class ByteBoundedCache(Generic[V]):
    """LRU cache by the text of a grammar, bounded by the bytes of its values. Not thread-safe."""

    def __init__(self, max_bytes: int, cost: Callable[[str], int]) -> None:
        self._max_bytes = max_bytes
        self._cost = cost
        self._values: OrderedDict[str, V] = OrderedDict()
        self.num_bytes = 0

    def get(self, grammar: str) -> V | None:
        if grammar in self._values:
            self._values.move_to_end(grammar)
        return self._values.get(grammar)

    def put(self, grammar: str, value: V) -> None:
        if grammar not in self._values:
            self.num_bytes += self._cost(grammar)
        self._values[grammar] = value
        while self.num_bytes > self._max_bytes and self._values:
            oldest, _ = self._values.popitem(last=False)
            self.num_bytes -= self._cost(oldest)


def compiled_bytes(grammar: str) -> int:
    """Return the approximate memory of a compiled grammar and its text."""
    return _ENTRY_BYTES + (1 + _BYTES_PER_BYTE) * len(grammar)
