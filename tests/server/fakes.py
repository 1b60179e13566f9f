"""A tokenizer without files and an engine without a model, for everything above the engine."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import httpx
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from prefix_store import artifact
from prefix_store.digest import Digest
from prefix_store.prefix import BaseModelSpec, Prefix
from server.engine.grammar import Vocabulary
from server.engine.ipc.messages import EngineInfo, EngineStats, EvictionPreview, PrefixCompiled
from server.engine.ipc.stream import TokenStream
from server.engine.params import (
    DEFAULT_SCHEDULING,
    Delta,
    SamplingParams,
    SchedulingParams,
)
from server.errors import EngineUnavailable, ServerError
from tests.server.scores import fake_scores

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m['content'] == 'refuse me' %}{{ raise_exception('not this one') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def make_transformers_tokenizer(
    *, bos: bool = False, chat_template: str | None = CHATML
) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: a token is a byte; the special tokens come after these."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    if bos:
        bos_id = backend.token_to_id("<s>")
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bos_id)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token=None
    )
    tokenizer.chat_template = chat_template
    return tokenizer


INFO = EngineInfo(
    model="tiny",
    fingerprint="sha256:" + "f" * 64,
    num_layers=2,
    num_kv_heads=2,
    head_dim=4,
    hidden_size=16,
    vocab_size=260,
    dtype="float32",
    device="cpu",
    attention="ref",
    max_model_len=256,
    max_num_seqs=4,
    kv_pool_tokens=1024,
    eos_token_ids=[257],
)


def make_vocabulary() -> Vocabulary:
    """Return the vocabulary of the byte tokenizer."""
    text = make_transformers_tokenizer().backend_tokenizer.to_str()
    return Vocabulary(text, vocab_size=INFO.vocab_size, eos_token_ids=INFO.eos_token_ids)


BASE = BaseModelSpec(
    name="tiny",
    fingerprint=INFO.fingerprint,
    num_layers=INFO.num_layers,
    num_kv_heads=INFO.num_kv_heads,
    head_dim=INFO.head_dim,
    hidden_size=INFO.hidden_size,
    dtype=INFO.dtype,
)


def make_prefix(seed: int = 0, *, num_tokens: int = 3, fingerprint: str = "") -> Prefix:
    """A prefix of random numbers that fits the fake engine's model."""
    generator = torch.Generator().manual_seed(seed)
    shape = (INFO.num_kv_heads, num_tokens, INFO.head_dim)
    layers = range(INFO.num_layers)
    return Prefix(
        keys=tuple(torch.randn(shape, generator=generator) for _ in layers),
        values=tuple(torch.randn(shape, generator=generator) for _ in layers),
        position_offset=num_tokens,
        fingerprint=fingerprint,
    )


