"""Checkpoints: a training's state in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foreword_tuner.errors import TunerError

_STATE = "state"


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint, atomically and durably: after a kill there is this one or the last."""
    temp = path.with_suffix(".tmp")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, temp, {_STATE: json.dumps(state)})
    with temp.open("rb") as file:
        os.fsync(file.fileno())
    temp.replace(path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint. Raises `TunerError` for a file that is not one."""
    try:
        with safe_open(path, "pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()[_STATE])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as exc:
        raise TunerError(
            f"{path} is not a checkpoint: {exc}; pass --restart to start over"
        ) from None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def snapshot(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Copy the trainable parameters."""
    return {f"{prefix}{name}": p.detach().clone() for name, p in trainable(model).items()}


@torch.no_grad()
def restore(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Inverse of `snapshot`."""
    for name, parameter in trainable(model).items():
        parameter.copy_(tensors[f"{prefix}{name}"])


def moments(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the optimizer's tensors, by parameter."""
    states = optimizer.state_dict()["state"]
    return {
        f"optimizer.{key}.{name}": torch.as_tensor(value)
        for i, name in enumerate(names)
        for key, value in states.get(i, {}).items()
    }


def restore_moments(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of `moments`."""
    found = optimizer.state_dict()
    for i, name in enumerate(names):
        found["state"][i] = {
            key: tensors[f"optimizer.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
        }
    optimizer.load_state_dict(found)
