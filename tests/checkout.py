"""The files of this checkout, for tests of what the repository says about itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TEXTS = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".json", ".html", ".js", ".css", ""}
SKIPPED = {".venv", ".git", ".hypothesis", "__pycache__", "node_modules"}


def read(path: str) -> str:
    """A file's text, by its path from the root."""
    return (ROOT / path).read_text("utf-8")


def files() -> Iterator[Path]:
    """Every text file but those that tools made."""
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = any(part in SKIPPED or part.endswith("_cache") for part in parts)
        if path.is_file() and not hidden and path.suffix in TEXTS:
            yield path
