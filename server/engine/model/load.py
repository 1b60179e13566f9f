"""Loading of a base model: our attention in its layers, geometry measured, weights frozen."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from prefix_store.prefix import BaseModelSpec
from server.engine.attention import interface
from server.engine.attention.base import AttentionBackend, AttentionCall
from server.engine.model.families import (
    OWN_ATTENTION,
    Context,
    UnsupportedModel,
    check_supported,
    context_of,
    read_config,
    refusing,
)
from server.engine.model.fingerprint import fingerprint

logger = logging.getLogger(__name__)

_NUM_PROBE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The frozen base model, and the properties of it that the engine uses."""

    model: PreTrainedModel
    spec: BaseModelSpec
    num_heads: int
    """Query heads."""
    context: Context
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    generation_defaults: dict[str, int | float]
    """What the model's `generation_config.json` sets of `prefix_store.sampling.SamplingFields`."""

    @property
    def max_positions(self) -> int:
        """Maximum tokens of a sequence: prefix, prompt and completion."""
        return self.context.num_tokens


def load(path: str, *, dtype: str, device: str, backend: AttentionBackend) -> LoadedModel:
    """Load a model folder or hub id and register `backend` as its attention.

    Raises `UnsupportedModel`, and OSError if there is no model.
    """
    config = read_config(path)
    check_supported(config)
    context = context_of(config)
    interface.register(backend.attend)
    with refusing(config, "it cannot be loaded with the server's attention in it"):
        model = _read(path, getattr(torch, dtype))
    model = model.eval().requires_grad_(requires_grad=False).to(device)
    with refusing(config, "it does not run with the server's attention in it"):
        spec, num_heads = _measure(model, Path(path).name, dtype)
    interface.register(backend.attend)
    return LoadedModel(
        model=model,
        spec=spec,
        num_heads=num_heads,
        context=context,
        vocab_size=model.get_input_embeddings().num_embeddings,
        eos_token_ids=_eos_token_ids(model.generation_config),
        generation_defaults=_generation_defaults(model.generation_config),
    )


def _read(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """Read a model whose checkpoint contains all its weights.

    transformers would initialise missing weights at random. Tied weights are not missing.
    """
    model, found = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=interface.ATTENTION_NAME,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reports them instead of raising, so that they can be named
    )
    if missing := sorted(found["missing_keys"]):
        raise UnsupportedModel(f"the checkpoint lacks {_first_of(missing)}")
    if mismatched := sorted(found["mismatched_keys"]):
        names = [f"{name} {tuple(has)} for {tuple(needs)}" for name, has, needs in mismatched]
        raise UnsupportedModel(f"the checkpoint has weights of another shape: {_first_of(names)}")
    if unexpected := sorted(found["unexpected_keys"]):
        logger.warning("the model does not use the checkpoint's %s", _first_of(unexpected))
    return model


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _measure(model: PreTrainedModel, name: str, dtype: str) -> tuple[BaseModelSpec, int]:
    """Run one forward; return the geometry that attention sees, and the number of query heads.

    For some families the config fields are wrong.
    """
    shapes: dict[int, tuple[int, int, int]] = {}
    norms: dict[int, tuple[float, float]] = {}

    def probe(layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        if k.shape != v.shape:
            raise UnsupportedModel.because(
                model.config, f"keys {tuple(k.shape)} and values {tuple(v.shape)} differ"
            )
        shapes[layer] = (q.shape[0], k.shape[0], k.shape[2])
        norms[layer] = (_longest(k), _longest(v))
        return q.transpose(0, 1).contiguous()

    interface.register(probe)
    positions = torch.arange(_NUM_PROBE_TOKENS, device=model.device)[None]
    # A step that is prime spreads the token ids over the whole vocabulary.
    token_ids = positions * 7919 % model.get_input_embeddings().num_embeddings
    with torch.inference_mode():
        model(input_ids=token_ids, position_ids=positions, use_cache=False)
    num_layers = model.config.num_hidden_layers
    if not shapes:
        raise UnsupportedModel.because(model.config, OWN_ATTENTION)
    if sorted(shapes) != list(range(num_layers)) or len(set(shapes.values())) != 1:
        raise UnsupportedModel.because(
            model.config,
            f"attention was seen in {len(shapes)} of {num_layers} layers, with shapes "
            f"{sorted(set(shapes.values()))}; all must have the same",
        )
    num_heads, num_kv_heads, head_dim = shapes[0]
    hidden_size = model.get_input_embeddings().weight.shape[1]
    spec = BaseModelSpec(
        name,
        fingerprint(model),
        num_layers,
        num_kv_heads,
        head_dim,
        hidden_size,
        dtype,
        kv_norms=tuple(norms[i] for i in range(num_layers)),
    )
    return spec, num_heads


def _longest(vectors: Tensor) -> float:
    return float(vectors.float().norm(dim=-1).max())


def _eos_token_ids(config: GenerationConfig | None) -> tuple[int, ...]:
    eos = config.eos_token_id if config is not None else None
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)


def _generation_defaults(config: GenerationConfig | None) -> dict[str, int | float]:
    """Translate a generation config, whose sampling fields mean nothing without `do_sample`."""
    if config is None:
        return {}
    found: dict[str, int | float | None] = {"max_tokens": config.max_new_tokens}
    if config.do_sample:
        found |= {name: getattr(config, name, None) for name in ("top_p", "top_k", "min_p")}
        # `generate` samples at 1.0 where no temperature is set; the server would be greedy.
        found["temperature"] = 1.0 if config.temperature is None else config.temperature
    return {name: value for name, value in found.items() if value is not None}