@dataclass
class FakeEngine:
    """Tokens are a function of prefix digest, prompt and place, and nothing else."""

    info_or_none: EngineInfo | None = INFO
    delay_s: float = 0.0
    script: Callable[[Digest | None, list[int]], list[int]] | None = None
    """Token ids to answer with, instead of the function."""
    fail_after: tuple[int, ServerError] | None = None
    load_error: ServerError | None = None
    compile_to: Callable[..., PrefixCompiled] | None = None
    num_restarts: int = 0
    heartbeat_age_s: float = 0.1
    stats: EngineStats = field(default_factory=EngineStats)
    submitted: list[tuple[Digest | None, list[int], SamplingParams]] = field(default_factory=list)
    shares: list[SchedulingParams] = field(default_factory=list)
    num_cached_tokens: int = 0
    """Tokens of each prompt that it says were found computed."""
    effect: float | ServerError = 0.1
    """What every verification finds."""
    room: EvictionPreview = field(default_factory=lambda: EvictionPreview(0, True, []))
    in_use: set[Digest] = field(default_factory=set)
    pinned: set[Digest] = field(default_factory=set)
    verified: list[tuple[Digest, list[int]]] = field(default_factory=list)
    loaded: list[Digest] = field(default_factory=list)
    unloaded: list[Digest] = field(default_factory=list)
    compiled: list[dict[str, object]] = field(default_factory=list)
    num_cancelled: int = 0
    num_tokens_made: int = 0
    is_dead: bool = False
    pid: int | None = None

    def __post_init__(self) -> None:
        self._running: dict[int, asyncio.Task[None]] = {}

    @property
    def info(self) -> EngineInfo:
        if self.info_or_none is None:
            raise EngineUnavailable("the engine is loading the model")
        return self.info_or_none

    @property
    def is_ready(self) -> bool:
        return self.info_or_none is not None and not self.is_dead

    @property
    def num_in_flight(self) -> int:
        return len(self._running)

    async def start(self) -> None:
        self.is_dead = False

    async def stop(self, drain_timeout_s: float) -> None:
        self.is_dead = True
        if self._running and drain_timeout_s:
            await asyncio.wait(self._running.values(), timeout=drain_timeout_s)
        for task in list(self._running.values()):
            task.cancel()

    def submit(
        self,
        prefix: Digest | None,
        token_ids: list[int],
        sampling: SamplingParams,
        scheduling: SchedulingParams = DEFAULT_SCHEDULING,
    ) -> TokenStream:
        if self.is_dead:
            raise EngineUnavailable("the engine is starting")
        number = len(self.submitted)
        self.submitted.append((prefix, token_ids, sampling))
        self.shares.append(scheduling)
        stream = TokenStream(cancel=lambda: self._cancel(number))
        made = self._make(prefix, token_ids, sampling)
        run = self._run(number, stream, token_ids, made, sampling)
        self._running[number] = asyncio.create_task(run)
        return stream

    async def load(self, prefix: Digest) -> None:
        if self.load_error is not None:
            raise self.load_error
        self.loaded.append(prefix)

    def unload(self, prefix: Digest) -> None:
        self.unloaded.append(prefix)

    async def evict(self, prefix: Digest) -> bool:
        if prefix in self.in_use | self.pinned:
            return False
        self.unload(prefix)
        return True

    async def pin(self, prefix: Digest) -> None:
        await self.load(prefix)
        self.pinned.add(prefix)

    def unpin(self, prefix: Digest) -> None:
        self.pinned.discard(prefix)

    async def preview_eviction(self, num_bytes: int) -> EvictionPreview:
        return self.room

    async def verify(self, prefix: Digest, token_ids: list[int]) -> float:
        self.verified.append((prefix, token_ids))
        if isinstance(self.effect, ServerError):
            raise self.effect
        return self.effect

    async def compile(
        self,
        *,
        token_ids: list[int] | None = None,
        embeddings: Digest | None = None,
        origin: dict[str, str],
    ) -> PrefixCompiled:
        asked = {"token_ids": token_ids, "embeddings": embeddings, "origin": origin}
        self.compiled.append(asked)
        assert self.compile_to is not None, "this test needs a compile_to"
        written = asyncio.ensure_future(asyncio.to_thread(self.compile_to, **asked))
        try:
            return await asyncio.shield(written)
        except asyncio.CancelledError:  # too late
            return await written

    def _make(
        self, prefix: Digest | None, token_ids: list[int], sampling: SamplingParams
    ) -> list[int]:
        if self.script is not None:
            return self.script(prefix, token_ids)
        return expected_tokens(prefix, token_ids, sampling.max_tokens)

    async def _run(
        self,
        number: int,
        stream: TokenStream,
        prompt: list[int],
        made: list[int],
        sampling: SamplingParams,
    ) -> None:
        try:
            if sampling.prompt_logprobs is not None:
                scored = prompt[sampling.first_scored :]
                for start, end in pairwise([0, 2, *range(514, len(scored) + 512, 512)]):
                    if part := scored[start:end]:
                        scores = fake_scores(part, sampling.prompt_logprobs)
                        stream.put(Delta(number, [], None, prompt_logprobs=scores))
                    await asyncio.sleep(0)
            for i, token_id in enumerate(made[: sampling.max_tokens]):
                await asyncio.sleep(self.delay_s)
                if self.fail_after is not None and i >= self.fail_after[0]:
                    stream.put(self.fail_after[1])
                    return
                self.num_tokens_made += 1
                is_last = i + 1 == min(len(made), sampling.max_tokens)
                reason = "length" if len(made) >= sampling.max_tokens else "stop"
                ends = reason if is_last else None
                scores = fake_scores([token_id], sampling.logprobs)
                stream.put(Delta(number, [token_id], ends, self.num_cached_tokens, scores))  # type: ignore[arg-type]
            if not made:
                stream.put(Delta(number, [], "stop"))
        except asyncio.CancelledError:
            stream.put(EngineUnavailable("the engine stopped while it ran this request; try again"))
        finally:
            self._running.pop(number, None)

    def _cancel(self, number: int) -> None:
        self.num_cancelled += 1
        if (task := self._running.pop(number, None)) is not None:
            task.cancel()


def expected_tokens(prefix: Digest | None, token_ids: list[int], num_tokens: int) -> list[int]:
    """Lower-case letters, as bytes of the tiny tokenizer's alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [alphabet.index(chr(c)) for c in range(ord("a"), ord("z") + 1)]
    hashes = (hashlib.sha256(f"{prefix}{token_ids}{i}".encode()) for i in range(num_tokens))
    return [letters[each.digest()[0] % 26] for each in hashes]


ARTIFACT = {"Content-Type": "application/vnd.safetensors"}


async def push(http: httpx.AsyncClient, task: str, seed: int = 0) -> dict[str, object]:
    """Upload a prefix and make it active; the manifest."""
    body = artifact.dump(make_prefix(seed))
    response = await http.put(f"/tasks/{task}/prefix", content=body, headers=ARTIFACT)
    assert response.status_code in (200, 201), response.text
    return dict(response.json())
