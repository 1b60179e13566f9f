"""PEFT's format: `adapter_config.json`, and `prompt_embeddings` in `adapter_model.safetensors`.

Prefix tuning and cartridges store flattened keys and values, [L, 2 * num_layers * num_kv_heads *
head_dim], where slot 2i is layer i's keys and slot 2i+1 its values. Real tokens start at position
L. PEFT applies a projection before it saves. Prompt tuning, P-tuning and CPT store input
embeddings, [L, hidden_size]. https://github.com/huggingface/peft, `PeftModel.get_prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from prefix_store import artifact, safetensors_gate, strict_json
from prefix_store.digest import Data, Digest
from prefix_store.errors import IncompatiblePrefix, InvalidArtifact, UnsupportedFormat
from prefix_store.formats.names import PEFT_CONFIG as CONFIG
from prefix_store.formats.names import PEFT_WEIGHTS as WEIGHTS
from prefix_store.prefix import BaseModelSpec, Prefix, SoftPrompt
from prefix_store.safetensors_gate import TensorFile, file_of_parts, shown

MAX_CONFIG_BYTES = 1 << 20
_ROWS = 64
_TENSOR = "prompt_embeddings"
_KEYS_AND_VALUES = {"PREFIX_TUNING": "peft-prefix-tuning", "CARTRIDGE": "peft-cartridge"}
_EMBEDDINGS = {
    "PROMPT_TUNING": "peft-prompt-tuning",
    "P_TUNING": "peft-p-tuning",
    "CPT": "peft-cpt",
}
_TAKEN = ", ".join((*_KEYS_AND_VALUES, *_EMBEDDINGS))


class Config(BaseModel):
    """Fields of `adapter_config.json` that determine the meaning of the tensor."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    peft_type: str
    base_model_name_or_path: str | None = None
    task_type: str | None = None
    num_virtual_tokens: int | None = Field(None, ge=1)
    num_layers: int | None = None
    num_attention_heads: int | None = None
    """Number of key-value heads for prefix tuning and cartridges."""
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    modules_to_save: list[str] | None = None


def read_files(
    files: Mapping[str, Data], base: BaseModelSpec, *, max_prefix_tokens: int, source: Digest
) -> Prefix | SoftPrompt:
    """Convert the files of a PEFT directory. `source` is the digest of the upload.

    Raises subclasses of `InvalidUpload`.
    """
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise InvalidArtifact(f"the tar contains no {name}")
    config = _read_config(files[CONFIG])
    tensors, _ = safetensors_gate.read_tensors(files[WEIGHTS])
    return read_tensors(tensors, config, base, max_prefix_tokens=max_prefix_tokens, source=source)


def read_tensors(
    tensors: dict[str, Tensor],
    config: Config | None,
    base: BaseModelSpec,
    *,
    max_prefix_tokens: int,
    source: Digest,
) -> Prefix | SoftPrompt:
    """Convert the tensors of `adapter_model.safetensors`.

    Without a config the number of columns determines the kind. `source` is the digest of the
    upload. Raises subclasses of `InvalidUpload`.
    """
    embeddings = _only_tensor(tensors)  # [L, columns]
    kind = config.peft_type if config else _guess(embeddings, base)
    artifact.check_length(embeddings.shape[0], max_prefix_tokens)
    if config:
        _check_rows(embeddings, config)
    if kind in _KEYS_AND_VALUES:
        _check_layout(embeddings, config, base)
        prefix = _unflatten(embeddings, base, _KEYS_AND_VALUES[kind], source, _base_model(config))
        artifact.check(prefix, base, max_prefix_tokens=max_prefix_tokens)
        return prefix
    if embeddings.shape[1] != base.hidden_size:
        raise IncompatiblePrefix(
            f"expected embeddings of {base.hidden_size} columns, got {embeddings.shape[1]}"
        )
    artifact.check_finite(_TENSOR, embeddings, base.dtype)
    # A copy, as the engine may be long in computing it, and the upload may be much larger.
    return SoftPrompt(embeddings.clone(), _EMBEDDINGS[kind], _base_model(config))


def write(prefix: Prefix, base: BaseModelSpec) -> dict[str, bytes]:
    """Return the files of a directory that `PeftModel.from_pretrained` loads. See `to_files`."""
    config, weights = to_files(prefix, base)
    return {CONFIG: config, WEIGHTS: b"".join(weights)}


def to_files(prefix: Prefix, base: BaseModelSpec) -> tuple[bytes, TensorFile]:
    """Return `adapter_config.json` and `adapter_model.safetensors`.

    Deterministic. Raises `IncompatiblePrefix` unless real tokens start at position L, as they
    always do in PEFT.
    """
    num_tokens = prefix.num_virtual_tokens
    if prefix.position_offset != num_tokens:
        raise IncompatiblePrefix(
            f"expected a position_offset of {num_tokens}, which is PEFT's, got "
            f"{prefix.position_offset}"
        )
    config = {
        "base_model_name_or_path": base.name,
        "encoder_hidden_size": base.hidden_size,
        "inference_mode": True,
        "num_attention_heads": base.num_kv_heads,
        "num_layers": base.num_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": num_tokens,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "task_type": "CAUSAL_LM",
        "token_dim": base.num_kv_heads * base.head_dim,
    }
    shape = (prefix.keys[0].dtype, (num_tokens, _num_columns(base)))
    weights = file_of_parts({_TENSOR: shape}, {"format": "pt"}, partial(_rows, prefix))
    return json.dumps(config, indent=2).encode() + b"\n", weights


