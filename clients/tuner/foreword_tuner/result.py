"""What a training leaves: a PEFT folder, its record, a plot, golden prompts and an evaluation."""

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
    """As PEFT saves it; the size of the weights in bytes.

    A projection was applied, and is gone: the config no longer names one.
    """
    config: Any = tuned.peft_config["default"]
    if getattr(config, "prefix_projection", False):
        config.prefix_projection = False
    tuned.save_pretrained(str(folder.path))
    (folder.path / "README.md").unlink(missing_ok=True)  # an empty form
    return (folder.path / _WEIGHTS).stat().st_size


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    temp = path.with_suffix(".json.tmp")
    temp.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    temp.replace(path)


def write_golden(path: Path, golden: Sequence[Mapping[str, str]]) -> None:
    """One JSON object a line, which is what an upload brings along."""
    path.write_text("".join(f"{json.dumps(dict(line))}\n" for line in golden), "utf-8")


def versions() -> dict[str, str]:
    """Of what did the work."""
    return {name: version(name) for name in _PACKAGES}
