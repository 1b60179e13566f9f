"""From a task and a prompt to an admitted request on one version. Every refusal is here."""

from __future__ import annotations

import hashlib
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import lru_cache

from pydantic import ValidationError

from prefix_store.definition import Defaults, Definition
from prefix_store.digest import Digest
from prefix_store.errors import PrefixStoreError
from prefix_store.manifest import Manifest
from prefix_store.registry.keys import Key
from prefix_store.store import PrefixStore
from server.cancellation import in_thread
from server.engine.ipc.protocol import Engine
from server.engine.ipc.stream import TokenStream
from server.errors import BaseModelMismatch, Draining, InvalidRequest, ServerError
from server.generation.admission import Admission
from server.generation.completion import Completion, CompletionDetails, Target
from server.generation.grammar_check import GrammarCheck
from server.generation.prompt import EngineRequest, GenerateParams, PromptContext, prepare_all
from server.generation.ranking import CandidateStream, RankedCompletion
from server.metrics import Metrics
from server.text.detokenizer import StopStrings
from server.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class Router:
    """Admits or refuses requests. `executor` runs what must stay off the event loop."""

    def __init__(
        self,
        store: PrefixStore,
        engine: Engine,
        tokenizer: Tokenizer,
        metrics: Metrics,
        *,
        grammars: GrammarCheck,
        executor: Executor,
        admission: Admission,
        reads_generation_config: bool = True,
    ) -> None:
        self._store = store
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._grammars = grammars
        self._executor = executor
        self._admission = admission
        self._reads_generation_config = reads_generation_config
        self.is_draining = False

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.is_draining = True

    def check_open(self) -> None:
        """Raises `Draining`, or `EngineUnavailable` before the model is loaded."""
        if self.is_draining:
            raise Draining("the server is shutting down")
        _ = self._engine.info

    async def admit(
        self,
        task: str | None,
        version: int | None,
        params: GenerateParams,
        *,
        key: str = "",
        client: Key | None = None,
    ) -> Completion:
        """Start one completion on `version`, or on the task's active version, or, where versions
        share the traffic, on the one that `key` selects. `client`: the API key of the request.

        Raises `PrefixStoreError` and `ServerError`. Once it returns, only the engine can fail.
        """
        return (await self.admit_all(task, version, [params], key=key, client=client))[0]

    async def admit_all(
        self,
        task: str | None,
        version: int | None,
        params: Sequence[GenerateParams],
        *,
        key: str = "",
        client: Key | None = None,
    ) -> list[Completion]:
        """Start several completions on the same version, all or none. Raises as `admit` does."""
        arrived_s = time.monotonic()
        targets: list[Target] = []
        try:
            self.check_open()
            with self._admission.preparing(client, len(params)):
                prepared = await self._prepare(task, version, params, key, targets)
                await self._check_grammars(prepared)
            self.check_open()
            num_tokens = [n for one in prepared for n in _num_tokens(one)]
            self._admission.check(client, len(num_tokens), sum(num_tokens))
            return self._submit_all(targets[0], prepared, arrived_s, client)
        except (ServerError, PrefixStoreError) as exc:
            self._metrics.refused(exc.code, task, *targets)
            raise

    async def _prepare(
        self,
        task: str | None,
        version: int | None,
        params: Sequence[GenerateParams],
        key: str,
        targets: list[Target],
    ) -> list[EngineRequest]:
        """Prepare the requests. Appends the version to `targets` once it is chosen, so that a
        later refusal is counted for it."""
        prepare = self._prepare_all
        return await in_thread(self._executor, prepare, task, version, params, key, targets)

    async def _check_grammars(self, prepared: Sequence[EngineRequest]) -> None:
        grammars = {one.sampling.grammar for one in prepared}
        for grammar in grammars - {None}:
            assert grammar is not None
            await self._grammars.check(grammar)

    def _prepare_all(
        self,
        task: str | None,
        version: int | None,
        params: Sequence[GenerateParams],
        key: str,
        targets: list[Target],
    ) -> list[EngineRequest]:
        """Runs on a thread of the executor, because the registry and the tokenizer are slow."""
        target, context = self._resolve(task, version, key)
        targets.append(target)
        return prepare_all(params, context, tokenizer=self._tokenizer, info=self._engine.info)

    def _resolve(
        self, task: str | None, version: int | None, key: str
    ) -> tuple[Target, PromptContext]:
        if task is None:
            if version is not None:
                raise InvalidRequest("a `version` needs a `task`")
            context = PromptContext(is_base=True, definition=self._base_definition())
            return Target(None, None, None, 0), context
        serving = self._store.serving_version(task, version, key)
        manifest = serving.manifest
        self._check_base_model(manifest)
        num_tokens = manifest.num_virtual_tokens
        target = Target(manifest.task, manifest.version, Digest(manifest.digest), num_tokens)
        context = PromptContext(
            num_prefix_tokens=num_tokens,
            definition=manifest.definition,
            profile=serving.profile,
            queue=_number_of(manifest.task),
        )
        return target, context

    def _base_definition(self) -> Definition:
        """How the base model is asked where no task is named."""
        if not self._reads_generation_config:
            return Definition()
        return _definition_of(tuple(self._engine.info.generation_defaults.items()))

    def _check_base_model(self, manifest: Manifest) -> None:
        if manifest.fingerprint != self._engine.info.fingerprint:
            raise BaseModelMismatch(
                f"version {manifest.version} was made for {manifest.base_model} with other weights "
                "than those of the base model that is loaded"
            )

    def _submit_all(
        self,
        target: Target,
        prepared: Sequence[EngineRequest],
        arrived_s: float,
        client: Key | None,
    ) -> list[Completion]:
        completions: list[Completion] = []
        try:
            for one in prepared:
                completions.append(self._submit(target, one, arrived_s, client))
        except ServerError:
            for completion in completions:
                completion.close()
            raise
        return completions

    def _submit(
        self, target: Target, prepared: EngineRequest, arrived_s: float, client: Key | None
    ) -> Completion:
        hold = self._admission.hold(client, _num_tokens(prepared))
        scheduling = prepared.scheduling
        if client is not None:
            scheduling = replace(scheduling, client=_number_of(client.id))

        def submit(token_ids: list[int]) -> TokenStream:
            stream = self._engine.submit(target.digest, token_ids, prepared.sampling, scheduling)
            hold.submitted(stream)
            return stream

        def on_end(completion: Completion) -> None:
            hold.release()
            self._metrics.completed(completion)

        details = CompletionDetails(
            target=target,
            prompt_token_ids=prepared.token_ids,
            sampling=prepared.sampling,
            max_tokens=prepared.max_tokens,
            detokenizer=self._tokenizer.detokenizer(),
            stops=StopStrings(prepared.stop),
            arrived_s=arrived_s,
            on_end=on_end,
        )
        try:
            completion = _started(prepared, details, submit)
        except ServerError:
            hold.release()
            raise
        # A completion may be lost unread, when its client leaves just as it is admitted.
        weakref.finalize(completion, hold.release).atexit = False
        return completion


def _started(
    prepared: EngineRequest,
    details: CompletionDetails,
    submit: Callable[[list[int]], TokenStream],
) -> Completion:
    if (candidates := prepared.candidates) is not None:
        return RankedCompletion(CandidateStream(candidates, submit), candidates, details)
    return Completion(submit(prepared.token_ids), details)


def _num_tokens(prepared: EngineRequest) -> list[int]:
    """Return the most tokens of each sequence of a request: its prompt and its completion."""
    if (candidates := prepared.candidates) is not None:
        return [len(token_ids) + 1 for token_ids in candidates.token_ids]
    return [len(prepared.token_ids) + prepared.sampling.max_tokens]


def _number_of(name: str) -> int:
    """Return a number for a task or a key, equal for all versions and after a restart."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=1)
def _definition_of(defaults: tuple[tuple[str, int | float], ...]) -> Definition:
    """Return the definition with a model's defaults; without them if one is out of range."""
    try:
        return Definition(defaults=Defaults.model_validate(dict(defaults)))
    except ValidationError as exc:
        where = exc.errors()[0]["loc"]
        logger.warning("the model's generation_config.json is ignored: %s is out of range", *where)
        return Definition()
