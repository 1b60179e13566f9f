"""Verification of prefixes: static checks, a test forward, and golden prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import closing
from functools import cached_property

from prefix_store import artifact
from prefix_store.definition import Defaults, Definition, GoldenPrompt, PromptFormat
from prefix_store.digest import Digest
from prefix_store.manifest import Check, Draft, Profile
from prefix_store.prefix import BaseModelSpec, Prefix
from server.cancellation import in_thread
from server.engine.ipc.protocol import Engine
from server.engine.ipc.stream import TokenStream
from server.engine.params import GOLDEN, SchedulingParams
from server.errors import GoldenPromptFailed, InvalidRequest, StepFailed, UnusablePrefix
from server.generation.prompt import (
    EngineRequest,
    GenerateParams,
    PromptContext,
    check_vocabulary,
    prepare,
)
from server.text.tokenizer import Tokenizer

PROBE = "The quick brown fox jumps over the lazy dog. In the year 1984,"
_SPARE_TOKENS = 8
"""Extra tokens generated for an expected text, as the model may tokenise it differently."""
_SHARE_OF_GOLDEN = 4
"""Golden prompts of all uploads together take one in so many places of a step."""
_ROUNDING = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 2e-2}
"""Minimum effect on the logits, by dtype. Rounding alone (a shift of all positions) changes the
logits of a model of 30 layers by 1e-6, 2e-3 and 1.6e-2; a one-token text prefix by 0.1."""


def static_checks(prefix: Prefix, base: BaseModelSpec) -> list[Check]:
    """Report the static checks, which a prefix has passed when it was read.

    Only the name of the base model can fail here, as it is no more than a hint.
    """
    dtype = str(prefix.keys[0].dtype).removeprefix("torch.")
    shape = f"[{base.num_kv_heads}, {prefix.num_virtual_tokens}, {base.head_dim}]"
    longest = artifact.norm_ratios(prefix, base)
    checks = [
        Check(name="format", passed=True, detail=prefix.origin.get("source_format", "artifact")),
        Check(name="base_model", passed=True, detail=base.fingerprint),
        Check(name="shapes", passed=True, detail=f"{base.num_layers} layers of {shape}"),
        Check(
            name="finite_values",
            passed=True,
            detail=f"as stored ({dtype}) and in the serving dtype ({base.dtype})",
        ),
        Check(
            name="norms",
            passed=True,
            detail="the largest norms of keys and values are {:.3g} and {:.3g} times the model's "
            "own".format(*longest),
        ),
    ]
    if trained_for := prefix.origin.get("base_model"):
        same = _last(trained_for) in (_last(base.name), _last(base.loaded_from))
        detail = trained_for if same else f"trained for {trained_for}, served by {base.name}"
        checks.append(Check(name="base_model_name", passed=same, detail=detail))
    return checks


def prompt_checks(source_format: str, prompt: PromptFormat) -> list[Check]:
    """Report whether an upload includes everything that prompts after its prefix depend on."""
    if source_format != "messages" or prompt.messages is not None:
        return []
    detail = (
        "computed from chat messages that the upload does not include, so prompts follow as plain "
        "text: download the version with its foreword.json (?format=tar), and upload that"
    )
    return [Check(name="definition", passed=False, detail=detail)]


class Verification:
    """Runs prefixes in the engine before they serve requests. `executor` is used for tokenising."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, executor: Executor) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._executor = executor

    async def run(self, digest: Digest, num_prefix_tokens: int) -> list[Check]:
        """Compare a forward with the prefix to one without.

        Raises `UnusablePrefix`, and `InvalidRequest` if the tokenizer produces ids that the model
        has no embedding for.
        """
        info = self._engine.info
        room = info.max_model_len - num_prefix_tokens - 1
        token_ids = self._tokenizer.encode(PROBE)[: max(1, room)]
        check_vocabulary(token_ids, info)
        try:
            effect = await self._engine.verify(digest, token_ids)
        except StepFailed as exc:
            raise UnusablePrefix(f"a test prompt cannot run with the prefix: {exc}") from exc
        detail = f"the logits of a test prompt change by a relative {effect:.3g}"
        if effect <= _ROUNDING[info.dtype]:
            raise UnusablePrefix(f"the prefix has no effect: {detail}")
        return [
            Check(name="forward", passed=True, detail=f"{len(token_ids)} tokens, finite logits"),
            Check(name="effect", passed=True, detail=detail),
        ]

    async def golden(self, draft: Draft, profile: Profile) -> Check | None:
        """Run the golden prompts of a version and of its task, until one fails; None if there are
        none.

        A failure names the prompt by its number, never by its text.
        """
        context = PromptContext(
            num_prefix_tokens=draft.num_virtual_tokens,
            definition=_greedy(draft.definition),
            profile=profile,
        )
        digest = Digest(draft.digest)
        named = [(f"{i} of the upload", golden) for i, golden in enumerate(draft.golden, 1)]
        named += [(f"{i} of the profile", golden) for i, golden in enumerate(profile.golden, 1)]
        if not named:
            return None
        failure = await self._first_failure(digest, context, named)
        if failure is not None:
            return Check(name="golden", passed=False, detail=failure)
        return Check(name="golden", passed=True, detail=f"{len(named)} prompts")

    async def require_golden(self, draft: Draft, profile: Profile) -> list[Check]:
        """Run the golden prompts, if there are any. Raises `GoldenPromptFailed`."""
        golden = await self.golden(draft, profile)
        if golden is not None and not golden.passed:
            raise GoldenPromptFailed(golden.detail)
        return [] if golden is None else [golden]

    async def _first_failure(
        self, digest: Digest, context: PromptContext, named: Sequence[tuple[str, GoldenPrompt]]
    ) -> str | None:
        """Run golden prompts until one fails, a few at a time. Returns its name and the reason."""
        left = iter(named)

        async def run() -> str | None:
            for name, golden in left:
                async with self._places:  # one prompt each, so that uploads take turns
                    failure = await self._failure(digest, context, golden)
                if failure is not None:
                    return f"prompt {name}: {failure}"
            return None

        runs = [asyncio.ensure_future(run()) for _ in named[: self._num_places]]
        try:
            for one in asyncio.as_completed(runs):
                if (failure := await one) is not None:
                    return failure
            return None
        finally:
            for each in runs:
                each.cancel()
            await asyncio.gather(*runs, return_exceptions=True)

    @property
    def _num_places(self) -> int:
        return max(1, self._engine.info.max_num_seqs // _SHARE_OF_GOLDEN)

    @cached_property
    def _places(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self._num_places)

    async def _failure(
        self, digest: Digest, context: PromptContext, golden: GoldenPrompt
    ) -> str | None:
        scheduling = SchedulingParams(queue=GOLDEN, weight=min(1.0, context.profile.weight))
        try:
            prepared = await in_thread(self._executor, self._prepare, context, golden)
            stream = self._engine.submit(digest, prepared.token_ids, prepared.sampling, scheduling)
            with closing(stream):
                passed = await self._starts_with(stream, golden.expect)
        except (InvalidRequest, StepFailed) as exc:
            return str(exc)
        return None if passed else "the completion does not start as expected"

    async def _starts_with(self, stream: TokenStream, expect: str | Sequence[int]) -> bool:
        """Whether a completion starts with a text or token ids. Reads no more than shows it."""
        if isinstance(expect, str):
            return await self._starts_with_text(stream, expect)
        token_ids: list[int] = []
        async for delta in stream:
            token_ids += delta.token_ids
            if token_ids[: len(expect)] != list(expect[: len(token_ids)]):
                return False
            if len(token_ids) >= len(expect):
                return True
        return not expect

    async def _starts_with_text(self, stream: TokenStream, expect: str) -> bool:
        detokenizer, text = self._tokenizer.detokenizer(), ""
        async for delta in stream:
            text += "".join(map(detokenizer.push, delta.token_ids))
            if not text.startswith(expect[: len(text)]):
                return False
            if len(text) >= len(expect):
                return True
        return (text + detokenizer.flush()).startswith(expect)

    def _prepare(self, context: PromptContext, golden: GoldenPrompt) -> EngineRequest:
        """Prepare a request like the task's own, but greedy and as short as possible."""
        num_tokens = len(golden.expect)
        if isinstance(golden.expect, str):
            token_ids = self._tokenizer.encode(golden.expect, add_special_tokens=False)
            num_tokens = len(token_ids) + _SPARE_TOKENS
        params = GenerateParams(prompt=golden.prompt, default_max_tokens=num_tokens)
        return prepare(params, context, tokenizer=self._tokenizer, info=self._engine.info)


def _greedy(definition: Definition) -> Definition:
    """Return a definition without sampling, stop strings and number of tokens."""
    asked = definition.defaults
    form = {name: getattr(asked, name) for name in ("response_format", "regex", "choice")}
    return definition.model_copy(update={"defaults": Defaults(**form)})


def _last(name: str) -> str:
    """Return the last component of a hub id or path, in lower case."""
    return name.rstrip("/").rpartition("/")[2].lower()
