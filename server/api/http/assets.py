"""Files of the web console, read once at startup."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import server

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, in memory."""

    body: bytes
    media_type: str
    tag: str
    """Value of the `ETag` header, quotes included."""


def load_assets() -> dict[str, Asset]:
    """Read all files of the console, by name. Raises `OSError`."""
    paths = sorted(path for path in _folder().iterdir() if path.suffix in _TYPES)
    return {path.name: _asset(path) for path in paths}


def _folder() -> Path:
    """Return the console's folder: in the package if installed, else in the checkout."""
    package = Path(server.__file__).parent
    packed = package / "console"
    return packed if packed.is_dir() else package.parent / "clients" / "console"


def _asset(path: Path) -> Asset:
    body = path.read_bytes()
    return Asset(body, _TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')
