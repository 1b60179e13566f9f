"""Reference logits of a few tokens, computed with transformers' own attention. The engine is
compared with them at its start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from server.engine.model.families import UnsupportedModel, refusing
from server.engine.model.load import LoadedModel
from server.engine.model.numerics import relative_error

NUM_AFTER_PREFIX = 18
NUM_ALONE = 6
_NUM_PREFIX_TOKENS = 21
_CHUNK = 9


@dataclass(frozen=True, slots=True)
class Reference:
    """A prefix, two prompts, and the logits of all their tokens (float32, on the CPU)."""

    prefix: Tensor  # [num_layers, 2, num_kv_heads, L, head_dim]; the KV of L tokens
    prompts: tuple[Tensor, Tensor]
    """Token ids: NUM_AFTER_PREFIX tokens that follow the prefix, and the NUM_ALONE tokens with
    which the prefix begins."""
    logits: tuple[Tensor, Tensor]  # [num_tokens, vocab_size] each
    noise: float
    """Relative error between the model and itself with the prompt in chunks: rounding of the dtype,
    and the experts that rounding exchanges. 0 in float32."""


@torch.inference_mode()
def reference_of(loaded: LoadedModel) -> Reference:
    """Run a few short forwards. Call it before any module of the model is replaced.

    Raises `UnsupportedModel` if the model's cache does not hold the keys and values that its
    attention sees: then no prefix can be put into it.
    """
    model = loaded.model
    with _own_attention(model), refusing(model.config, "transformers' own forward of it fails"):
        room = loaded.max_positions - NUM_AFTER_PREFIX
        num_prefix_tokens = max(NUM_ALONE, min(_NUM_PREFIX_TOKENS, room))
        num_ids = num_prefix_tokens + NUM_AFTER_PREFIX
        ids = torch.arange(3, 3 + num_ids) * 7919 % loaded.vocab_size  # spread over the vocabulary
        prefix, of_prefix = _keys_and_values(model, ids[:num_prefix_tokens])
        _check_shape(prefix, loaded)
        prompt = ids[num_prefix_tokens:]
        after_prefix = _logits(model, [prompt], prefix)
        noise = 0.0
        if model.dtype is not torch.float32:
            noise = relative_error(
                after_prefix, _logits(model, torch.split(prompt, _CHUNK), prefix)
            )
        return Reference(
            prefix, (prompt, ids[:NUM_ALONE]), (after_prefix, of_prefix[:NUM_ALONE]), noise
        )


def _check_shape(kv: Tensor, loaded: LoadedModel) -> None:
    spec = loaded.spec
    seen = (spec.num_layers, 2, spec.num_kv_heads, kv.shape[3], spec.head_dim)
    if kv.shape != seen:
        raise UnsupportedModel.because(
            loaded.model.config, "its cache does not hold the keys and values of its attention"
        )


@contextmanager
def _own_attention(model: PreTrainedModel) -> Iterator[None]:
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        if model.config._attn_implementation != "eager":
            raise UnsupportedModel.because(model.config, "its attention cannot be exchanged")
        yield
    finally:
        model.set_attn_implementation(ours)


def _keys_and_values(model: PreTrainedModel, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the KV of all layers from the model's cache, and the logits.

    [num_layers, 2, num_kv_heads, num_tokens, head_dim] and [num_tokens, vocab_size].
    """
    cache = DynamicCache()
    logits = _forward(model, token_ids, cache, 0)
    kv = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    return torch.stack(kv), logits


def _logits(model: PreTrainedModel, chunks: Iterable[Tensor], prefix: Tensor) -> Tensor:
    """Return the logits of one prompt, run in chunks [num_tokens] through transformers' cache.

    A cache without a config keeps the whole prefix: the mask applies sliding windows, as in PEFT.
    """
    cache = DynamicCache([(kv[0][None].clone(), kv[1][None].clone()) for kv in prefix])
    num_seen, logits = prefix.shape[3], []
    for chunk in chunks:
        logits.append(_forward(model, chunk, cache, num_seen))
        num_seen += len(chunk)
    return torch.cat(logits)


def _forward(model: PreTrainedModel, token_ids: Tensor, cache: DynamicCache, start: int) -> Tensor:
    """Return the logits [num_tokens, vocab_size] of a forward as `generate` calls it.

    The model computes the positions itself.
    """
    num_tokens = len(token_ids)
    mask = torch.ones(1, start + num_tokens, dtype=torch.long, device=model.device)
    output = model(
        input_ids=token_ids[None].to(model.device),
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    )
    logits: Tensor = output.logits[0]
    return logits.float().cpu()
