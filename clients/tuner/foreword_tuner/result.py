"""Output files of a training: PEFT folder, record, golden prompts, evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft

from foreword_tuner.settings import Folder

_WEIGHTS = "adapter_model.safetensors"
_PACKAGES = ("torch", "transformers", "peft")


def save_peft(tuned: peft.PeftModel, folder: Folder) -> int:
    """Save with PEFT. Returns the size of the weights in bytes.

    PEFT saves the output of a projection, so the saved config must not name one.
    """
    config: Any = tuned.peft_config["default"]
    if getattr(config, "prefix_projection", False):
        config.prefix_projection = False
    tuned.save_pretrained(str(folder.path))
    (folder.path / "README.md").unlink(missing_ok=True)  # an empty template
    return (folder.path / _WEIGHTS).stat().st_size


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    temp = path.with_suffix(".json.tmp")
    temp.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    temp.replace(path)


def write_golden(path: Path, golden: Sequence[Mapping[str, str]]) -> None:
    """Write golden prompts, one JSON object per line."""
    path.write_text("".join(f"{json.dumps(dict(line))}\n" for line in golden), "utf-8")


def versions() -> dict[str, str]:
    """Return the versions of the main packages."""
    return {name: version(name) for name in _PACKAGES}