def _read_config(data: Data) -> Config:
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidArtifact(f"{CONFIG} is above {MAX_CONFIG_BYTES} bytes")
    try:
        config = Config.model_validate(strict_json.parse(bytes(data)))
    except ValidationError as error:
        where = ".".join(shown(at).strip("'") for at in error.errors()[0]["loc"])
        raise InvalidArtifact(f"{CONFIG}: {where or 'the file'} is not what PEFT writes") from None
    except ValueError as error:
        raise InvalidArtifact(f"{CONFIG} is not valid JSON: {error}") from None
    _check_supported(config)
    return config


def _check_supported(config: Config) -> None:
    if config.peft_type not in _KEYS_AND_VALUES and config.peft_type not in _EMBEDDINGS:
        raise UnsupportedFormat(
            f"peft_type {shown(config.peft_type)} is not a prefix: it must be one of {_TAKEN}"
        )
    if config.task_type not in (None, "CAUSAL_LM"):
        raise UnsupportedFormat(
            f"task_type {shown(config.task_type)}: only CAUSAL_LM is supported, as other types "
            "need their own head or encoder"
        )
    if config.modules_to_save:
        raise UnsupportedFormat("modules_to_save: the base model is frozen and shared by all tasks")
    if config.num_transformer_submodules not in (None, 1):
        raise UnsupportedFormat("num_transformer_submodules above 1 is for encoder-decoders")
    if config.num_virtual_tokens is None:
        raise InvalidArtifact(f"{CONFIG} lacks num_virtual_tokens")


def _only_tensor(tensors: dict[str, Tensor]) -> Tensor:
    if any("lora_" in name for name in tensors):
        raise UnsupportedFormat("this is a LoRA, which changes weights; a prefix does not")
    for name in tensors:
        if name != _TENSOR:
            raise UnsupportedFormat(
                f"tensor {shown(name)} is not part of a prefix: a head or other trained weights "
                "cannot be served"
            )
    embeddings = tensors[_TENSOR]
    if embeddings.ndim != 2:
        raise IncompatiblePrefix(f"{_TENSOR}: expected 2 dimensions, got {embeddings.ndim}")
    return embeddings


def _guess(embeddings: Tensor, base: BaseModelSpec) -> str:
    columns = embeddings.shape[1]
    is_kv, is_soft = columns == _num_columns(base), columns == base.hidden_size
    if is_kv and is_soft:
        raise IncompatiblePrefix(f"keys and values, or embeddings? Include {CONFIG}, in a tar")
    if is_kv or is_soft:
        return "PREFIX_TUNING" if is_kv else "PROMPT_TUNING"
    raise IncompatiblePrefix(
        f"expected {_num_columns(base)} columns for keys and values or {base.hidden_size} for "
        f"embeddings, got {columns}"
    )


def _num_columns(base: BaseModelSpec) -> int:
    return 2 * base.num_layers * base.num_kv_heads * base.head_dim


def _check_rows(embeddings: Tensor, config: Config) -> None:
    if embeddings.shape[0] != config.num_virtual_tokens:
        raise IncompatiblePrefix(
            f"expected {config.num_virtual_tokens} rows, as num_virtual_tokens says, got "
            f"{embeddings.shape[0]}"
        )


def _check_layout(embeddings: Tensor, config: Config | None, base: BaseModelSpec) -> None:
    if config and config.num_layers not in (None, base.num_layers):
        raise IncompatiblePrefix(f"expected {base.num_layers} layers, got {config.num_layers}")
    if config and config.num_attention_heads not in (None, base.num_kv_heads):
        raise IncompatiblePrefix(
            f"expected {base.num_kv_heads} key-value heads, got {config.num_attention_heads}; "
            "old versions of PEFT write the number of query heads: train with a newer one"
        )
    if embeddings.shape[1] != _num_columns(base):
        raise IncompatiblePrefix(
            f"expected {_num_columns(base)} columns (2 x {base.num_layers} layers x "
            f"{base.num_kv_heads} heads x {base.head_dim}), got {embeddings.shape[1]}"
        )


def _base_model(config: Config | None) -> str:
    """Return the base model's name in the config, without local folders."""
    name = config.base_model_name_or_path if config else None
    return shown(name.rstrip("/").rpartition("/")[2]).strip("'") if name else ""


def _unflatten(
    embeddings: Tensor, base: BaseModelSpec, source_format: str, source: Digest, base_model: str
) -> Prefix:
    length = embeddings.shape[0]
    slots = embeddings.view(length, base.num_layers, 2, base.num_kv_heads, base.head_dim)
    slots = slots.permute(1, 2, 3, 0, 4)  # [layers, 2, heads, L, head_dim], still a view
    return Prefix(
        keys=tuple(slots[:, 0]),
        values=tuple(slots[:, 1]),
        position_offset=length,
        fingerprint=base.fingerprint,  # PEFT stores none; the shapes were checked against this one
        origin={
            "source_format": source_format,
            "source_digest": str(source),
            **({"base_model": base_model} if base_model else {}),
        },
    )


def _rows(prefix: Prefix) -> Iterator[Tensor]:
    """Yield the flattened keys and values of a few tokens at a time: [few, columns]."""
    for begin in range(0, prefix.num_virtual_tokens, _ROWS):
        tokens = slice(begin, begin + _ROWS)
        keys = torch.stack([k[:, tokens] for k in prefix.keys])
        values = torch.stack([v[:, tokens] for v in prefix.values])
        slots = torch.stack((keys, values), dim=1)  # [layers, 2, heads, few, head_dim]
        yield slots.permute(3, 0, 1, 2, 4).reshape(slots.shape[3], -1)
