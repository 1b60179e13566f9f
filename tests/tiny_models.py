"""Tiny random models of several families, an engine around one, and the oracle beside it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers as T
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from prefix_store.digest import Digest
from prefix_store.prefix import BaseModelSpec
from server.engine.attention import interface
from server.engine.attention.base import AttentionBackend, BatchCapacity, Step
from server.engine.attention.interface import ATTENTION_NAME
from server.engine.attention.ref import RefBackend
from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix
from server.engine.params import SamplingParams
from server.engine.runner.forward import ModelForward
from server.engine.runner.runner import Runner, RunnerParts
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.prompt_cache import PromptCache
from server.engine.scheduler.scheduler import Scheduler
from server.engine.scheduler.sequence import Sequence

VOCAB = 97
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA = _SIZES | {"num_key_value_heads": 2}
CONFIGS = {
    "llama": T.LlamaConfig(**GQA),
    "qwen3": T.Qwen3Config(**GQA, head_dim=24),
    "mistral": T.MistralConfig(**GQA, sliding_window=8),
    "gemma2": T.Gemma2Config(**GQA, head_dim=16, sliding_window=8),
    "gemma3": T.Gemma3TextConfig(
        **GQA,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "gpt2": T.GPT2Config(
        vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, n_positions=256,
        bos_token_id=1, eos_token_id=2,
    ),
    "opt": T.OPTConfig(
        vocab_size=VOCAB, hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=256, word_embed_proj_dim=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    ),
}  # fmt: skip
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {
    "mixtral": T.MixtralConfig(**GQA, **_EXPERTS),
    "granitemoe": T.GraniteMoeConfig(**GQA, **_EXPERTS),
    "gpt_oss": T.GptOssConfig(**GQA, **_EXPERTS, head_dim=16, sliding_window=8),
    "llama4_text": T.Llama4TextConfig(
        **GQA, **_EXPERTS, head_dim=16, intermediate_size_mlp=96, attention_chunk_size=192
    ),
}
"""Mixtures of experts, for the few tests that they mean something to."""


def build_model(family: str, attn_implementation: str) -> PreTrainedModel:
    """A tiny random model whose prefixes have a visible effect."""
    if attn_implementation == ATTENTION_NAME:  # transformers wants the name to exist already
        interface.register(RefBackend().attend)
    torch.manual_seed(0)
    config = copy.deepcopy((EXPERTS | CONFIGS)[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.15)
    return model.eval()


def spec_of(config: T.PretrainedConfig) -> BaseModelSpec:
    num_heads = config.num_attention_heads
    return BaseModelSpec(
        name="tiny",
        fingerprint="sha256:" + "0" * 64,
        num_layers=config.num_hidden_layers,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
        hidden_size=config.hidden_size,
        dtype="float32",
    )


def random_prefix(spec: BaseModelSpec, num_tokens: int, seed: int) -> ResidentPrefix:
    generator = torch.Generator().manual_seed(seed)
    shape = (spec.num_layers, 2, spec.num_kv_heads, num_tokens, spec.head_dim)
    kv = torch.randn(shape, generator=generator)
    return ResidentPrefix(kv.to(getattr(torch, spec.dtype)), num_tokens, num_tokens)


@dataclass
class AlwaysReady:
    """Prefixes that are resident from the start."""

    prefixes: dict[Digest, ResidentPrefix] = field(default_factory=dict)

    def acquire(self, digest: Digest) -> None: ...

    def release(self, digest: Digest) -> None: ...

    def is_resident(self, digest: Digest) -> bool:
        return True


class RecordingRunner(Runner):
    """Keeps the logits of every sampled row, by request."""

    def __init__(self, parts: RunnerParts) -> None:
        super().__init__(parts)
        self.logits: dict[int, list[Tensor]] = {}
        self.steps: list[Step] = []
        self.activate()

    def activate(self) -> None:
        """Register this runner's backend, in place of that of another engine."""
        interface.register(self.parts.backend.attend)

    def forward(self, step: Step) -> Tensor:
        logits = super().forward(step)
        self.steps.append(step)
        ends = {span.end - 1: span.request_id for span in step.spans}
        for row, values in zip(step.logit_rows.tolist(), logits, strict=True):
            self.logits.setdefault(ends[row], []).append(values.to("cpu", copy=True))
        return logits


@dataclass
class Engine:
    """Scheduler and runner without a process around them."""

    scheduler: Scheduler
    runner: RecordingRunner
    pool: KvPool
    ready: AlwaysReady
    completions: dict[int, list[int]] = field(default_factory=dict)

    def rebuild_runner(self, **parts: Any) -> None:
        """Replace some of the runner's parts."""
        self.runner = RecordingRunner(replace(self.runner.parts, **parts))

    def add(
        self, request_id: int, token_ids: list[int], prefix: ResidentPrefix | None, num_new: int
    ) -> None:
        digest = None
        if prefix is not None:
            digest = Digest.of(prefix.kv.float().numpy().tobytes())
            self.ready.prefixes[digest] = replace(prefix, kv=prefix.kv.to(self.pool.pages.device))
        sampling = SamplingParams(max_tokens=num_new, ignore_eos=True)
        self.scheduler.add(Sequence(request_id, digest, list(token_ids), sampling))

    def step(self) -> None:
        batch = self.scheduler.schedule()
        for delta in self.scheduler.commit(batch, self.runner.launch(batch).tokens()):
            self.completions.setdefault(delta.request_id, []).extend(delta.token_ids)
        self.scheduler.check()

    def run(self, max_steps: int = 1000) -> dict[int, list[int]]:
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return self.completions
            self.step()
        raise AssertionError("the engine did not come to an end")


def make_engine(
    model: PreTrainedModel,
    backend: AttentionBackend,
    *,
    page_size: int,
    num_pages: int,
    max_num_batched_tokens: int = 512,
    prompt_cache: bool = False,
) -> Engine:
    spec, device = spec_of(model.config), str(model.device)
    pool = KvPool(spec, num_pages=num_pages, page_size=page_size, device=device)
    backend.allocate(pool, BatchCapacity(model.config.num_attention_heads))
    ready = AlwaysReady()
    allocator = PageAllocator(num_pages, page_size)
    scheduler = Scheduler(
        allocator, ready, max_num_seqs=32, max_num_batched_tokens=max_num_batched_tokens,
        eos_token_ids=[2], prompt_cache=PromptCache(allocator) if prompt_cache else None,
    )  # fmt: skip
    parts = RunnerParts(ModelForward(model), backend, ready.prefixes.__getitem__)
    return Engine(scheduler, RecordingRunner(parts), pool, ready)


@torch.no_grad()
def oracle(
    model: PreTrainedModel, token_ids: list[int], prefix: ResidentPrefix | None, num_new: int
) -> tuple[list[int], Tensor]:
    """One sequence alone through transformers' own attention: tokens, and logits [num_new, V]."""
    cache = DynamicCache()
    num_prefix = 0
    if prefix is not None:
        cache = DynamicCache([(kv[0][None], kv[1][None]) for kv in prefix.kv])
        num_prefix = prefix.num_tokens
    ids = torch.tensor([token_ids])
    seen, logits = num_prefix, []
    for _ in range(num_new):
        positions = torch.arange(seen, seen + ids.shape[1])[None]
        seen += ids.shape[1]
        kwargs = {} if model.config.model_type == "opt" else {"position_ids": positions}
        mask = torch.ones(1, seen, dtype=torch.long)
        out = model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **kwargs
        )
        logits.append(out.logits[0, -1])
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
    return [int(row.argmax()) for row in logits], torch.stack(logits)
