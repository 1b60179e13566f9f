"""From uploaded bytes to a version of a task: read, verify or compute, keep, activate, load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from safetensors.torch import save as save_tensors

from prefix_store import artifact, formats
from prefix_store.audit import NOBODY, Actor
from prefix_store.digest import Digest
from prefix_store.errors import InvalidName, PrefixStoreError, UnknownTask, UnsupportedMediaType
from prefix_store.formats import peft
from prefix_store.manifest import Check, Draft, Manifest, Message, PromptFormat
from prefix_store.prefix import BaseModelSpec, Prefix, SoftPrompt, TextPrompt
from prefix_store.reference import check_task_name
from prefix_store.store import PrefixStore
from prefix_store.terms import ANY, Terms
from server.engine.client import EngineClient
from server.errors import BaseModelMismatch, ServerError
from server.metrics import Metrics
from server.template import Part
from server.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_HOLDS_SPECIAL_TOKENS = ("text", "messages")


@dataclass(frozen=True, slots=True)
class Pushed:
    """A new version, on disk for good."""

    manifest: Manifest
    is_active: bool
    is_new_task: bool
    warning: str | None
    """Why the prefix could not be loaded at once; it will be when the first request needs it."""


class Uploads:
    """Makes versions. `executor` runs the reading and hashing, a few uploads at a time."""

    def __init__(
        self,
        store: PrefixStore,
        engine: EngineClient,
        tokenizer: Tokenizer,
        metrics: Metrics,
        *,
        executor: Executor,
        model_name: str,
        max_prefix_tokens: int,
    ) -> None:
        self._store = store
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._executor = executor
        self._model_name = model_name
        self._max_prefix_tokens = max_prefix_tokens

    async def expect(self, task: str, media_type: str, *, create: bool) -> bool:
        """Refuse what can be refused before the body is read. Whether the task is new."""
        kind = media_type.partition(";")[0].strip().lower()
        if kind and kind not in formats.MEDIA_TYPES:
            raise UnsupportedMediaType(f"an upload is one of {', '.join(formats.MEDIA_TYPES)}")
        _ = self._engine.info
        try:
            await self._off_loop(self._store.get_task, task)
        except (UnknownTask, InvalidName):
            if not create:
                raise
            check_task_name(task)
            return True
        return False

    async def push(
        self,
        task: str,
        body: bytes,
        media_type: str,
        *,
        activate: bool,
        create: bool = False,
        by: Actor = NOBODY,
        terms: Terms = ANY,
    ) -> Pushed:
        """Make a body the task's next version. Raises `PrefixStoreError`, `ServerError`."""
        try:
            is_new_task = await self.expect(task, media_type, create=create)
            draft = await self._draft(body, media_type)
            warning = await self.load(draft.digest) if activate else None
            pushed = partial(Pushed, is_active=activate, is_new_task=is_new_task, warning=warning)
            manifest = await self._off_loop(
                self._store.push,
                task,
                draft,
                activate=activate,
                create=create,
                by=by,
                terms=terms.after(pushed),
            )
        except (PrefixStoreError, ServerError) as exc:
            self._metrics.uploaded(exc.code)
            raise
        self._metrics.uploaded("created")
        return pushed(manifest)

    async def load(self, digest: str) -> str | None:
        """Make a prefix resident before the swap, so that the first request need not wait.

        What failed is told, not raised: a request loads it too.
        """
        try:
            await self._engine.load(Digest(digest))
        except ServerError as exc:
            logger.warning("%s not loaded: %s", digest, exc)
            return str(exc)
        return None

    def unload(self, manifest: Manifest) -> None:
        """Evict a deleted version's prefix. Another version with the same bytes loads it again."""
        self._engine.unload(Digest(manifest.digest))

    async def export_peft(self, manifest: Manifest) -> bytes:
        """A directory that PEFT loads, as a tar. Raises `IncompatiblePrefix`."""
        return await self._off_loop(self._export_peft, manifest, self._base())

    def _export_peft(self, manifest: Manifest, base: BaseModelSpec) -> bytes:
        if manifest.fingerprint != base.fingerprint:
            raise BaseModelMismatch("the version was made for another base model")
        return peft.write_tar(artifact.read(self._store.open(Digest(manifest.digest))), base)

    # --- what a body can be ---

    async def _draft(self, body: bytes, media_type: str) -> Draft:
        base = self._base()
        upload = await self._off_loop(
            formats.read, body, media_type, base, max_prefix_tokens=self.max_prefix_tokens
        )
        source = await self._off_loop(Digest.of, body)
        match upload:
            case Prefix():
                digest, num_bytes = await self._off_loop(self._store.put, upload)
                fallback = PromptFormat()
                return self._describe(upload, digest, num_bytes, base, source, fallback)
            case SoftPrompt():
                return await self._compile_embeddings(upload, base, source)
            case TextPrompt():
                return await self._compile_text(upload, base, source)

    async def _compile_embeddings(
        self, upload: SoftPrompt, base: BaseModelSpec, source: Digest
    ) -> Draft:
        tensors = {"embeddings": upload.embeddings.contiguous()}
        blob = await self._off_loop(lambda: self._store.put_bytes(save_tensors(tensors)))
        origin = {"source_format": upload.source_format, "source_digest": str(source)}
        compiled = await self._engine.compile(embeddings=blob, origin=origin)
        return await self._read_back(Digest(compiled.digest), base, source, PromptFormat())

    async def _compile_text(self, upload: TextPrompt, base: BaseModelSpec, source: Digest) -> Draft:
        token_ids = await self._off_loop(self._tokenize, upload)
        artifact.check_length(len(token_ids), self.max_prefix_tokens)
        kind = "text" if upload.messages is None else "messages"
        origin = {"source_format": kind, "source_digest": str(source)}
        compiled = await self._engine.compile(token_ids=token_ids, origin=origin)
        messages = None
        if upload.messages is not None:
            messages = tuple(Message.model_validate(message) for message in upload.messages)
        prompt = PromptFormat(add_special_tokens=False, messages=messages)
        return await self._read_back(Digest(compiled.digest), base, source, prompt)

    def _tokenize(self, upload: TextPrompt) -> list[int]:
        """Whoever uploads a prefix writes a template, not a prompt: special tokens count."""
        if upload.messages is not None:
            return self._tokenizer.encode_chat(upload.messages, add_generation_prompt=False)
        assert upload.text is not None, "a TextPrompt has a text or messages"
        return self._tokenizer.encode_parts(
            [Part(upload.text, trusted=True)], add_special_tokens=True
        )

    async def _read_back(
        self, digest: Digest, base: BaseModelSpec, source: Digest, prompt: PromptFormat
    ) -> Draft:
        """What the engine computed goes through the same gate as what a client uploads."""
        data = await self._off_loop(self._store.open, digest)
        prefix = await self._off_loop(
            artifact.load, data, base, max_prefix_tokens=self.max_prefix_tokens
        )
        return self._describe(prefix, digest, len(data), base, source, prompt)

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
        if source_format in _HOLDS_SPECIAL_TOKENS:
            prompt = prompt.model_copy(update={"add_special_tokens": False})
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
            prompt=prompt,
            verification=_report(prefix, base, dtype),
        )

    def _base(self) -> BaseModelSpec:
        info = self._engine.info
        return BaseModelSpec(
            name=self._model_name,
            fingerprint=info.fingerprint,
            num_layers=info.num_layers,
            num_kv_heads=info.num_kv_heads,
            head_dim=info.head_dim,
            hidden_size=info.hidden_size,
            dtype=info.dtype,
        )

    @property
    def max_prefix_tokens(self) -> int:
        """A prefix that leaves no room for a prompt and a token is of no use."""
        return min(self._max_prefix_tokens, self._engine.info.max_model_len - 2)

    async def _off_loop(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(work, *args, **kwargs))


def _report(prefix: Prefix, base: BaseModelSpec, dtype: str) -> tuple[Check, ...]:
    """What was checked on the way here. A prefix that fails a check never gets this far."""
    shape = f"[{base.num_kv_heads}, {prefix.num_virtual_tokens}, {base.head_dim}]"
    return (
        Check(name="format", passed=True, detail=prefix.origin.get("source_format", "artifact")),
        Check(name="base_model", passed=True, detail=base.fingerprint),
        Check(name="shapes", passed=True, detail=f"{base.num_layers} layers of {shape}"),
        Check(name="finite_values", passed=True, detail=f"as {dtype} and as {base.dtype}"),
    )
