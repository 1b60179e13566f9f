"""Checks that a grammar compiles, in another process, in bounded time and memory."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress

from server.engine.grammar import MAX_GRAMMAR_BYTES, TOO_LONG, ByteBoundedCache
from server.engine.ipc.messages import EngineInfo
from server.errors import InvalidGrammar, Overloaded
from server.generation.grammar_process import GrammarProcess, Killed, TooExpensive
from server.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

COMPILE_TIMEOUT_S = 10.0
"""How long a request waits for a compile."""
CACHE_BYTES = 8 << 20
_KNOWN = {
    "NoExtension": "no text matches it",
    "recursion limit": "it is nested too deeply",
    "Current row has": "it allows too many continuations",
}
_KEYWORD = re.compile(r'"([$A-Za-z]{1,32})"')


class _Compile:
    """A compile, and the requests that wait for it."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self.process: GrammarProcess | None = None
        """Set while it runs."""
        self.future: Future[str | None]
        """The reason why the grammar does not compile, or an empty string; None if not known."""

    def give_up(self) -> None:
        """End it, because nobody waits for it any more."""
        if not self.future.cancel() and self.process is not None:
            self.process.kill()


class GrammarCheck:
    """Compiles grammars to check them, and caches the results.

    Each thread of `executor` runs one compile at a time, in a process of its own.
    """

    def __init__(
        self, tokenizer: Tokenizer, info: Callable[[], EngineInfo], *, executor: Executor
    ) -> None:
        self._tokenizer = tokenizer
        self._info = info
        self._executor = executor
        self._errors = ByteBoundedCache[str](CACHE_BYTES, lambda grammar: 512 + len(grammar))
        self._running: dict[str, _Compile] = {}
        self._processes: list[GrammarProcess] = []
        """Those that compile nothing at the moment."""
        self._starting: Future[None] | None = None
        self._is_closed = False

    async def check(self, grammar: str) -> None:
        """Raises `InvalidGrammar`, also for a grammar that is too large or takes too much to
        compile, and `Overloaded` where the machine is too busy to find out in time."""
        if len(grammar) > MAX_GRAMMAR_BYTES:
            raise InvalidGrammar(TOO_LONG)
        if (error := self._errors.get(grammar)) is None:
            error = await self._compile(grammar)
        if error:
            raise InvalidGrammar(error)

    def close(self) -> None:
        """End all processes, whatever they do."""
        self._is_closed = True
        for compiling in self._running.values():
            compiling.give_up()
        self._close_idle()

    async def _compile(self, grammar: str) -> str:
        """Compile in a process, together with others who ask for the same grammar. Returns the
        reason if it fails, else an empty string. Raises `InvalidGrammar` and `Overloaded`."""
        await self._start_first()
        compiling = self._running.get(grammar) or self._begin(grammar)
        compiling.num_waiting += 1
        try:
            result = asyncio.wrap_future(compiling.future)
            await asyncio.wait({result}, timeout=COMPILE_TIMEOUT_S)
        except asyncio.CancelledError:
            if compiling.num_waiting == 1:
                compiling.give_up()
            raise
        finally:
            compiling.num_waiting -= 1
        if not result.done() and not compiling.num_waiting:
            # Not if it has begun: the same request finds the result later.
            compiling.future.cancel()
        if not result.done() or result.cancelled() or (error := result.result()) is None:
            raise Overloaded("the machine is too busy to compile the grammar in time")
        return error

    def _begin(self, grammar: str) -> _Compile:
        loop = asyncio.get_running_loop()
        compiling = self._running[grammar] = _Compile()
        compiling.future = self._executor.submit(self._compile_error, grammar, compiling)

        def ended(future: Future[str | None]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._ended, grammar, future)

        compiling.future.add_done_callback(ended)
        return compiling

    def _ended(self, grammar: str, future: Future[str | None]) -> None:
        del self._running[grammar]
        if not future.cancelled() and future.exception() is None:
            error = future.result()
            if error is not None:
                self._errors.put(grammar, error)

    async def _start_first(self) -> None:
        """Wait until a process is ready: that time is not the grammar's.

        An error is raised once more by the compile, which names it.
        """
        if self._starting is None:
            self._starting = self._executor.submit(lambda: self._keep(self._start()))
        try:
            await asyncio.shield(asyncio.wrap_future(self._starting))
        except Exception:
            self._starting = None

    # --- on a thread of the executor ---

    def _compile_error(self, grammar: str, compiling: _Compile) -> str | None:
        """The reason why it does not compile, else empty; None if that is not known."""
        try:
            process = compiling.process = self._idle_process()
            error = process.compile(grammar)
        except Killed:
            return None
        except OSError as exc:
            logger.error("no process to compile grammars can be started: %s", exc.strerror)
            return None
        except (TooExpensive, ValueError) as exc:
            return str(exc)
        compiling.process = None  # the next compile in it is another one's
        self._keep(process)
        return reason(error) if error else ""

    def _keep(self, process: GrammarProcess) -> None:
        self._processes.append(process)
        if self._is_closed:
            self._close_idle()

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._processes.pop().close()

    def _idle_process(self) -> GrammarProcess:
        """Return a process that compiles nothing. One may have been killed from outside."""
        with suppress(IndexError):
            while True:
                process = self._processes.pop()
                if process.is_running:
                    return process
                process.close()
        return self._start()

    def _start(self) -> GrammarProcess:
        """Raises `InvalidGrammar` without the compiler's package; what `GrammarProcess` raises."""
        try:
            import llguidance  # noqa: F401
        except ImportError:
            raise InvalidGrammar.not_installed() from None
        info = self._info()
        return GrammarProcess(
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
