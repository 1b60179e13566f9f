"""Checks that a grammar compiles, off the event loop, in bounded time and memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import cached_property

from server.engine.grammar import (
    MAX_GRAMMAR_BYTES,
    TOO_LONG,
    ByteBoundedCache,
    GrammarError,
    Vocabulary,
)
from server.engine.ipc.messages import EngineInfo
from server.errors import InvalidGrammar, Overloaded
from server.text.tokenizer import Tokenizer

COMPILE_TIMEOUT_S = 5.0
CACHE_BYTES = 8 << 20
_KNOWN = {
    "NoExtension": "no text matches it",
    "recursion limit": "it is nested too deeply",
    "Current row has": "it allows too many continuations",
}
_KEYWORD = re.compile(r'"([$A-Za-z]{1,32})"')


class GrammarCheck:
    """Compiles grammars to check them, and caches the results.

    `executor` runs one compilation at a time on each of its threads.
    """

    def __init__(
        self, tokenizer: Tokenizer, info: Callable[[], EngineInfo], *, executor: Executor
    ) -> None:
        self._tokenizer = tokenizer
        self._info = info
        self._executor = executor
        self._errors = ByteBoundedCache[str](CACHE_BYTES, lambda grammar: 512 + len(grammar))
        self._loading: Future[Vocabulary] | None = None

    async def check(self, grammar: str) -> None:
        """Raises `InvalidGrammar`, also for a grammar that is too large or takes too long, and
        `Overloaded`."""
        if len(grammar) > MAX_GRAMMAR_BYTES:
            raise InvalidGrammar(TOO_LONG)
        if (error := self._errors.get(grammar)) is None:
            error = await self._compile(grammar)
            self._errors.put(grammar, error)
        if error:
            raise InvalidGrammar(error)

    async def _compile(self, grammar: str) -> str:
        """Compile on a thread. Returns the reason if it fails, else an empty string.

        Raises `InvalidGrammar` when it takes too long, and `Overloaded`.
        """
        await self._load_vocabulary()
        compiling = self._executor.submit(self._compile_error, grammar)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(compiling), COMPILE_TIMEOUT_S)
        except TimeoutError:
            if compiling.cancelled():  # never started: other grammars hold the threads
                raise Overloaded("too many grammars are waiting to be compiled") from None
            took = f"it takes longer than {COMPILE_TIMEOUT_S:.0f} s to compile"
            raise InvalidGrammar(took) from None

    async def _load_vocabulary(self) -> None:
        """Wait until the vocabulary is built: that time is not the grammar's.

        An error is raised once more by the compilation, which names it.
        """
        if self._loading is None:
            self._loading = self._executor.submit(lambda: self._vocabulary)
        try:
            await asyncio.shield(asyncio.wrap_future(self._loading))
        except Exception:
            self._loading = None

    def _compile_error(self, grammar: str) -> str:
        """The reason why it does not compile, else empty. Runs on a thread of the executor."""
        try:
            self._vocabulary.compile(grammar)
        except GrammarError as exc:
            return reason(str(exc))
        except ImportError:
            raise InvalidGrammar.not_installed() from None
        except ValueError:
            return "the model's tokenizer does not support grammars"
        return ""

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        info = self._info()
        return Vocabulary(
            self._tokenizer.backend_json(),
            vocab_size=info.vocab_size,
            eos_token_ids=info.eos_token_ids,
        )


def reason(message: str) -> str:
    """A compiler's message without its quotations, which may be anything that a user sent."""
    for part, words in _KNOWN.items():
        if part in message:
            return words
    if message.startswith("Unimplemented keys"):
        names = ", ".join(_KEYWORD.findall(message)) or "a keyword"
        return f"the schema uses unsupported keywords: {names}"
    if found := re.search(r"^error: ([a-z ,-]+)", message, re.MULTILINE):
        return found[1].strip()
    unquoted = re.sub(r"\"[^\n]*\"|'[^\n]*'|/[^\n]*/|\([^\n]*\)", "", message)
    parts = [part.strip() for part in re.split(r"[:;\n]", unquoted)]
    plain = [part for part in parts if re.fullmatch(r"[A-Za-z][A-Za-z ]{7,99}", part)]
    return plain[0].lower() if plain else "it cannot be compiled"
