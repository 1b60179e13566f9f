"""From an uploaded body to the draft of a version: parse, compile if necessary, store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from safetensors.torch import save as save_tensors

from prefix_store import artifact, formats
from prefix_store.blobs.leases import BlobLease
from prefix_store.definition import Definition, DefinitionFields, Message, PromptFormat
from prefix_store.digest import Digest
from prefix_store.errors import VersionQuarantined
from prefix_store.manifest import Draft
from prefix_store.prefix import BaseModelSpec, Prefix, PrefixOf, SoftPrompt, TextPrompt
from prefix_store.store import PrefixStore
from server.cancellation import in_thread, in_thread_to_the_end, to_the_end, until_settled
from server.engine.ipc.messages import PrefixCompiled
from server.engine.ipc.protocol import Engine
from server.errors import BaseModelMismatch
from server.generation.prompt import check_vocabulary
from server.publishing.reader import PrefixReader
from server.publishing.spool import SpoolFile
from server.publishing.verification import PROBE, prompt_checks, static_checks
from server.text.template import Part
from server.text.tokenizer import Tokenizer

P = ParamSpec("P")
T = TypeVar("T")

_HOLDS_SPECIAL_TOKENS = ("text", "messages")


@dataclass(frozen=True, slots=True)
class PreparedUpload:
    """A draft as read from an upload, and the definition that the upload carries, if any."""

    draft: Draft
    """Its definition holds no more than the prompt format."""
    definition: Definition | None
    prefix_of: int | None = None
    """The version whose prefix it uses again, if any."""

    def completed(self, current: DefinitionFields) -> Draft:
        """Return the draft with its whole definition: the upload's, or the task's current one."""
        prompt = self.draft.definition.prompt
        if self.definition is None:
            definition = Definition(**current.definition_fields, prompt=prompt)
        else:
            definition = self.definition.completed(current).model_copy(update={"prompt": prompt})
        return self.draft.model_copy(update={"definition": definition})


class Drafts:
    """Turns uploads into drafts. The engine compiles texts and soft prompts to prefixes."""

    def __init__(
        self,
        store: PrefixStore,
        reader: PrefixReader,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        executor: Executor,
    ) -> None:
        self._store = store
        self._reader = reader
        self._engine = engine
        self._tokenizer = tokenizer
        self._executor = executor

    async def read(
        self, task: str, body: bytes | SpoolFile, media_type: str, lease: BlobLease
    ) -> PreparedUpload:
        """Turn an upload into a draft and lease its blobs. Discards the body once it is read.

        Raises `PrefixStoreError`, `ServerError`.
        """
        base = self._reader.base()
        async with self._reader.parsed(body, media_type) as upload:
            prompt = (upload.definition or Definition()).prompt_format
            await self._run_in_thread(self._check_messages, prompt)
            if isinstance(upload.source, Prefix):
                draft = await self._store_prefix(upload.source, base, upload.digest, prompt, lease)
                return _prepared(draft, upload)
        match upload.source:
            case PrefixOf(version):
                return await self._of_version(task, version, upload, lease)
            case SoftPrompt() as soft_prompt:
                draft = await self._compile_embeddings(
                    soft_prompt, base, upload.digest, prompt, lease
                )
            case TextPrompt() as text:
                draft = await self._compile_text(text, base, upload.digest, lease)
        return _prepared(draft, upload)

    async def _of_version(
        self, task: str, version: int, upload: formats.Upload, lease: BlobLease
    ) -> PreparedUpload:
        """Draft a version that shares the blob of another one.

        It keeps that one's golden prompts, unless the upload has its own, but not its evaluation,
        which was measured with another definition. Raises `UnknownVersion`, `VersionQuarantined`.
        """
        manifest = await self._run_in_thread(self._store.registry.get_version, task, version)
        if manifest.fingerprint != self._reader.base().fingerprint:
            raise BaseModelMismatch(f"version {version} was made for another base model")
        digest = Digest(manifest.digest)
        if digest in await self._run_in_thread(self._store.quarantined):
            raise VersionQuarantined(f"the stored bytes of version {version} are corrupt")
        await self._run_in_thread(lease.hold, digest)
        golden = manifest.golden if upload.golden is None else upload.golden
        definition = manifest.definition
        if upload.definition is not None:
            definition = upload.definition.completed(definition)
        source_format = manifest.source_format
        prompt = _prompt_after(source_format, definition.prompt or manifest.prompt)
        draft = manifest.redefined(Definition(prompt=prompt))
        checks = [check for check in draft.verification if check.name != "definition"]
        checks += prompt_checks(source_format, prompt)
        changes = {"golden": golden, "evaluation": upload.evaluation, "verification": tuple(checks)}
        draft = draft.model_copy(update=changes)
        return PreparedUpload(draft, definition, prefix_of=version)

    async def _store_prefix(
        self,
        prefix: Prefix,
        base: BaseModelSpec,
        source: Digest,
        prompt: PromptFormat,
        lease: BlobLease,
    ) -> Draft:
        def store() -> Draft:
            blob, num_bytes = self._store.put(prefix, lease)
            return self._describe(prefix, blob, num_bytes, base, source, prompt)

        return await in_thread_to_the_end(self._executor, store)

    def _check_messages(self, prompt: PromptFormat) -> None:
        """Check that the base model's chat template can continue the prefix's messages.

        Raises `TemplateMismatch`.
        """
        if prompt.messages is not None:
            held = [message.model_dump() for message in prompt.messages]
            self._tokenizer.encode_chat([{"role": "user", "content": PROBE}], after=held)

    async def _compile_embeddings(
        self,
        upload: SoftPrompt,
        base: BaseModelSpec,
        source: Digest,
        prompt: PromptFormat,
        lease: BlobLease,
    ) -> Draft:
        tensors = {"embeddings": upload.embeddings.contiguous()}
        blob = await self._run_in_thread(
            lambda: self._store.put_bytes(save_tensors(tensors), lease)
        )
        origin = {"source_format": upload.source_format, "source_digest": str(source)}
        if upload.base_model:
            origin["base_model"] = upload.base_model
        computing = self._compile(lease, embeddings=blob, origin=origin)
        return await self._read_back(await until_settled(computing), base, source, prompt)

    async def _compile_text(
        self, upload: TextPrompt, base: BaseModelSpec, source: Digest, lease: BlobLease
    ) -> Draft:
        token_ids = await self._run_in_thread(self._tokenize, upload)
        check_vocabulary(token_ids, self._engine.info)
        artifact.check_length(len(token_ids), self._reader.max_prefix_tokens)
        kind = "text" if upload.messages is None else "messages"
        origin = {"source_format": kind, "source_digest": str(source)}
        compiled = await until_settled(self._compile(lease, token_ids=token_ids, origin=origin))
        messages = None
        if upload.messages is not None:
            messages = tuple(Message.model_validate(message) for message in upload.messages)
        prompt = PromptFormat(add_special_tokens=False, messages=messages)
        return await self._read_back(compiled, base, source, prompt)

    async def _compile(self, lease: BlobLease, **source: Any) -> PrefixCompiled:
        """Compute a prefix and lease its blob, also if the upload is cancelled once it is written.

        Raises the errors of `Engine.compile`, and `StoreFull`.
        """
        compiled = await self._engine.compile(**source)
        digest, is_new = Digest(compiled.digest), compiled.is_new
        put = (compiled.put_at, compiled.num_bytes)
        await to_the_end(self._run_in_thread(lease.adopt, digest, *put, is_new=is_new))
        await self._run_in_thread(self._store.check_room, 0)  # its size is counted by now
        return compiled

    def _tokenize(self, upload: TextPrompt) -> list[int]:
        """Tokenise a text with its special tokens: the uploader is trusted, unlike a prompt."""
        texts = [upload.text or "", *(m["content"] for m in upload.messages or ())]
        artifact.check_length(self._tokenizer.least_tokens(texts), self._reader.max_prefix_tokens)
        if upload.messages is not None:
            return self._tokenizer.encode_chat(upload.messages, add_generation_prompt=False)
        assert upload.text is not None, "a TextPrompt has a text or messages"
        return self._tokenizer.encode_parts(
            [Part(upload.text, trusted=True)], add_special_tokens=True
        )

    async def _read_back(
        self,
        compiled: PrefixCompiled,
        base: BaseModelSpec,
        source: Digest,
        prompt: PromptFormat,
    ) -> Draft:
        """Read a compiled prefix and validate it like an uploaded one."""
        digest, num_bytes = Digest(compiled.digest), compiled.num_bytes
        return await self._reader.check(
            digest,
            num_bytes,
            lambda prefix: self._describe(prefix, digest, num_bytes, base, source, prompt),
        )

    def _describe(
        self,
        prefix: Prefix,
        digest: Digest,
        num_bytes: int,
        base: BaseModelSpec,
        source: Digest,
        prompt: PromptFormat,
    ) -> Draft:
        source_format = prefix.origin.get("source_format", "artifact")
        prompt = _prompt_after(source_format, prompt)
        dtype = str(prefix.keys[0].dtype).removeprefix("torch.")
        return Draft(
            digest=str(digest),
            num_virtual_tokens=prefix.num_virtual_tokens,
            position_offset=prefix.position_offset,
            num_bytes=num_bytes,
            dtype=dtype,
            base_model=base.name,
            fingerprint=base.fingerprint,
            source_format=source_format,
            source_digest=str(source),
            definition=Definition(prompt=prompt),
            verification=(*static_checks(prefix, base), *prompt_checks(source_format, prompt)),
        )

    async def _run_in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await in_thread(self._executor, work, *args, **kwargs)


def _prepared(draft: Draft, upload: formats.Upload) -> PreparedUpload:
    sidecars = {"golden": upload.golden or (), "evaluation": upload.evaluation}
    return PreparedUpload(draft.model_copy(update=sidecars), upload.definition)


def _prompt_after(source_format: str, prompt: PromptFormat) -> PromptFormat:
    """Return the format of prompts after a prefix, which may hold the special tokens already."""
    if source_format not in _HOLDS_SPECIAL_TOKENS:
        return prompt
    return prompt.model_copy(update={"add_special_tokens": False})
