"""Files and folders that commands write: whole, or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import typer

from foreword_client import _tar
from foreword_client._upload import ARTIFACT, BESIDE, PEFT_CONFIG, PEFT_WEIGHTS

_KNOWN = (ARTIFACT, PEFT_CONFIG, PEFT_WEIGHTS, *BESIDE)


def is_folder(path: Path) -> bool:
    """Whether a download becomes a folder: one that exists, or a new name without a suffix."""
    return path.is_dir() or (not path.exists() and path.name != "-" and not path.suffix)


def check_new(folder: Path) -> None:
    """Refuse a folder with files: those of another version would stay beside the new ones."""
    if folder.is_dir() and any(folder.iterdir()):
        raise typer.BadParameter(f"{folder} is not empty")


def write_folder(folder: Path, tar: bytes) -> None:
    """Write the files of a downloaded tar into a new or empty folder, atomically."""
    temp = _beside(folder)
    temp.mkdir()
    try:
        for name, content in _tar.files(tar).items():
            if name in _KNOWN:
                (temp / name).write_bytes(content)
        temp.replace(folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: if the disk is full, no partial file is left."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # a device or a pipe: nothing to replace
        return
    temp = _beside(path)
    try:
        temp.write_bytes(data)
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    path = path.resolve()
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
