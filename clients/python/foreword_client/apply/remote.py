"""Prefixes at URLs: hf://, s3:// and whatever else fsspec reads, copied to a local folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from foreword_client._upload import ARTIFACT, BESIDE, PEFT_CONFIG, PEFT_WEIGHTS
from foreword_client.errors import SourceError

KNOWN = (ARTIFACT, PEFT_CONFIG, PEFT_WEIGHTS, *BESIDE)
"""Files of a folder that are copied."""

_EXTRAS = {"hf": "hf", "s3": "s3"}
_USERINFO = re.compile(r"(?<=://)[^/@]*@")


def is_url(prefix: str) -> bool:
    """Whether a prefix is given by a URL and not by a path."""
    return "://" in prefix


def shown(url: str) -> str:
    """Return a URL without the credentials in it, for messages."""
    return _USERINFO.sub("", url)


def fetch(url: str, folder: Path) -> Path:
    """Copy a file, or the known files of a folder, into a local folder. Returns its local path.

    Raises `SourceError`.
    """
    try:
        return _copy(*_opened(url), folder)
    except SourceError:
        raise
    except FileNotFoundError:
        raise SourceError(f"{shown(url)}: no such file or folder") from None
    except Exception as exc:  # every file system of fsspec has exceptions of its own
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise SourceError(f"{shown(url)} cannot be read: {shown(reason)}") from None


def _opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    scheme = url.partition("://")[0].rpartition("::")[2]
    extra = _EXTRAS.get(scheme, "fsspec")
    try:
        import fsspec

        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError as exc:
        needs = f"pip install 'foreword-client[{extra}]'"
        raise SourceError(f"{scheme}:// needs packages that are missing ({exc}): {needs}") from None
    except ValueError:
        raise SourceError(f"{scheme}:// is no kind of URL that fsspec reads") from None
    return found


def _copy(filesystem: Any, path: str, folder: Path) -> Path:
    if not filesystem.isdir(path):
        file = folder / path.rpartition("/")[2]
        filesystem.get_file(path, str(file))
        return file
    held = {str(name).rpartition("/")[2] for name in filesystem.ls(path, detail=False)}
    for name in (name for name in KNOWN if name in held):
        filesystem.get_file(f"{path.rstrip('/')}/{name}", str(folder / name))
    return folder
